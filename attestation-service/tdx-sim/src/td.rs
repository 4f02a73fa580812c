// SPDX-License-Identifier: Apache-2.0
//! A trust domain as its guest sees it: RTMR3 can be extended, the registers of the moment can be quoted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use types::{Registers, RuntimeEvent, Sha384Digest};

use crate::{Fault, PkiError, QuoteVersion, SimulatedPlatform, TdReport};

/// What a TD's creator sets, beside the memory that is measured (`td-params.json`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdParams {
    /// [`TdParams::SCHEMA`].
    pub schema: String,
    /// SHA-384 of the guest's configuration.
    pub mr_config_id: Sha384Digest,
    /// Owner of the TD: zero in this project.
    pub mr_owner: Sha384Digest,
    /// Configuration by the owner: zero in this project.
    pub mr_owner_config: Sha384Digest,
    /// TD attributes as they stand in a report (little-endian), 16 hexadecimal digits.
    #[serde(with = "hex::serde")]
    pub attributes: [u8; 8],
    /// Extended features as they stand in a report (little-endian), 16 hexadecimal digits.
    #[serde(with = "hex::serde")]
    pub xfam: [u8; 8],
}

/// Why `td-params.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum TdParamsError {
    /// Not the document, or with unknown fields.
    #[error("td-params: {0}")]
    Json(#[from] serde_json::Error),
    /// Another schema.
    #[error("td-params: schema must be {}", TdParams::SCHEMA)]
    Schema,
}

impl TdParams {
    /// The schema's name.
    pub const SCHEMA: &str = "chrysalis/td-params/v1";

    /// What this project's launcher sets: SEPT_VE_DISABLE, XFAM of a server with AVX-512 and AMX, no owner.
    #[must_use]
    pub fn with_config(mr_config_id: Sha384Digest) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            mr_config_id,
            mr_owner: Sha384Digest::ZERO,
            mr_owner_config: Sha384Digest::ZERO,
            attributes: (1_u64 << 28).to_le_bytes(),
            xfam: 0x6_02e7_u64.to_le_bytes(),
        }
    }

    /// Reads the document.
    ///
    /// # Errors
    /// [`TdParamsError`].
    pub fn from_json(text: &[u8]) -> Result<Self, TdParamsError> {
        let params: Self = serde_json::from_slice(text)?;
        if params.schema == Self::SCHEMA { Ok(params) } else { Err(TdParamsError::Schema) }
    }
}

/// Why a TD's request failed.
#[derive(Debug, thiserror::Error)]
pub enum TdError {
    /// The register belongs to the firmware or does not exist.
    #[error("register {0} can't be extended by the guest: only RTMR3 can")]
    Register(u32),
    /// The quote could not be made.
    #[error("quote: {0}")]
    Quote(#[from] PkiError),
}

/// A trust domain in this process. Clones share their state.
///
/// It behaves as hardware does: extends are one-way, a quote shows the registers of its moment, and all quotes of a
/// platform are made one after the other.
#[derive(Clone)]
pub struct SimulatedTd {
    shared: Arc<Shared>,
    event_log: Option<Arc<[u8]>>,
}

struct Shared {
    platform: Arc<SimulatedPlatform>,
    state: Mutex<TdReport>,
    quoting: Mutex<()>,
    version: QuoteVersion,
    fault: Option<Fault>,
    quote_time: Duration,
}

impl SimulatedTd {
    /// A TD on `platform` with the given registers, that quotes in version 4 at once.
    #[must_use]
    pub fn new(platform: Arc<SimulatedPlatform>, registers: Registers) -> Self {
        let params = TdParams::with_config(registers.mr_config_id);
        let state = TdReport { registers, attributes: params.attributes, xfam: params.xfam, report_data: [0; 64] };
        Self::with(platform, state, QuoteVersion::V4, None, Duration::ZERO)
    }

    /// A TD with everything chosen. The report data in `report` is of no importance.
    #[must_use]
    pub fn with(
        platform: Arc<SimulatedPlatform>,
        report: TdReport,
        version: QuoteVersion,
        fault: Option<Fault>,
        quote_time: Duration,
    ) -> Self {
        let shared =
            Shared { platform, state: Mutex::new(report), quoting: Mutex::new(()), version, fault, quote_time };
        Self { shared: Arc::new(shared), event_log: None }
    }

    /// The same TD with the log that its firmware wrote.
    #[must_use]
    pub fn with_event_log(self, log: Vec<u8>) -> Self {
        Self { event_log: Some(log.into()), ..self }
    }

    /// The log that the firmware wrote, where there is one.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        self.event_log.as_deref()
    }

    /// The registers of this moment.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.report().registers
    }

    /// MRCONFIGID, as a TD report shows it.
    #[must_use]
    pub fn mr_config_id(&self) -> Sha384Digest {
        self.report().registers.mr_config_id
    }

    /// Extends a register by index; a guest can extend only 3.
    ///
    /// # Errors
    /// [`TdError::Register`].
    pub fn extend(&self, register: u32, digest: &Sha384Digest) -> Result<(), TdError> {
        if register != 3 {
            return Err(TdError::Register(register));
        }
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.registers.rtmr_3 = state.registers.rtmr_3.extend(digest);
        Ok(())
    }

    /// Extends RTMR3 with a named event.
    pub fn extend_event(&self, event: &RuntimeEvent) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.registers.rtmr_3 = state.registers.rtmr_3.extend(&event.digest());
    }

    /// A quote over the registers of this moment and `report_data`. Waits for quotes under way, then takes the time
    /// that was set.
    ///
    /// # Errors
    /// [`TdError::Quote`].
    pub fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, TdError> {
        let _one_at_a_time = self.shared.quoting.lock().unwrap_or_else(PoisonError::into_inner);
        let report = TdReport { report_data, ..self.report() };
        std::thread::sleep(self.shared.quote_time);
        Ok(self.shared.platform.quote(&report, self.shared.version, self.shared.fault)?)
    }

    fn report(&self) -> TdReport {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_refuse_unknown_fields_and_schemas() {
        let good = serde_json::to_string(&TdParams::with_config(Sha384Digest::of(b"config"))).unwrap();
        assert!(TdParams::from_json(good.as_bytes()).is_ok());
        assert!(TdParams::from_json(good.replace("td-params/v1", "td-params/v2").as_bytes()).is_err());
        assert!(TdParams::from_json(good.replacen('{', "{\"debug\":true,", 1).as_bytes()).is_err());
        assert!(TdParams::from_json(format!("{good}x").as_bytes()).is_err());
    }
}
