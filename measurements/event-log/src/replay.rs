// SPDX-License-Identifier: Apache-2.0
//! From a log to the registers that it would produce.

use types::{RegisterName, Sha384Digest};

use crate::tcg::{Event, EventLog};

/// What the index of an event counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexing {
    /// CCEL: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3 (UEFI Specification 2.10, section 38.4.1).
    MeasurementRegister,
    /// TCG2: PCRs, which the same section maps to registers.
    Pcr,
}

/// The four run-time registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtmrs(pub [Sha384Digest; 4]);

/// Why a log cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// An event claims a register that software cannot extend.
    #[error("event {event} is for index {index}, which is no run-time register")]
    Index {
        /// Position of the event in the log.
        event: usize,
        /// Its index.
        index: u32,
    },
    /// An event has no SHA-384 digest.
    #[error("event {event} has no SHA-384 digest")]
    NoSha384 {
        /// Position of the event in the log.
        event: usize,
    },
}

/// Where two lists of digests first differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Position in the register's list, from 0.
    pub position: usize,
    /// What was expected there; `None` when the list should have ended.
    pub expected: Option<Sha384Digest>,
    /// What was found there; `None` when the list ended.
    pub found: Option<Sha384Digest>,
}

impl Rtmrs {
    /// The value of a run-time register; `None` for another register.
    #[must_use]
    pub fn value(&self, name: RegisterName) -> Option<&Sha384Digest> {
        let Self([rtmr_0, rtmr_1, rtmr_2, rtmr_3]) = self;
        match name {
            RegisterName::Rtmr0 => Some(rtmr_0),
            RegisterName::Rtmr1 => Some(rtmr_1),
            RegisterName::Rtmr2 => Some(rtmr_2),
            RegisterName::Rtmr3 => Some(rtmr_3),
            RegisterName::MrTd | RegisterName::MrConfigId | RegisterName::MrOwner | RegisterName::MrOwnerConfig => None,
        }
    }
}

/// Extends registers of zero with the log's events, in order.
///
/// # Errors
/// [`ReplayError`] names the event.
pub fn replay(log: &EventLog<'_>, indexing: Indexing) -> Result<Rtmrs, ReplayError> {
    let mut rtmrs = Rtmrs([Sha384Digest::ZERO; 4]);
    for (position, event) in log.events.iter().enumerate().filter(|(_, event)| event.is_extended()) {
        let outside = ReplayError::Index { event: position, index: event.index };
        let register = register_of(event, indexing).ok_or(outside)?;
        let digest = event.sha384().ok_or(ReplayError::NoSha384 { event: position })?;
        let Rtmrs([rtmr_0, rtmr_1, rtmr_2, rtmr_3]) = &mut rtmrs;
        let value = match register {
            RegisterName::Rtmr0 => rtmr_0,
            RegisterName::Rtmr1 => rtmr_1,
            RegisterName::Rtmr2 => rtmr_2,
            RegisterName::Rtmr3 => rtmr_3,
            RegisterName::MrTd | RegisterName::MrConfigId | RegisterName::MrOwner | RegisterName::MrOwnerConfig => {
                return Err(outside);
            }
        };
        *value = value.extend(&digest);
    }
    Ok(rtmrs)
}

/// The run-time register of an event; `None` when its index stands for none.
#[must_use]
pub const fn register_of(event: &Event<'_>, indexing: Indexing) -> Option<RegisterName> {
    match (indexing, event.index) {
        (Indexing::MeasurementRegister, 1) | (Indexing::Pcr, 1 | 7) => Some(RegisterName::Rtmr0),
        (Indexing::MeasurementRegister, 2) | (Indexing::Pcr, 2..=6) => Some(RegisterName::Rtmr1),
        (Indexing::MeasurementRegister, 3) | (Indexing::Pcr, 8..=15) => Some(RegisterName::Rtmr2),
        (Indexing::MeasurementRegister, 4) => Some(RegisterName::Rtmr3),
        _ => None,
    }
}

/// Compares what a register should have been extended with to what it was.
#[must_use]
pub fn first_difference(expected: &[Sha384Digest], found: &[Sha384Digest]) -> Option<Difference> {
    (0..expected.len().max(found.len()))
        .map(|position| Difference {
            position,
            expected: expected.get(position).copied(),
            found: found.get(position).copied(),
        })
        .find(|difference| difference.expected != difference.found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcg::tests::log;

    #[test]
    fn registers_follow_the_index() {
        let digest = |byte| Sha384Digest::from_bytes([byte; 48]);
        let bytes = log(&[(1, 4, 1, &[]), (2, 4, 2, &[]), (1, 4, 3, &[]), (4, 6, 4, &[]), (0, 3, 9, &[])]);
        let rtmrs = replay(&EventLog::parse(&bytes).unwrap(), Indexing::MeasurementRegister).unwrap();
        let zero = Sha384Digest::ZERO;
        let expected =
            [zero.extend(&digest(1)).extend(&digest(3)), zero.extend(&digest(2)), zero, zero.extend(&digest(4))];
        assert_eq!(rtmrs, Rtmrs(expected));
        assert_eq!(rtmrs.value(RegisterName::Rtmr3), Some(&expected[3]));
        assert_eq!(rtmrs.value(RegisterName::MrTd), None);
    }

    #[test]
    fn pcrs_map_to_registers() {
        let of = |index| {
            let event = Event { index, event_type: 4, digests: vec![], data: &[] };
            register_of(&event, Indexing::Pcr)
        };
        assert_eq!([of(1), of(7)], [Some(RegisterName::Rtmr0); 2]);
        assert_eq!([of(2), of(6)], [Some(RegisterName::Rtmr1); 2]);
        assert_eq!([of(8), of(15)], [Some(RegisterName::Rtmr2); 2]);
        assert_eq!([of(0), of(16)], [None; 2]);
    }

    #[test]
    fn events_for_other_registers_are_refused() {
        for index in [0, 5, u32::MAX] {
            let bytes = log(&[(1, 4, 1, &[]), (index, 4, 1, &[])]);
            let result = replay(&EventLog::parse(&bytes).unwrap(), Indexing::MeasurementRegister);
            assert_eq!(result, Err(ReplayError::Index { event: 1, index }));
        }
    }

    #[test]
    fn the_first_difference_is_found() {
        let digests: Vec<_> = (0..4).map(|byte| Sha384Digest::from_bytes([byte; 48])).collect();
        assert_eq!(first_difference(&digests, &digests), None);
        let short = first_difference(&digests, &digests[..3]).unwrap();
        assert_eq!((short.position, short.expected, short.found), (3, Some(digests[3]), None));
        let other = first_difference(&digests[1..], &digests).unwrap();
        assert_eq!((other.position, other.expected, other.found), (0, Some(digests[1]), Some(digests[0])));
    }
}
