// SPDX-License-Identifier: Apache-2.0
//! A release that is signed, logged as the only entry of a log, and witnessed.

use release::{
    Bundle, Component, Components, Hardware, ReferenceValues, ReleaseKey, ShapeRegisters, Statement, Subject,
    TcbStatus, TrustPolicy, Validity,
    log::{Checkpoint, EntryProof, LogSigner, WitnessSigner, cosign, leaf_hash},
    statement::SubjectDigest,
};
use types::{Registers, Role, Sha256Digest, Sha384Digest};

use super::shape;

const ORIGIN: &str = "example.invalid/releases";
const FILES: [&str; 3] = ["firmware.fd", "initrd", "vmlinuz"];

/// What a guest that was launched as published measures.
pub(crate) fn registers(mr_config_id: Sha384Digest) -> Registers {
    let of = |name: &str| Sha384Digest::of(name.as_bytes());
    Registers {
        mr_td: of("mr_td"),
        rtmr_0: of("rtmr_0"),
        rtmr_1: of("rtmr_1"),
        rtmr_2: of("rtmr_2"),
        rtmr_3: Sha384Digest::ZERO,
        mr_config_id,
        mr_owner: Sha384Digest::ZERO,
        mr_owner_config: Sha384Digest::ZERO,
    }
}

/// Bundle and trust policy.
pub(crate) fn published(now: u64) -> (Vec<u8>, TrustPolicy) {
    let key = ReleaseKey::from_random(&[1; 32]).unwrap();
    let log = LogSigner::new(ORIGIN, &[2; 32]).unwrap();
    let witness = WitnessSigner::new("witness", &[3; 32]).unwrap();
    let bundle = Bundle::sign(&statement(now), &key).unwrap();
    let leaf = leaf_hash(&bundle.log_entry(&key.public()).unwrap());
    let note = Checkpoint::new(ORIGIN, 1, leaf).sign(&log).unwrap();
    let (cosigned, _) = cosign(&witness, None, &note, log.public(), &[], now).unwrap();
    let checkpoint = cosigned.note().to_owned();
    let proof = EntryProof { index: 0, leaf, tree_size: 1, path: vec![], checkpoint };
    let bundle = bundle.with_proof(&key.public(), log.public(), &proof).unwrap().to_json().unwrap();
    let trust = TrustPolicy::new(vec![key.public()], log.public().clone(), vec![witness.public().clone()], 1).unwrap();
    (bundle, trust)
}

fn statement(now: u64) -> Statement {
    let component = |name: &str| Component {
        sha256: Sha256Digest::of(name.as_bytes()),
        sha384: Sha384Digest::of(name.as_bytes()),
        size: 7,
    };
    let subject =
        |name: &str| Subject { name: name.into(), digest: SubjectDigest { sha256: Sha256Digest::of(name.as_bytes()) } };
    let values = |text: &str| vec![Sha384Digest::of(text.as_bytes())];
    let [firmware, initrd, kernel] = FILES.map(component);
    let predicate = ReferenceValues {
        schema_version: 1,
        profile: "sim".into(),
        role: Role::Inference,
        hardware: Hardware::Simulated,
        components: Components { firmware, kernel, initrd },
        command_line: "panic=-1 quiet".into(),
        source_date_epoch: now - 1000,
        registers: vec![ShapeRegisters {
            shape: shape(),
            mr_td: values("mr_td"),
            rtmr_0: values("rtmr_0"),
            rtmr_1: values("rtmr_1"),
            rtmr_2: values("rtmr_2"),
        }],
        locks: vec![],
        source_commit: "0".repeat(40),
        rebuild_command: "image build --profile sim --out out".into(),
        validity: Validity { not_before: now - 1000, not_after: now + 100_000 },
        predecessor: None,
        tcb_statuses: vec![TcbStatus::UpToDate],
    };
    Statement::new(FILES.map(subject).to_vec(), predicate).unwrap()
}
