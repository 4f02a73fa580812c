// SPDX-License-Identifier: Apache-2.0
//! What evidence says of this boot, apart from quote, events and freshness.

use std::time::Instant;

use attested_channel::{ReportDataInputs, gpu_digest};
use attester_protocol::{Configuration, Failure};
use types::{
    CanonicalError, Document as _, Evidence, Freshness, GuestConfig, Hex32, RuntimeEvent, Sha256Digest, Sha384Digest,
};

/// The configuration that init gave, checked against MRCONFIGID.
pub(crate) struct Facts {
    configuration: Configuration,
    parsed: GuestConfig,
    gpu: Sha256Digest,
    since: Instant,
}

impl Facts {
    /// Refuses a configuration that is not the measured one.
    pub(crate) fn new(configuration: Configuration, mr_config_id: &Sha384Digest) -> Result<Self, Failure> {
        let bytes = configuration.guest_config.as_slice();
        if GuestConfig::mr_config_id(bytes) != *mr_config_id {
            return Err(Failure::Configuration);
        }
        let parsed = GuestConfig::parse(bytes).map_err(|_| Failure::Configuration)?;
        let gpu = gpu_digest(&configuration.gpu).map_err(|_| Failure::Configuration)?;
        Ok(Self { configuration, parsed, gpu, since: Instant::now() })
    }

    pub(crate) const fn config(&self) -> &GuestConfig {
        &self.parsed
    }

    /// Seconds since 1970: the attested time, or else the floor, plus monotonic progress since init gave it.
    pub(crate) fn unix(&self) -> u64 {
        let time = &self.configuration.time;
        let start = time.attested.as_ref().map_or(time.floor, |attested| attested.unix);
        start.saturating_add(self.since.elapsed().as_secs())
    }

    /// What REPORTDATA covers, with no receipts and no freshness.
    pub(crate) fn report_data_inputs(
        &self,
        spki_sha256: Sha256Digest,
        instance_key: Hex32,
        hpke_key: Hex32,
    ) -> ReportDataInputs {
        ReportDataInputs {
            role: self.parsed.role.0,
            spki_sha256,
            instance_key,
            hpke_key,
            gpu_digest: self.gpu,
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness::none(),
        }
    }

    /// The canonical evidence document.
    pub(crate) fn evidence(
        &self,
        inputs: &ReportDataInputs,
        quote: Vec<u8>,
        events: &[RuntimeEvent],
    ) -> Result<Vec<u8>, Failure> {
        let ReportDataInputs {
            role,
            spki_sha256,
            instance_key,
            hpke_key,
            gpu_digest: _,
            receipt_head,
            receipt_count,
            freshness,
        } = inputs.clone();
        let Configuration { guest_config, time, gpu, firmware_log } = self.configuration.clone();
        let evidence = Evidence {
            schema: Evidence::SCHEMA.to_owned(),
            role,
            quote: types::Base64::new(quote).ok_or(Failure::Device)?,
            spki_sha256,
            instance_key,
            hpke_key,
            gpu,
            receipt_head,
            receipt_count,
            freshness,
            events: events.to_vec(),
            firmware_log,
            guest_config,
            time,
        };
        evidence.to_canonical().map_err(|error| match error {
            CanonicalError::TooLarge { .. } => Failure::TooLarge,
            _ => Failure::Internal,
        })
    }
}
