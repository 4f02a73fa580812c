// SPDX-License-Identifier: Apache-2.0
//! The boot as the attester sees it: events in their order, one configuration, evidence for keys at one moment only.

use attested_channel::{Leaf, Tree};
use attester_protocol::{ControlAnswer, ControlRequest, Failure};
use tee::QuoteDevice;
use types::{Base64, EventName, Freshness, FreshnessKind, Hex32, RuntimeEvent};

use crate::{Keys, Renewal, batch::Batches, facts::Facts, serving::Serving};

/// State between start and the event `serve`.
pub(crate) struct Boot<D> {
    device: D,
    keys: Keys,
    events: Vec<RuntimeEvent>,
    facts: Option<Facts>,
    sealed: bool,
}

impl<D: QuoteDevice> Boot<D> {
    pub(crate) const fn new(device: D, keys: Keys) -> Self {
        Self { device, keys, events: Vec::new(), facts: None, sealed: false }
    }

    /// Whether the event `serve` has been extended.
    pub(crate) fn is_complete(&self) -> bool {
        self.moment() == Some(EventName::Serve)
    }

    pub(crate) fn answer(&mut self, request: ControlRequest) -> Result<ControlAnswer, Failure> {
        match request {
            ControlRequest::Extend { event } => self.extend(event),
            _ if self.sealed => Err(Failure::Sealed),
            ControlRequest::Report {} => Ok(ControlAnswer::Report {
                mr_config_id: self.device.mr_config_id().map_err(|_| Failure::Device)?,
                spki_sha256: self.keys.spki_sha256(),
                instance_key: self.keys.instance_key(),
            }),
            ControlRequest::Configure(configuration) => {
                if self.facts.is_some() {
                    return Err(Failure::AlreadyConfigured);
                }
                let measured = self.device.mr_config_id().map_err(|_| Failure::Device)?;
                let mut configuration = *configuration;
                if configuration.firmware_log.is_none() {
                    configuration.firmware_log = self.device.firmware_log().and_then(Base64::new);
                }
                self.facts = Some(Facts::new(configuration, &measured)?);
                Ok(ControlAnswer::Configured {})
            }
            ControlRequest::KeyReleaseEvidence { challenge, binding, hpke_key } => {
                self.key_release_evidence(challenge, binding, hpke_key)
            }
            ControlRequest::Seal {} => {
                self.sealed = true;
                Ok(ControlAnswer::Sealed {})
            }
        }
    }

    /// Hands device and keys to the serving part, with certificate and evidence made at this moment.
    pub(crate) fn into_serving(mut self, renewal: Renewal) -> Result<(Serving, Batches<D>), Failure> {
        let facts = self.facts.take().ok_or(Failure::NotConfigured)?;
        Serving::new(self.device, self.keys, facts, self.events, renewal)
    }

    fn moment(&self) -> Option<EventName> {
        self.events.last().map(|event| event.name)
    }

    fn extend(&mut self, event: RuntimeEvent) -> Result<ControlAnswer, Failure> {
        if EventName::ALL.get(self.events.len()) != Some(&event.name) {
            return Err(Failure::EventOrder);
        }
        if event.name == EventName::KeysClosed && !self.sealed {
            return Err(Failure::NotSealed);
        }
        if event.name == EventName::Serve && self.facts.is_none() {
            return Err(Failure::NotConfigured);
        }
        self.device.extend_rtmr3(&event.digest()).map_err(|_| Failure::Device)?;
        self.events.push(event);
        Ok(ControlAnswer::Extended {})
    }

    fn key_release_evidence(
        &mut self,
        challenge: Hex32,
        binding: Hex32,
        hpke_key: Hex32,
    ) -> Result<ControlAnswer, Failure> {
        if self.moment() != Some(EventName::Gpu) {
            return Err(Failure::NotKeyRelease);
        }
        let facts = self.facts.as_ref().ok_or(Failure::NotConfigured)?;
        let mut inputs = facts.report_data_inputs(self.keys.spki_sha256(), self.keys.instance_key(), hpke_key);
        let leaf = Leaf {
            kind: FreshnessKind::KeyRelease,
            role: inputs.role,
            challenge: *challenge.as_bytes(),
            binding: *binding.as_bytes(),
        };
        let tree = Tree::new(vec![leaf.hash()]).ok_or(Failure::Internal)?;
        inputs.freshness = Freshness { kind: FreshnessKind::KeyRelease, tree_size: tree.size(), root: tree.root() };
        let quote = self.device.quote(&inputs.report_data()).map_err(|_| Failure::Device)?;
        let evidence = facts.evidence(&inputs, quote, &self.events)?;
        let evidence = Base64::new(evidence).ok_or(Failure::TooLarge)?;
        Ok(ControlAnswer::KeyReleaseEvidence { evidence })
    }
}
