// SPDX-License-Identifier: Apache-2.0
//! The crypto-agile log format that CCEL and TCG2 share.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, section 10.2 (`TCG_PCR_EVENT`, `TCG_PCR_EVENT2`,
//! `TCG_EfiSpecIDEvent`); UEFI Specification 2.10 section 38.4 for CCEL, where the register index takes the
//! place of the PCR index.

use tdx_spec::{Cursor, ReadError};
use types::Sha384Digest;

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a> {
    /// The events behind the header, in order.
    pub events: Vec<Event<'a>>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// PCR (TCG2) or measurement register (CCEL).
    pub index: u32,
    /// Type, as the firmware says it.
    pub event_type: u32,
    /// Digests by algorithm identifier.
    pub digests: Vec<(u16, &'a [u8])>,
    /// What the firmware says was measured. Not covered by any digest unless hashed and compared.
    pub data: &'a [u8],
}

/// Why bytes are no event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// More than [`MAX_LOG_LEN`] bytes.
    #[error("an event log has at most {MAX_LOG_LEN} bytes, found {0}")]
    TooLarge(usize),
    /// More than 4,096 events.
    #[error("an event log has at most {MAX_EVENTS} events")]
    TooManyEvents,
    /// Truncated.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The first event is no `TCG_EfiSpecIDEvent`.
    #[error("the log's header is wrong: {0}")]
    Header(&'static str),
    /// An event has a digest of an algorithm that the header does not list.
    #[error("the event at offset {offset} has a digest of the unlisted algorithm {algorithm:#06x}")]
    Algorithm {
        /// Where the event begins.
        offset: usize,
        /// Its algorithm identifier.
        algorithm: u16,
    },
    /// An event has not exactly one digest of each algorithm.
    #[error("the event at offset {offset} must have one digest of each of the log's {expected} algorithms")]
    Digests {
        /// Where the event begins.
        offset: usize,
        /// How many algorithms the header lists.
        expected: usize,
    },
}

impl<'a> EventLog<'a> {
    /// Reads a log. Unused space behind the last event must be all ones or all zeros.
    ///
    /// # Errors
    /// [`LogError`] names the rule and the offset.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_LOG_LEN {
            return Err(LogError::TooLarge(bytes.len()));
        }
        let mut cursor = Cursor::new(bytes);
        let algorithms = read_header(&mut cursor)?;
        let mut events = Vec::new();
        while !is_unused(cursor.rest()) {
            if events.len() == MAX_EVENTS {
                return Err(LogError::TooManyEvents);
            }
            events.push(Event::read(&mut cursor, &algorithms)?);
        }
        Ok(Self { events })
    }
}

impl<'a> Event<'a> {
    /// The digest that was extended into a TDX register; `None` when the log has no SHA-384.
    #[must_use]
    pub fn sha384(&self) -> Option<Sha384Digest> {
        let (_, digest) = self.digests.iter().find(|(algorithm, _)| *algorithm == ALG_SHA384)?;
        Sha384Digest::from_slice(digest).ok()
    }

    /// True when the event was extended into its register; an `EV_NO_ACTION` is only a note.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.event_type != EV_NO_ACTION
    }

    fn read(cursor: &mut Cursor<'a>, algorithms: &[(u16, usize)]) -> Result<Self, LogError> {
        let offset = cursor.offset();
        let index = cursor.u32("register index")?;
        let event_type = cursor.u32("event type")?;
        let count = cursor.u32("number of digests")?;
        if usize::try_from(count) != Ok(algorithms.len()) {
            return Err(LogError::Digests { offset, expected: algorithms.len() });
        }
        let mut digests: Vec<(u16, &[u8])> = Vec::with_capacity(algorithms.len());
        for _ in 0..count {
            let algorithm = cursor.u16("digest algorithm")?;
            let Some((_, len)) = algorithms.iter().find(|(listed, _)| *listed == algorithm) else {
                return Err(LogError::Algorithm { offset, algorithm });
            };
            if digests.iter().any(|(seen, _)| *seen == algorithm) {
                return Err(LogError::Digests { offset, expected: algorithms.len() });
            }
            digests.push((algorithm, cursor.slice("digest", *len)?));
        }
        let data_len = cursor.u32("event size")?;
        let data = cursor.slice("event", usize::try_from(data_len).unwrap_or(usize::MAX))?;
        Ok(Self { index, event_type, digests, data })
    }
}

/// Reads the `TCG_PCR_EVENT` that holds the `TCG_EfiSpecIDEvent`; gives each algorithm with its digest's size.
fn read_header(cursor: &mut Cursor<'_>) -> Result<Vec<(u16, usize)>, LogError> {
    cursor.skip("register index", 4)?;
    if cursor.u32("event type")? != EV_NO_ACTION {
        return Err(LogError::Header("the first event must be EV_NO_ACTION"));
    }
    cursor.skip("SHA-1 digest", 20)?;
    let len = cursor.u32("event size")?;
    let event = cursor.slice("specification identifier", usize::try_from(len).unwrap_or(usize::MAX))?;
    let mut event = Cursor::new(event);
    if event.array::<16>("signature")? != *b"Spec ID Event03\0" {
        return Err(LogError::Header("the signature must be Spec ID Event03"));
    }
    event.skip("platform class, version, errata and word size", 8)?;
    let count = event.u32("number of algorithms")?;
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(LogError::Header("there must be 1 to 8 algorithms"));
    }
    let mut algorithms: Vec<(u16, usize)> = Vec::new();
    for _ in 0..count {
        let algorithm = event.u16("algorithm")?;
        let size = usize::from(event.u16("digest size")?);
        if algorithms.iter().any(|(seen, _)| *seen == algorithm) {
            return Err(LogError::Header("an algorithm is listed twice"));
        }
        if !(1..=MAX_DIGEST).contains(&size) || (algorithm == ALG_SHA384 && size != Sha384Digest::LEN) {
            return Err(LogError::Header("a digest has an impossible size"));
        }
        algorithms.push((algorithm, size));
    }
    let vendor = usize::from(event.u8("vendor information size")?);
    event.skip("vendor information", vendor)?;
    event.finish()?;
    Ok(algorithms)
}

/// True for the unused space behind the last event.
fn is_unused(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0xff) || rest.iter().all(|byte| *byte == 0)
}

/// A name for an event type, for people.
///
/// Source: TCG PC Client Platform Firmware Profile 1.05, section 10.4.1, table 27.
#[must_use]
pub const fn event_type_name(event_type: u32) -> &'static str {
    match event_type {
        0x1 => "EV_POST_CODE",
        EV_NO_ACTION => "EV_NO_ACTION",
        0x4 => "EV_SEPARATOR",
        0x5 => "EV_ACTION",
        0x6 => "EV_EVENT_TAG",
        0x7 => "EV_S_CRTM_CONTENTS",
        0x8 => "EV_S_CRTM_VERSION",
        0xa => "EV_PLATFORM_CONFIG_FLAGS",
        0xd => "EV_IPL",
        0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
        0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
        0x8000_0003 => "EV_EFI_BOOT_SERVICES_APPLICATION",
        0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
        0x8000_0006 => "EV_EFI_GPT_EVENT",
        0x8000_0007 => "EV_EFI_ACTION",
        0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
        0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
        0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
        0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
        _ => "other",
    }
}

/// `TPM_ALG_SHA256`.
pub const ALG_SHA256: u16 = 0xb;
/// `TPM_ALG_SHA384`.
pub const ALG_SHA384: u16 = 0xc;
/// Most bytes of a log.
pub const MAX_LOG_LEN: usize = 1 << 20;

const MAX_EVENTS: usize = 4096;
const MAX_ALGORITHMS: u32 = 8;
const MAX_DIGEST: usize = 64;
const EV_NO_ACTION: u32 = 3;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A log with the header of OVMF (SHA-384 only) and the given events (index, type, digest byte, data).
    pub(crate) fn log(events: &[(u32, u32, u8, &[u8])]) -> Vec<u8> {
        let mut out = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20]].concat();
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0]);
        out.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
        out.extend(spec);
        for (index, event_type, digest, data) in events {
            out.extend(index.to_le_bytes());
            out.extend(event_type.to_le_bytes());
            out.extend([1, 0, 0, 0, 0xc, 0]);
            out.extend([*digest; 48]);
            out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            out.extend(*data);
        }
        out
    }

    #[test]
    fn events_are_read_up_to_the_unused_space() {
        let mut bytes = log(&[(1, 4, 7, &[0; 4]), (2, 0x8000_0007, 8, b"action")]);
        bytes.extend([0xff; 100]);
        let log = EventLog::parse(&bytes).unwrap();
        assert_eq!(log.events.len(), 2);
        assert_eq!(log.events[1].sha384(), Some(Sha384Digest::from_bytes([8; 48])));
        assert_eq!(log.events[1].data, b"action");
        bytes.push(0);
        assert!(EventLog::parse(&bytes).is_err(), "unused space must be uniform");
    }

    #[test]
    fn headers_and_digests_must_agree() {
        let good = log(&[(1, 4, 7, &[])]);
        let event = good.len() - 4 - 48 - 14;
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            EventLog::parse(&bytes).map(|log| log.events.len())
        };
        assert!(matches!(with(4, 4), Err(LogError::Header(_))));
        assert!(matches!(with(32, b's'), Err(LogError::Header(_))));
        assert!(matches!(with(32 + 24, 0), Err(LogError::Header(_))));
        assert!(matches!(with(32 + 30, 32), Err(LogError::Header(_))));
        assert_eq!(with(event + 8, 2), Err(LogError::Digests { offset: event, expected: 1 }));
        assert_eq!(with(event + 12, 0xb), Err(LogError::Algorithm { offset: event, algorithm: 0xb }));
    }

    #[test]
    fn no_truncation_is_accepted_within_an_event() {
        let bytes = log(&[(1, 4, 7, &[1; 4]), (2, 4, 8, &[1; 4])]);
        let ends = [bytes.len() - 70 * 2, bytes.len() - 70, bytes.len()];
        for len in 0..bytes.len() {
            assert_eq!(EventLog::parse(&bytes[..len]).is_ok(), ends.contains(&len), "{len}");
        }
        assert!(matches!(EventLog::parse(&vec![0; MAX_LOG_LEN + 1]), Err(LogError::TooLarge(_))));
    }
}
