// SPDX-License-Identifier: Apache-2.0
//! What is changed, and not by a program that does not know the tables.

use store::{DatabaseError, OwnerChange, OwnerError, PolicyError, RedeemError};
use types::{Hex32, Sha256Digest};

use super::place::{NOW, Place, model};

/// A program that runs on while another one brings the tables up to date does not know what they mean.
pub(crate) fn tables_of_a_newer_program_stop_an_older_one(place: &Place) {
    let store = place.made();
    store.register_owner(&model("m"), &Hex32::new([1; 32])).unwrap();
    let token = |name: &[u8]| store.redeem(&Sha256Digest::of(name), NOW + 60, NOW).map(drop);
    token(b"first").unwrap();
    let known: i64 = match store.owner(model("m").identity()) {
        Ok(_) => {
            place.set_version(99);
            match store.owner(model("m").identity()) {
                Err(DatabaseError::Version { found: 99, known }) => known,
                other => panic!("{other:?}"),
            }
        }
        Err(error) => panic!("{error}"),
    };
    assert!(matches!(token(b"second"), Err(RedeemError::Batch(text)) if text.contains("99")));
    let newer = |error: &DatabaseError| matches!(error, DatabaseError::Version { found: 99, .. });
    assert!(matches!(store.set_policy("p", b"{}"), Err(PolicyError::Database(error)) if newer(&error)));
    assert!(matches!(store.revoke_release(&Sha256Digest::of(b"r")), Err(error) if newer(&error)));
    let command = store.command_of_owner(&model("m"), 1, &OwnerChange::Policy(b"{}".to_vec()));
    assert!(matches!(command, Err(OwnerError::Database(error)) if newer(&error)));
    place.set_version(known);
    assert_eq!(store.policies().unwrap(), Vec::<String>::new());
    assert!(!store.is_release_revoked(&Sha256Digest::of(b"r")).unwrap());
    token(b"second").unwrap();
    store.command_of_owner(&model("m"), 1, &OwnerChange::Policy(b"{}".to_vec())).unwrap();
}
