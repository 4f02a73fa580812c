// SPDX-License-Identifier: Apache-2.0
//! The RTMR3 events of a boot as a function of the evidence: init extends them, verifiers expect them.

use types::{
    CanonicalError, EventName, GpuEvidence, Hex32, ModelId, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState,
    canonical,
};

use crate::binding::gpu_digest;

/// How far a boot has come when a quote is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After the GPU phase, before any key: the only moment at which a key is released.
    KeyRelease,
    /// The guest serves.
    Serving,
}

/// The facts that events carry.
#[derive(Debug, Clone)]
pub struct BootFacts<'a> {
    /// SHA-384 of the configuration's bytes.
    pub config: Sha384Digest,
    /// What the guest knows of the time.
    pub time: &'a TimeState,
    /// GPU evidence of the boot.
    pub gpu: &'a GpuEvidence,
    /// The model of the configuration.
    pub model: &'a ModelId,
    /// SHA-256 of the SPKI of the TLS key that the guest began to serve with.
    pub spki_sha256: Sha256Digest,
    /// The key that signs receipts.
    pub instance_key: Hex32,
}

impl BootFacts<'_> {
    /// The event of one phase.
    ///
    /// # Errors
    /// [`CanonicalError`] when a number in time or GPU evidence is out of range.
    pub fn event(&self, name: EventName) -> Result<RuntimeEvent, CanonicalError> {
        let payload: Vec<u8> = match name {
            EventName::Mounts
            | EventName::Entropy
            | EventName::Lockdown
            | EventName::Network
            | EventName::KeysClosed => Vec::new(),
            EventName::Configuration => self.config.as_bytes().to_vec(),
            EventName::Time => Sha256Digest::of(&canonical::to_bytes(self.time)?).as_bytes().to_vec(),
            EventName::Gpu => gpu_digest(self.gpu)?.as_bytes().to_vec(),
            EventName::Keys | EventName::Model => self.model.identity().as_bytes().to_vec(),
            EventName::Serve => [self.spki_sha256.as_bytes().as_slice(), self.instance_key.as_bytes()].concat(),
        };
        RuntimeEvent::new(name, &payload)
            .ok_or(CanonicalError::TooLarge { max: types::event::MAX_PAYLOAD, found: payload.len() })
    }
}

/// The exact events that RTMR3 must hold at `moment`, in order.
///
/// # Errors
/// As [`BootFacts::event`].
pub fn expected_events(facts: &BootFacts<'_>, moment: Moment) -> Result<Vec<RuntimeEvent>, CanonicalError> {
    let last = match moment {
        Moment::KeyRelease => EventName::Gpu,
        Moment::Serving => EventName::Serve,
    };
    EventName::ALL.iter().filter(|name| name.number() <= last.number()).map(|name| facts.event(*name)).collect()
}
