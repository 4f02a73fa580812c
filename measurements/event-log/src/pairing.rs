// SPDX-License-Identifier: Apache-2.0
//! A log beside a quote: which registers the log accounts for.

use types::{RegisterName, Registers, RuntimeEvent, Sha384Digest};

use crate::{
    replay::{Indexing, ReplayError, register_of},
    tcg::EventLog,
};

/// How a log and a quoted register fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The log's events for the register lead to the quoted value.
    Match,
    /// The quoted value is reached after the first `events` of the log's events for this register: the quote
    /// is older than the rest.
    Prefix {
        /// How many of the register's events the quoted value holds.
        events: usize,
    },
    /// No prefix of the log leads to the quoted value: the log is of another boot, or was changed.
    Mismatch,
    /// The log has no event for this register. With a quoted value of zero nothing was extended.
    NotInLog,
}

/// One run-time register of the quote, with what the log says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairing {
    /// The register.
    pub register: RegisterName,
    /// The value in the quote.
    pub quoted: Sha384Digest,
    /// The value after all of the log's events.
    pub replayed: Sha384Digest,
    /// Positions in the log of the events that were extended into this register, in order.
    pub positions: Vec<usize>,
    /// How the two fit.
    pub agreement: Agreement,
}

/// Pairs a log with the registers of a quote, in one pass over the log.
///
/// A match says that the log's *digests* are those that were extended, in this order. It does not say that the
/// quote is authentic, nor that an event's data is what was measured.
///
/// # Errors
/// [`ReplayError`] names the event.
pub fn pair(log: &EventLog<'_>, indexing: Indexing, quoted: &Registers) -> Result<[Pairing; 4], ReplayError> {
    let mut pairings = RUN_TIME.map(|register| Pairing::new(register, *quoted.value(register)));
    for (position, event) in log.events.iter().enumerate().filter(|(_, event)| event.is_extended()) {
        let outside = ReplayError::Index { event: position, index: event.index };
        let register = register_of(event, indexing).ok_or(outside)?;
        let digest = event.sha384().ok_or(ReplayError::NoSha384 { event: position })?;
        let pairing = pairings.iter_mut().find(|pairing| pairing.register == register).ok_or(outside)?;
        pairing.extend(position, &digest);
    }
    pairings.iter_mut().for_each(Pairing::conclude);
    Ok(pairings)
}

/// Pairs the list of RTMR3 events that a guest claims with the quoted register.
#[must_use]
pub fn pair_runtime(events: &[RuntimeEvent], quoted: &Registers) -> Pairing {
    let mut pairing = Pairing::new(RegisterName::Rtmr3, quoted.rtmr_3);
    for (position, event) in events.iter().enumerate() {
        pairing.extend(position, &event.digest());
    }
    pairing.conclude();
    pairing
}

impl Pairing {
    fn new(register: RegisterName, quoted: Sha384Digest) -> Self {
        let replayed = Sha384Digest::ZERO;
        // The value before any event is a prefix, too.
        let agreement = if quoted == replayed { Agreement::Prefix { events: 0 } } else { Agreement::Mismatch };
        Self { register, quoted, replayed, positions: Vec::new(), agreement }
    }

    fn extend(&mut self, position: usize, digest: &Sha384Digest) {
        self.replayed = self.replayed.extend(digest);
        self.positions.push(position);
        if self.replayed == self.quoted {
            self.agreement = Agreement::Prefix { events: self.positions.len() };
        }
    }

    fn conclude(&mut self) {
        if self.positions.is_empty() {
            self.agreement = Agreement::NotInLog;
        } else if self.replayed == self.quoted {
            self.agreement = Agreement::Match;
        }
    }
}

/// The run-time registers, in order.
pub const RUN_TIME: [RegisterName; 4] =
    [RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2, RegisterName::Rtmr3];

#[cfg(test)]
mod tests {
    use types::EventName;

    use super::*;
    use crate::tcg::tests::log;

    fn registers(rtmr_0: Sha384Digest, rtmr_3: Sha384Digest) -> Registers {
        let zero = Sha384Digest::ZERO;
        Registers {
            mr_td: zero,
            rtmr_0,
            rtmr_1: zero,
            rtmr_2: zero,
            rtmr_3,
            mr_config_id: zero,
            mr_owner: zero,
            mr_owner_config: zero,
        }
    }

    #[test]
    fn each_register_says_how_it_fits() {
        let bytes = log(&[(1, 4, 1, &[]), (2, 4, 2, &[]), (0, 3, 9, &[]), (1, 4, 3, &[]), (3, 4, 5, &[])]);
        let log = EventLog::parse(&bytes).unwrap();
        let digest = |byte| Sha384Digest::from_bytes([byte; 48]);
        let first = Sha384Digest::ZERO.extend(&digest(1));
        let both = first.extend(&digest(3));
        let of = |rtmr_0| {
            let [zero, one, two, three] =
                pair(&log, Indexing::MeasurementRegister, &registers(rtmr_0, Sha384Digest::ZERO)).unwrap();
            assert_eq!(zero.positions, [0, 3]);
            assert_eq!(zero.replayed, both);
            assert_eq!(one.agreement, Agreement::Prefix { events: 0 });
            assert_eq!(two.agreement, Agreement::Prefix { events: 0 });
            assert_eq!(three.agreement, Agreement::NotInLog);
            zero.agreement
        };
        assert_eq!(of(both), Agreement::Match);
        assert_eq!(of(first), Agreement::Prefix { events: 1 });
        assert_eq!(of(digest(7)), Agreement::Mismatch);
    }

    #[test]
    fn runtime_events_are_paired_alike() {
        let events: Vec<_> = EventName::ALL[..4].iter().map(|name| RuntimeEvent::new(*name, b"p").unwrap()).collect();
        let quote = |n: usize| registers(Sha384Digest::ZERO, types::event::replay(&events[..n]));
        assert_eq!(pair_runtime(&events, &quote(4)).agreement, Agreement::Match);
        assert_eq!(pair_runtime(&events, &quote(2)).agreement, Agreement::Prefix { events: 2 });
        let mut swapped = events.clone();
        swapped.swap(0, 1);
        assert_eq!(pair_runtime(&swapped, &quote(4)).agreement, Agreement::Mismatch);
        assert_eq!(pair_runtime(&[], &quote(4)).agreement, Agreement::NotInLog);
    }
}
