// SPDX-License-Identifier: Apache-2.0
//! The quote device of the guest: what the attester asks of the hardware.
//!
//! There is one implementation here, real TDX ([`tdx`]). The simulated device stands in a development-only crate.

pub mod tdx;

use types::Sha384Digest;

/// What the hardware does for a TD. Calls block; quotes are made one at a time.
pub trait QuoteDevice {
    /// MRCONFIGID of this TD, read through a TD report.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError>;

    /// Extends RTMR3 with a digest. There is no way back.
    ///
    /// # Errors
    /// [`DeviceError`]; then it is unknown whether the register has changed.
    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError>;

    /// A quote over `report_data` that shows the registers of this moment; at most [`MAX_QUOTE`] bytes, never empty.
    /// Nobody has verified it.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError>;

    /// The firmware's event log, from a device that keeps one; on hardware the firmware leaves it in memory (CCEL).
    /// It only explains: whoever reads it replays it against a quote.
    fn firmware_log(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// Most bytes of a quote.
pub const MAX_QUOTE: usize = types::evidence::MAX_QUOTE;

/// Why the device did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The machine or its kernel lacks what the operation needs.
    #[error("{what} is missing: {needs}")]
    Missing {
        /// What is not there.
        what: &'static str,
        /// What would provide it.
        needs: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The answer breaks a rule.
    #[error("the device's answer is refused: {0}")]
    Answer(&'static str),
    /// Somebody else used the report interface in between, so that the quote may not be over our data.
    #[error("the report interface was used by somebody else at the same time")]
    Raced,
}

impl From<linux_sys::SysError> for DeviceError {
    fn from(error: linux_sys::SysError) -> Self {
        let linux_sys::SysError { what, source } = error;
        Self::Io { what, source }
    }
}
