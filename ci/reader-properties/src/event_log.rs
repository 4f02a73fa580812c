// SPDX-License-Identifier: Apache-2.0
//! Event logs: read without loss, and replayed as the definition says.

use event_log::{EventLog, Indexing, MAX_LABEL, replay};
use sha2::{Digest as _, Sha384};

use crate::u32_at;

/// CCEL and TCG2 logs and their replay.
pub fn event_log(bytes: &[u8]) -> bool {
    let Ok(log) = EventLog::parse(bytes) else { return false };
    let rewritten = rewrite(bytes, &log);
    let unused = bytes.strip_prefix(rewritten.as_slice());
    let uniform = |byte: u8| unused.is_some_and(|unused| unused.iter().all(|b| *b == byte));
    assert!(uniform(0) || uniform(0xff), "a log must be read without loss up to its unused space");
    for indexing in [Indexing::MeasurementRegister, Indexing::Pcr] {
        let replayed = replay(&log, indexing).ok().map(|rtmrs| rtmrs.0.map(|digest| *digest.as_bytes()));
        assert_eq!(replayed, by_definition(&log, indexing), "replay differs from the definition");
    }
    for event in &log.events {
        let text = event.label().text;
        assert!(text.len() <= MAX_LABEL && text.bytes().all(|b| (0x20..0x7f).contains(&b)), "a label of raw data");
        let _ = (event.binding(), event.command_line());
    }
    true
}

/// The header as it stands, and the events written again.
fn rewrite(bytes: &[u8], log: &EventLog<'_>) -> Vec<u8> {
    // TCG_PCR_EVENT: 28 bytes, length, the specification identifier.
    let header_len = u32_at(bytes, 28).and_then(|len| len.checked_add(32));
    let mut out = header_len.and_then(|len| bytes.get(..len)).unwrap_or_default().to_vec();
    let number = |out: &mut Vec<u8>, n: usize| out.extend(u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    for event in &log.events {
        out.extend(event.index.to_le_bytes());
        out.extend(event.event_type.to_le_bytes());
        number(&mut out, event.digests.len());
        for (algorithm, digest) in &event.digests {
            out.extend(algorithm.to_le_bytes());
            out.extend(*digest);
        }
        number(&mut out, event.data.len());
        out.extend(event.data);
    }
    out
}

/// UEFI Specification 2.10 section 38.4.1, with plain vectors; `None` where a log cannot be replayed.
fn by_definition(log: &EventLog<'_>, indexing: Indexing) -> Option<[[u8; 48]; 4]> {
    let mut registers = [[0_u8; 48]; 4];
    for event in log.events.iter().filter(|event| event.event_type != 3) {
        let register = match (indexing, event.index) {
            (Indexing::MeasurementRegister, n @ 1..=4) => n - 1,
            (Indexing::Pcr, 1 | 7) => 0,
            (Indexing::Pcr, 2..=6) => 1,
            (Indexing::Pcr, 8..=15) => 2,
            _ => return None,
        };
        let (_, digest) = event.digests.iter().find(|(algorithm, _)| *algorithm == 0xc)?;
        let value = registers.get_mut(usize::try_from(register).ok()?)?;
        *value = Sha384::digest([value.as_slice(), digest].concat()).into();
    }
    Some(registers)
}
