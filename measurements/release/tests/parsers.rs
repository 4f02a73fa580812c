// SPDX-License-Identifier: Apache-2.0
//! Readers of hostile bytes: they refuse or accept, they never panic, and what they accept has one spelling.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use proptest::prelude::*;
use release::log::{Checkpoint, LogKey, LogSigner, SignedCheckpoint, TilePath, note::Note};
use release::{Bundle, Statement, TrustPolicy};
use types::Sha256Digest;

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Bundle::from_json(&bytes);
        let _ = Statement::parse(&bytes);
        let _ = TrustPolicy::parse(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Note::parse(&text);
        let _ = text.parse::<LogKey>();
        for size in [1, 3, 256] {
            let path = TilePath::entries(0, size).unwrap();
            let _ = path.split_entries(&bytes);
            let _ = path.cut_from_full(&bytes);
        }
    }

    #[test]
    fn tile_names_have_one_spelling(text in "(tile/)?(entries|[0-9]{1,2})/[x0-9/.p+]{0,24}") {
        if let Ok(path) = text.parse::<TilePath>() {
            prop_assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn a_changed_checkpoint_never_verifies_as_another_head(at in 0usize..200, byte in any::<u8>(), size in any::<u32>()) {
        let signer = LogSigner::new("example.invalid/log", &[1; 32]).unwrap();
        let head = Checkpoint::new("example.invalid/log", size.into(), Sha256Digest::of(b"root"));
        let mut note = head.sign(&signer).unwrap().into_bytes();
        let at = at % note.len();
        note[at] = byte;
        if let Ok(text) = String::from_utf8(note)
            && let Ok(verified) = SignedCheckpoint::verify(&text, signer.public())
        {
            prop_assert_eq!(verified.head(), &head);
        }
    }
}
