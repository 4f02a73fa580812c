// SPDX-License-Identifier: Apache-2.0
//! Quotes and collateral that were changed before they were signed: what a platform, a quoting enclave or Intel could
//! have signed, and does not.

use serde_json::Value;

use crate::collateral::Collateral;
use crate::pki::{PkiError, SimulatedPlatform, raw_public, sign_raw, sign_with};
use crate::quote::{QE_REPORT_CERTIFICATION, QuoteVersion, TdReport, put_certification, put_length};

impl SimulatedPlatform {
    /// A quote of which `signed` changed what the attestation key signs (header, descriptor, body), and `enclave` the
    /// quoting enclave's report (384 bytes), which the PCK signs again.
    ///
    /// # Errors
    /// [`PkiError`] when a key can't sign.
    pub fn quote_changed(
        &self,
        report: &TdReport,
        version: QuoteVersion,
        signed: impl FnOnce(&mut Vec<u8>),
        enclave: impl FnOnce(&mut [u8]),
    ) -> Result<Vec<u8>, PkiError> {
        let mut quote = self.quote(report, version, None)?;
        quote.truncate(match version {
            QuoteVersion::V4 => 48 + 584,
            QuoteVersion::V5 => 48 + 6 + 648,
        });
        signed(&mut quote);
        let mut data = sign_with(&self.signer, &quote).to_vec();
        data.extend_from_slice(&raw_public("attestation", &self.keys.attestation)?);
        let mut certification = self.certification.clone();
        if let Some((report, rest)) = certification.split_first_chunk_mut::<384>() {
            enclave(report);
            let signature = sign_raw("pck", &self.keys.pck, report)?;
            rest.iter_mut().zip(signature).for_each(|(byte, new)| *byte = new);
        }
        put_certification(&mut data, QE_REPORT_CERTIFICATION, &certification);
        put_length(&mut quote, data.len());
        quote.extend(data);
        Ok(quote)
    }

    /// Collateral of which `change` changed TCB information and QE identity, both signed afterwards.
    ///
    /// # Errors
    /// As [`SimulatedPlatform::collateral`].
    pub fn collateral_changed(
        &self,
        now: u64,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Result<Collateral, PkiError> {
        let mut collateral = self.collateral(now, None)?;
        let read = |text: &str| serde_json::from_str(text).map_err(|e| PkiError::Format(e.to_string()));
        let (mut info, mut identity) = (read(&collateral.tcb_info)?, read(&collateral.qe_identity)?);
        change(&mut info, &mut identity);
        let sign = |value: &Value| -> Result<_, PkiError> {
            let text = value.to_string();
            let signature = sign_raw("tcb_signer", &self.keys.tcb_signer, text.as_bytes())?.to_vec();
            Ok((text, signature))
        };
        (collateral.tcb_info, collateral.tcb_info_signature) = sign(&info)?;
        (collateral.qe_identity, collateral.qe_identity_signature) = sign(&identity)?;
        Ok(collateral)
    }
}
