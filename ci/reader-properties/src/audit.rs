// SPDX-License-Identifier: Apache-2.0
//! Entries of the audit log: the bytes as they are, and the canonical form of any JSON.

use store::AuditEntry;

use crate::document::canonical_form;

/// An entry that is accepted has one spelling, and one that could be written is read.
pub fn audit(bytes: &[u8]) -> bool {
    let accepted = entry(bytes);
    canonical_form(bytes).map_or(accepted, |canonical| accepted | entry(&canonical))
}

fn entry(bytes: &[u8]) -> bool {
    let Ok(entry) = AuditEntry::parse(bytes) else { return false };
    assert!(bytes.len() <= 8192, "an entry that is too large was accepted");
    assert_eq!(entry.to_bytes().expect("what was read can be written"), bytes, "one spelling");
    let code = |code: &String| {
        let form = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        (1..=64).contains(&code.len()) && code.bytes().all(form)
    };
    match entry {
        AuditEntry::KeyRelease(entry) => assert!(entry.key_version > 0),
        AuditEntry::Owner(entry) => assert!(entry.sequence > 0),
        AuditEntry::Refusal(entry) => assert!((1..=64).contains(&entry.codes.len()) && entry.codes.iter().all(code)),
        AuditEntry::Operator(entry) => {
            assert!(entry.number > 0 && (1..=256).contains(&entry.subject.chars().count()));
        }
        AuditEntry::Refusals(entry) => {
            assert!(entry.refusals > 0 && entry.from <= entry.until);
            assert!((1..=64).contains(&entry.codes.len()) && entry.codes.keys().all(code));
            assert!(entry.codes.values().all(|count| *count > 0));
        }
    }
    true
}
