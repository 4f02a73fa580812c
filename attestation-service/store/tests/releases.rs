// SPDX-License-Identifier: Apache-2.0
//! Imported releases: only what was verified, and nothing that was revoked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use release::log::{EntryProof, LogSigner, WitnessSigner, cosign, leaf_hash};
use release::{
    Bundle, Component, Components, Hardware, ReferenceValues, ReleaseKey, ShapeRegisters, Statement, Subject,
    TcbStatus, TrustPolicy, Validity, VerifiedRelease, statement::SubjectDigest,
};
use store::{InitOptions, ReleaseStoreError, Store};
use types::{Device, MachineShape, QemuVersion, Role, Sha256Digest, Sha384Digest, shape::ShapeFacts};

const NOW: u64 = 1_750_000_000;

#[test]
fn verified_releases_are_kept_by_digest_and_revoked_for_good() {
    let dir = tempfile::tempdir().unwrap();
    Store::init(dir.path(), &InitOptions { audit_origin: "example.invalid/audit".into(), kek: None }).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let ((bundle, verified), (other_bundle, other)) = (published("a"), published("b"));
    assert_ne!(verified.digest(), other.digest());
    assert!(matches!(store.import_release(&other_bundle, &verified), Err(ReleaseStoreError::Mismatch)));
    assert!(matches!(store.import_release(b"{}", &verified), Err(ReleaseStoreError::Bundle(_))));
    assert!(store.releases().unwrap().is_empty());

    store.import_release(&bundle, &verified).unwrap();
    store.import_release(&bundle, &verified).unwrap();
    let stored = store.releases().unwrap();
    assert_eq!((stored.len(), &stored[0].digest, &stored[0].bundle), (1, verified.digest(), &bundle));
    assert!(store.release(other.digest()).unwrap().is_none());

    store.revoke_release(verified.digest()).unwrap();
    assert!(store.release(verified.digest()).unwrap().unwrap().revoked);
    assert!(matches!(store.import_release(&bundle, &verified), Err(ReleaseStoreError::Revoked)));
    store.revoke_release(other.digest()).unwrap();
    assert!(matches!(store.import_release(&other_bundle, &other), Err(ReleaseStoreError::Revoked)));
}

/// A release that is the only entry of its log.
fn published(profile: &str) -> (Vec<u8>, VerifiedRelease) {
    let key = ReleaseKey::from_random(&[1; 32]).unwrap();
    let log = LogSigner::new("example.invalid/releases", &[2; 32]).unwrap();
    let witness = WitnessSigner::new("witness", &[3; 32]).unwrap();
    let bundle = Bundle::sign(&statement(profile), &key).unwrap();
    let leaf = leaf_hash(&bundle.log_entry(&key.public()).unwrap());
    let note = release::log::Checkpoint::new(log.public().origin(), 1, leaf).sign(&log).unwrap();
    let (checkpoint, _) = cosign(&witness, None, &note, log.public(), &[], NOW).unwrap();
    let proof = EntryProof { index: 0, leaf, tree_size: 1, path: vec![], checkpoint: checkpoint.note().to_owned() };
    let bytes = bundle.with_proof(&key.public(), log.public(), &proof).unwrap().to_json().unwrap();
    let policy = TrustPolicy::new(vec![key.public()], log.public().clone(), vec![witness.public().clone()], 1).unwrap();
    let verified = VerifiedRelease::verify(&bytes, &policy, NOW).unwrap();
    (bytes, verified)
}

fn statement(profile: &str) -> Statement {
    let component = Component { sha256: Sha256Digest::of(b"f"), sha384: Sha384Digest::of(b"f"), size: 1 };
    let values = || vec![Sha384Digest::of(b"v")];
    let qemu = QemuVersion { major: 10, minor: 1 };
    let shape = ShapeFacts { vcpus: 1, memory_mib: 1024, physical_bits: 46, qemu, devices: vec![Device::Vsock] };
    let predicate = ReferenceValues {
        schema_version: 1,
        profile: profile.into(),
        role: Role::Inference,
        hardware: Hardware::Simulated,
        components: Components { firmware: component.clone(), kernel: component.clone(), initrd: component },
        command_line: "quiet".into(),
        source_date_epoch: NOW,
        registers: vec![ShapeRegisters {
            shape: MachineShape::new(shape).unwrap(),
            mr_td: values(),
            rtmr_0: values(),
            rtmr_1: values(),
            rtmr_2: values(),
        }],
        locks: vec![],
        source_commit: "0".repeat(40),
        rebuild_command: "make".into(),
        validity: Validity { not_before: NOW, not_after: NOW + 1 },
        predecessor: None,
        tcb_statuses: vec![TcbStatus::UpToDate],
    };
    let subject = Subject { name: "file".into(), digest: SubjectDigest { sha256: Sha256Digest::of(b"f") } };
    Statement::new(vec![subject], predicate).unwrap()
}
