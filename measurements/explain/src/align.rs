// SPDX-License-Identifier: Apache-2.0
//! Puts expected and logged events side by side.
//!
//! Digests decide what matches. Labels only decide which differing events are shown beside each other, so a
//! lying label can make the table odd, never a mismatch a match.

use event_log::{Event, Kind};
use types::Sha384Digest;

use crate::model::ModelEvent;

/// A logged event with what is compared.
#[derive(Debug, Clone)]
pub(crate) struct Logged<'a> {
    /// Position among the register's events.
    pub(crate) position: usize,
    pub(crate) event: &'a Event<'a>,
    pub(crate) digest: Sha384Digest,
    pub(crate) kind: Kind,
}

/// A row of the table. At least one side is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Index into the expected events.
    pub(crate) expected: Option<usize>,
    /// Index into the logged events.
    pub(crate) logged: Option<usize>,
}

/// Aligns two lists in order, with as many equal digests as can be, then as many equal kinds.
///
/// Time and memory are the product of the lengths: a log has at most 4,096 events, an expectation some twenty.
pub(crate) fn align(expected: &[&ModelEvent], logged: &[Logged<'_>]) -> Vec<Row> {
    let kinds: Vec<Kind> = expected.iter().map(|event| event.kind()).collect();
    let worth = |e: usize, l: usize| -> u32 {
        let (Some(event), Some(kind), Some(logged)) = (expected.get(e), kinds.get(e), logged.get(l)) else { return 0 };
        let alike = u32::from(*kind == logged.kind);
        match event.digest {
            Some(digest) if digest == logged.digest => EQUAL + alike,
            _ => alike,
        }
    };
    let width = logged.len() + 1;
    // best[e * width + l]: worth of the best alignment of the lists from e and l on.
    let mut best = vec![0_u32; (expected.len() + 1) * width];
    let at = |best: &[u32], e: usize, l: usize| best.get(e * width + l).copied().unwrap_or(0);
    for e in (0..expected.len()).rev() {
        for l in (0..logged.len()).rev() {
            let pair = worth(e, l);
            let paired = if pair == 0 { 0 } else { pair + at(&best, e + 1, l + 1) };
            let value = paired.max(at(&best, e + 1, l)).max(at(&best, e, l + 1));
            if let Some(slot) = best.get_mut(e * width + l) {
                *slot = value;
            }
        }
    }
    let mut rows = Vec::new();
    let (mut e, mut l) = (0, 0);
    while e < expected.len() || l < logged.len() {
        let pair = worth(e, l);
        if pair > 0 && at(&best, e, l) == pair + at(&best, e + 1, l + 1) {
            rows.push(Row { expected: Some(e), logged: Some(l) });
            (e, l) = (e + 1, l + 1);
        } else if l < logged.len() && (e == expected.len() || at(&best, e, l) == at(&best, e, l + 1)) {
            rows.push(Row { expected: None, logged: Some(l) });
            l += 1;
        } else {
            rows.push(Row { expected: Some(e), logged: None });
            e += 1;
        }
    }
    rows
}

/// More than all kinds of a row can be worth.
const EQUAL: u32 = 64;

#[cfg(test)]
mod tests {
    use calculator::Dependency;
    use types::RegisterName;

    use super::*;

    fn expected(name: &'static str, depends_on: Dependency, digest: u8) -> ModelEvent {
        let digest = Some(Sha384Digest::from_bytes([digest; 48]));
        ModelEvent { register: RegisterName::Rtmr0, name, depends_on, digest }
    }

    #[test]
    fn digests_pair_first_kinds_second() {
        let model = [
            expected("separator", Dependency::FirmwareSource, 1),
            expected("ACPI loader", Dependency::QemuAndShape, 2),
            expected("ACPI RSDP", Dependency::QemuAndShape, 3),
        ];
        let event = Event { index: 1, event_type: 10, digests: vec![], data: &[] };
        let logged = |position, kind, digest: u8| Logged {
            position,
            event: &event,
            digest: Sha384Digest::from_bytes([digest; 48]),
            kind,
        };
        let rows = |list: &[Logged<'_>]| {
            let expected: Vec<_> = model.iter().collect();
            align(&expected, list).iter().map(|row| (row.expected, row.logged)).collect::<Vec<_>>()
        };
        let acpi = Kind::PlatformConfiguration;
        assert_eq!(
            rows(&[logged(0, Kind::Other, 1), logged(1, acpi.clone(), 9), logged(2, acpi.clone(), 3)]),
            [(Some(0), Some(0)), (Some(1), Some(1)), (Some(2), Some(2))]
        );
        assert_eq!(
            rows(&[logged(0, acpi.clone(), 3), logged(1, acpi, 9)]),
            [(Some(0), None), (Some(1), None), (Some(2), Some(0)), (None, Some(1))],
            "an equal digest is worth more than two equal kinds"
        );
        assert_eq!(rows(&[]), [(Some(0), None), (Some(1), None), (Some(2), None)]);
    }
}
