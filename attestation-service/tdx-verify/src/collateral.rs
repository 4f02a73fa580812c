// SPDX-License-Identifier: Apache-2.0
//! Collateral: what Intel publishes about platforms, as one JSON file in `dcap-qvl`'s form.

use dcap_qvl::QuoteCollateralV3;
use serde::Deserialize;
use types::Sha256Digest;

use crate::tables::Tables;

/// Collateral for one kind of platform (FMSPC). Well formed, not verified: [`crate::verify`] does that.
#[derive(Debug, Clone)]
pub struct Collateral {
    pub(crate) inner: QuoteCollateralV3,
    pub(crate) pck_chain: Option<String>,
    fmspc: [u8; 6],
    pub(crate) pce_id: String,
    /// Of the bytes that it was read from.
    pub(crate) digest: Sha256Digest,
    /// What known platforms are judged by; nothing is believed of it before `dcap-qvl` accepted this collateral.
    pub(crate) tables: Option<Tables>,
}

/// Why bytes are no collateral.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// More than [`MAX_COLLATERAL_LEN`] bytes.
    #[error("collateral has at most {MAX_COLLATERAL_LEN} bytes, found {0}")]
    TooLarge(usize),
    /// Not JSON of the known form.
    #[error("the collateral is malformed: {0}")]
    Malformed(String),
    /// A field is not hexadecimal.
    #[error("the field {0} must be hexadecimal")]
    NotHex(&'static str),
    /// The TCB information inside is not for TDX, or lacks FMSPC or PCE id.
    #[error("the field tcb_info must be Intel's TCB information of version 3 for TDX")]
    TcbInfo,
}

impl Collateral {
    /// Reads collateral from JSON. Unknown fields are refused.
    ///
    /// # Errors
    /// [`CollateralError`] names the rule.
    pub fn from_json(bytes: &[u8]) -> Result<Self, CollateralError> {
        if bytes.len() > MAX_COLLATERAL_LEN {
            return Err(CollateralError::TooLarge(bytes.len()));
        }
        let file: File = serde_json::from_slice(bytes)
            .map_err(|e| CollateralError::Malformed(format!("{:?} error at line {}", e.classify(), e.line())))?;
        let info: TcbInfo = serde_json::from_str(&file.tcb_info).map_err(|_| CollateralError::TcbInfo)?;
        if info.id != "TDX" || info.version != 3 {
            return Err(CollateralError::TcbInfo);
        }
        let mut fmspc = [0; 6];
        hex::decode_to_slice(&info.fmspc, &mut fmspc).map_err(|_| CollateralError::TcbInfo)?;
        let blob = |field, text: &str| hex::decode(text).map_err(|_| CollateralError::NotHex(field));
        Ok(Self {
            digest: Sha256Digest::of(bytes),
            tables: Tables::read(&file.tcb_info, &file.qe_identity),
            inner: QuoteCollateralV3 {
                root_ca_crl: blob("root_ca_crl", &file.root_ca_crl)?,
                pck_crl: blob("pck_crl", &file.pck_crl)?,
                tcb_info_signature: blob("tcb_info_signature", &file.tcb_info_signature)?,
                qe_identity_signature: blob("qe_identity_signature", &file.qe_identity_signature)?,
                pck_crl_issuer_chain: file.pck_crl_issuer_chain,
                tcb_info_issuer_chain: file.tcb_info_issuer_chain,
                tcb_info: file.tcb_info,
                qe_identity_issuer_chain: file.qe_identity_issuer_chain,
                qe_identity: file.qe_identity,
                pck_certificate_chain: None,
            },
            pck_chain: file.pck_certificate_chain,
            fmspc,
            pce_id: info.pce_id.to_ascii_lowercase(),
        })
    }

    /// Family, model, stepping, platform type and custom SKU that this collateral is for.
    #[must_use]
    pub const fn fmspc(&self) -> &[u8; 6] {
        &self.fmspc
    }

    /// SHA-256 of the bytes that it was read from.
    #[must_use]
    pub const fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// The list of revoked PCK certificates, DER. **Not verified** here.
    #[must_use]
    pub fn pck_crl(&self) -> &[u8] {
        &self.inner.pck_crl
    }

    /// The first of `all` that is for the platform that `quote` claims. The claim is not verified here; a
    /// wrong one makes [`crate::verify`] refuse. Where there is none, [`crate::unreadable`] tells a platform without
    /// collateral from bytes that name no platform.
    #[must_use]
    pub fn select<'a>(all: &'a [Self], quote: &[u8]) -> Option<&'a Self> {
        let fmspc = fmspc(quote)?;
        all.iter().find(|collateral| collateral.fmspc == fmspc)
    }
}

/// The kind of platform that `quote` claims.
pub(crate) fn fmspc(quote: &[u8]) -> Option<[u8; 6]> {
    let parsed = dcap_qvl::quote::Quote::parse(quote).ok()?;
    dcap_qvl::intel::quote_fmspc(&parsed).ok()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
    #[serde(default)]
    pck_certificate_chain: Option<String>,
}

/// The part of Intel's TCB information that is read here; all of it is signed by Intel and judged by `dcap-qvl`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfo {
    id: String,
    version: u8,
    fmspc: String,
    pce_id: String,
}

/// Most bytes of a collateral file. Real ones have about 20,000.
pub const MAX_COLLATERAL_LEN: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_is_strict() {
        let info = r#"{\"id\":\"TDX\",\"version\":3,\"fmspc\":\"B0C06F000000\",\"pceId\":\"0000\"}"#;
        let good = format!(
            "{{\"pck_crl_issuer_chain\":\"\",\"root_ca_crl\":\"00\",\"pck_crl\":\"00\",\"tcb_info_issuer_chain\":\"\",\
             \"tcb_info\":\"{info}\",\"tcb_info_signature\":\"00\",\"qe_identity_issuer_chain\":\"\",\
             \"qe_identity\":\"\",\"qe_identity_signature\":\"00\"}}"
        );
        assert_eq!(Collateral::from_json(good.as_bytes()).unwrap().fmspc(), &[0xb0, 0xc0, 0x6f, 0, 0, 0]);
        let refuse = |from: &str, to: &str| Collateral::from_json(good.replace(from, to).as_bytes()).unwrap_err();
        assert!(matches!(refuse("\"pck_crl\"", "\"x\":1,\"pck_crl\""), CollateralError::Malformed(_)));
        assert_eq!(refuse("\"root_ca_crl\":\"00\"", "\"root_ca_crl\":\"0x\""), CollateralError::NotHex("root_ca_crl"));
        assert_eq!(refuse("TDX", "SGX"), CollateralError::TcbInfo);
        assert_eq!(refuse("B0C06F000000", "B0C06F"), CollateralError::TcbInfo);
        let large = vec![b' '; MAX_COLLATERAL_LEN + 1];
        assert!(matches!(Collateral::from_json(&large), Err(CollateralError::TooLarge(_))));
    }
}
