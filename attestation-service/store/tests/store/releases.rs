// SPDX-License-Identifier: Apache-2.0
//! Imported releases: only what was verified, and nothing that was revoked.

use release::{Hardware, Validity, VerifiedRelease};
use store::ReleaseStoreError;
use types::{Device, MachineShape, QemuVersion, shape::ShapeFacts};

use super::place::{NOW, Place};

pub(crate) fn verified_releases_are_kept_by_digest_and_revoked_for_good(place: &Place) {
    let store = place.made();
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
    let qemu = QemuVersion { major: 10, minor: 1 };
    let shape = ShapeFacts { vcpus: 1, memory_mib: 1024, physical_bits: 46, qemu, devices: vec![Device::Vsock] };
    let mut statement = sample_release::statement(Hardware::Simulated, &[MachineShape::new(shape).unwrap()], NOW);
    statement.predicate.profile = profile.to_owned();
    statement.predicate.validity = Validity { not_before: NOW, not_after: NOW + 1 };
    let (bytes, policy) = sample_release::publish(&statement, NOW);
    let verified = VerifiedRelease::verify(&bytes, &policy, NOW).unwrap();
    (bytes, verified)
}
