// SPDX-License-Identifier: Apache-2.0
//! The list of RTMR3 events: which it must be, at which moment.

use types::{EventName, RuntimeEvent};

/// Why a list of RTMR3 events is not the one that it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventOrderError {
    /// An event stands where another one must stand: reordered, doubled or left out.
    #[error("event {position} of RTMR3 must be {expected}, found {found}")]
    Unexpected {
        /// Position in the list, from 0.
        position: usize,
        /// What must stand there.
        expected: EventName,
        /// What stands there.
        found: EventName,
    },
    /// The list ends before the moment was reached.
    #[error("the events of RTMR3 end before {expected}")]
    Missing {
        /// The next event.
        expected: EventName,
    },
    /// The list goes on after the moment.
    #[error("the events of RTMR3 must end with {last}, found {found} after it")]
    Beyond {
        /// The last event of the moment.
        last: EventName,
        /// What follows.
        found: EventName,
    },
}

/// Checks that `events` are exactly the boot's events up to and including `last`, in order.
///
/// Payloads are not judged here: they are functions of the evidence, which the caller recomputes.
///
/// # Errors
/// [`EventOrderError`] names the first position that differs.
pub fn check_order(events: &[RuntimeEvent], last: EventName) -> Result<(), EventOrderError> {
    let mut found = events.iter();
    for (position, expected) in EventName::ALL.into_iter().enumerate() {
        match found.next() {
            None => return Err(EventOrderError::Missing { expected }),
            Some(event) if event.name != expected => {
                return Err(EventOrderError::Unexpected { position, expected, found: event.name });
            }
            Some(_) if expected == last => break,
            Some(_) => {}
        }
    }
    match found.next() {
        None => Ok(()),
        Some(event) => Err(EventOrderError::Beyond { last, found: event.name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(names: &[EventName]) -> Vec<RuntimeEvent> {
        names.iter().map(|name| RuntimeEvent::new(*name, b"").unwrap()).collect()
    }

    #[test]
    fn only_the_exact_list_passes() {
        let upto_gpu = &EventName::ALL[..7];
        assert_eq!(check_order(&events(upto_gpu), EventName::Gpu), Ok(()));
        assert_eq!(check_order(&events(&EventName::ALL), EventName::Serve), Ok(()));
        assert_eq!(
            check_order(&events(&upto_gpu[..6]), EventName::Gpu),
            Err(EventOrderError::Missing { expected: EventName::Gpu })
        );
        assert_eq!(
            check_order(&events(&EventName::ALL[..8]), EventName::Gpu),
            Err(EventOrderError::Beyond { last: EventName::Gpu, found: EventName::Keys })
        );
        let mut swapped = upto_gpu.to_vec();
        swapped.swap(1, 2);
        assert_eq!(
            check_order(&events(&swapped), EventName::Gpu),
            Err(EventOrderError::Unexpected {
                position: 1,
                expected: EventName::Entropy,
                found: EventName::Configuration
            })
        );
        let mut doubled = upto_gpu.to_vec();
        doubled.insert(6, EventName::Time);
        assert!(matches!(
            check_order(&events(&doubled), EventName::Gpu),
            Err(EventOrderError::Unexpected { position: 6, .. })
        ));
    }
}
