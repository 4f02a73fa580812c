// SPDX-License-Identifier: Apache-2.0
//! The named events that init extends into RTMR3, one per boot phase, in order.

use serde::{Deserialize, Serialize};

use crate::{Base64, Sha384Digest};

/// A boot phase that leaves an event in RTMR3. An unknown name is refused when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// Pseudo file systems are mounted.
    Mounts,
    /// The kernel's generator was seeded by RDSEED.
    Entropy,
    /// The configuration was read and its hash equals MRCONFIGID. Payload: that SHA-384.
    Configuration,
    /// Kernel interfaces are closed.
    Lockdown,
    /// The interface has its static address.
    Network,
    /// Time floor and attested time are known. Payload: SHA-256 of the canonical time state.
    Time,
    /// GPU evidence was collected. Payload: the GPU digest. Key release happens right after this event.
    Gpu,
    /// A model key was received. Payload: identity of the model.
    Keys,
    /// No further key will be asked for; key release refuses a quote that has this event.
    KeysClosed,
    /// The model was decrypted and verified. Payload: its identity.
    Model,
    /// The API serves. Payload: SHA-256 of the first TLS key's SPKI, then the instance key. Later TLS keys stand in REPORTDATA
    /// alone.
    Serve,
}

impl EventName {
    /// All events of a complete boot, in order.
    pub const ALL: [Self; 11] = [
        Self::Mounts,
        Self::Entropy,
        Self::Configuration,
        Self::Lockdown,
        Self::Network,
        Self::Time,
        Self::Gpu,
        Self::Keys,
        Self::KeysClosed,
        Self::Model,
        Self::Serve,
    ];

    /// The name as it is measured.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::Entropy => "entropy",
            Self::Configuration => "configuration",
            Self::Lockdown => "lockdown",
            Self::Network => "network",
            Self::Time => "time",
            Self::Gpu => "gpu",
            Self::Keys => "keys",
            Self::KeysClosed => "keys-closed",
            Self::Model => "model",
            Self::Serve => "serve",
        }
    }

    /// Number of the phase on the wire and in numeric lines: 1 for `mounts`, counting up. Never reused.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Mounts => 1,
            Self::Entropy => 2,
            Self::Configuration => 3,
            Self::Lockdown => 4,
            Self::Network => 5,
            Self::Time => 6,
            Self::Gpu => 7,
            Self::Keys => 8,
            Self::KeysClosed => 9,
            Self::Model => 10,
            Self::Serve => 11,
        }
    }
}

impl core::fmt::Display for EventName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Most bytes of an event's payload.
pub const MAX_PAYLOAD: usize = 128;

/// One event of RTMR3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeEvent {
    /// Which phase.
    pub name: EventName,
    /// What it says, a function of the evidence. May be empty.
    pub payload: Base64<MAX_PAYLOAD>,
}

impl RuntimeEvent {
    /// Makes an event; `None` when the payload has more than [`MAX_PAYLOAD`] bytes.
    #[must_use]
    pub fn new(name: EventName, payload: &[u8]) -> Option<Self> {
        Base64::new(payload.to_vec()).map(|payload| Self { name, payload })
    }

    /// The digest that is extended into RTMR3:
    /// SHA-384("chrysalis/rtmr3/v1" ‖ name length u16 ‖ name ‖ payload length u32 ‖ payload), big-endian.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "names and payloads are capped far below the types' ranges")]
    pub fn digest(&self) -> Sha384Digest {
        let name = self.name.as_str().as_bytes();
        let payload = self.payload.as_slice();
        Sha384Digest::of_parts(&[
            b"chrysalis/rtmr3/v1",
            &(name.len() as u16).to_be_bytes(),
            name,
            &(payload.len() as u32).to_be_bytes(),
            payload,
        ])
    }
}

/// The value of RTMR3 after `events`, from zero.
#[must_use]
pub fn replay(events: &[RuntimeEvent]) -> Sha384Digest {
    events.iter().fold(Sha384Digest::ZERO, |register, event| register.extend(&event.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_duplication_and_omission_change_the_register() {
        let all: Vec<_> = EventName::ALL.iter().map(|name| RuntimeEvent::new(*name, b"p").unwrap()).collect();
        let expected = replay(&all);
        let mut swapped = all.clone();
        swapped.swap(2, 3);
        let mut doubled = all.clone();
        doubled.insert(4, doubled[4].clone());
        for other in [swapped, doubled, all[1..].to_vec()] {
            assert_ne!(replay(&other), expected);
        }
    }

    #[test]
    fn numbers_follow_the_order_and_names_match_serde() {
        for (index, name) in EventName::ALL.iter().enumerate() {
            assert_eq!(usize::from(name.number()), index + 1);
            assert_eq!(serde_json::to_string(name).unwrap(), format!("\"{name}\""));
        }
    }
}
