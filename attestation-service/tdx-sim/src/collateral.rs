// SPDX-License-Identifier: Apache-2.0
//! Collateral of a simulated platform: TCB info version 3, QE identity version 2 and revocation lists, signed under its
//! own root (formats of Intel's "API Documentation for SGX and TDX Provisioning Certification Service", version 4).

use serde_json::{Value, json};

use crate::Fault;
use crate::pki::certificates::{Authority, pck_serial, platform_ca_serial, tcb_signer_serial};
use crate::pki::{CPU_SVN, FMSPC, PCE_SVN, PkiError, SimulatedPlatform, TEE_TCB_SVN, date, pem, sign_raw};
use crate::quote::{QE_ATTRIBUTES, QE_ISV_PROD_ID, QE_ISV_SVN, QE_SIGNER};

/// Collateral as a verifier takes it; its JSON is what `dcap-qvl` reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Collateral {
    /// Platform CA and root, PEM.
    pub pck_crl_issuer_chain: String,
    /// Revocation list of the root, DER.
    #[serde(with = "hex::serde")]
    pub root_ca_crl: Vec<u8>,
    /// Revocation list of the platform CA, DER.
    #[serde(with = "hex::serde")]
    pub pck_crl: Vec<u8>,
    /// TCB signer and root, PEM.
    pub tcb_info_issuer_chain: String,
    /// JSON text over which the signature goes.
    pub tcb_info: String,
    /// ECDSA, r ‖ s.
    #[serde(with = "hex::serde")]
    pub tcb_info_signature: Vec<u8>,
    /// TCB signer and root, PEM.
    pub qe_identity_issuer_chain: String,
    /// JSON text over which the signature goes.
    pub qe_identity: String,
    /// ECDSA, r ‖ s.
    #[serde(with = "hex::serde")]
    pub qe_identity_signature: Vec<u8>,
}

impl Collateral {
    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!(self).to_string()
    }
}

impl SimulatedPlatform {
    /// Collateral that is valid at `now` (seconds since 1970) for 30 days, or bad in one way.
    /// Faults that concern only quotes change nothing here.
    ///
    /// # Errors
    /// [`PkiError::Certificate`], [`PkiError::Time`].
    pub fn collateral(&self, now: u64, fault: Option<Fault>) -> Result<Collateral, PkiError> {
        self.collateral_numbered(now, EVALUATION_DATA_NUMBER, fault)
    }

    /// [`SimulatedPlatform::collateral`] with another `tcbEvaluationDataNumber`.
    ///
    /// # Errors
    /// As there.
    pub fn collateral_numbered(&self, now: u64, number: u32, fault: Option<Fault>) -> Result<Collateral, PkiError> {
        let window = window(now, fault)?;
        let lists = match fault {
            Some(Fault::FutureCollateral) => self::window(now, None)?,
            _ => window,
        };
        let pck_revoked = if fault == Some(Fault::RevokedPck) { vec![pck_serial()] } else { Vec::new() };
        let root_revoked = match fault {
            Some(Fault::RevokedPlatformCa) => vec![platform_ca_serial()],
            Some(Fault::RevokedTcbSigner) => vec![tcb_signer_serial()],
            _ => Vec::new(),
        };
        let mut tcb_info = tcb_info(window, number, fault)?.to_string();
        let mut qe_identity = qe_identity(window, number, fault)?.to_string();
        let tcb_info_signature = sign_raw("tcb_signer", &self.keys.tcb_signer, tcb_info.as_bytes())?.to_vec();
        let qe_identity_signature = sign_raw("tcb_signer", &self.keys.tcb_signer, qe_identity.as_bytes())?.to_vec();
        match fault {
            Some(Fault::ForgedTcbInfo) => tcb_info.push(' '),
            Some(Fault::ForgedQeIdentity) => qe_identity.push(' '),
            _ => {}
        }
        let signer_chain = pem(&self.certificates.tcb_signer) + &pem(&self.certificates.root);
        let pck_list = Authority::PlatformCa.revocation_list(&self.keys.platform_ca, self.created, &pck_revoked, lists);
        let root_list = Authority::Root.revocation_list(&self.keys.root, self.created, &root_revoked, lists);
        Ok(Collateral {
            pck_crl_issuer_chain: pem(&self.certificates.platform_ca) + &pem(&self.certificates.root),
            root_ca_crl: root_list?,
            pck_crl: pck_list?,
            tcb_info_issuer_chain: signer_chain.clone(),
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: signer_chain,
            qe_identity,
            qe_identity_signature,
        })
    }
}

/// Begin and end of the collateral's validity.
fn window(now: u64, fault: Option<Fault>) -> Result<(i64, i64), PkiError> {
    let now = i64::try_from(now).map_err(|_| PkiError::Time(i64::MAX))?;
    Ok(match fault {
        Some(Fault::ExpiredCollateral) => (now.saturating_sub(31 * DAY), now.saturating_sub(DAY)),
        Some(Fault::FutureCollateral) => (now.saturating_add(DAY), now.saturating_add(31 * DAY)),
        _ => (now.saturating_sub(HOUR), now.saturating_add(30 * DAY)),
    })
}

fn tcb_info((from, until): (i64, i64), number: u32, fault: Option<Fault>) -> Result<Value, PkiError> {
    let fmspc = if fault == Some(Fault::OtherFmspc) { *b"OTHER\0" } else { FMSPC };
    let module = json!({"mrsigner": "0".repeat(96), "attributes": "0".repeat(16), "attributesMask": "F".repeat(16)});
    let mut identity = module.clone();
    if let Some(fields) = identity.as_object_mut() {
        fields.insert("id".into(), json!("TDX_01"));
        fields.insert(
            "tcbLevels".into(),
            json!([{"tcb": {"isvsvn": MODULE_ISV_SVN}, "tcbDate": rfc3339(from - 90 * DAY)?, "tcbStatus": "UpToDate"}]),
        );
    }
    Ok(json!({
        "id": "TDX",
        "version": 3,
        "issueDate": rfc3339(from)?,
        "nextUpdate": rfc3339(until)?,
        "fmspc": hex::encode_upper(fmspc),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": number,
        "tdxModule": module,
        "tdxModuleIdentities": [identity],
        "tcbLevels": tcb_levels(from, fault)?,
    }))
}

/// The newest level first. A fault raises what the newest level asks for above what the platform has, so that the
/// platform falls to the level below.
fn tcb_levels(from: i64, fault: Option<Fault>) -> Result<Vec<Value>, PkiError> {
    let below = match fault {
        Some(Fault::OutOfDateTcb) => Some("OutOfDate"),
        Some(Fault::ConfigurationNeeded) => Some("ConfigurationNeeded"),
        Some(Fault::RevokedTcb) => Some("Revoked"),
        _ => None,
    };
    let raised = below.is_some() || fault == Some(Fault::NoTcbLevel);
    let newest = PCE_SVN + u16::from(raised);
    let mut levels = vec![level(newest, from - 90 * DAY, "UpToDate", &[])?];
    if fault != Some(Fault::NoTcbLevel) {
        levels.push(level(PCE_SVN - u16::from(!raised), from - 400 * DAY, below.unwrap_or("OutOfDate"), &[ADVISORY])?);
    }
    Ok(levels)
}

fn level(pce_svn: u16, date: i64, status: &str, advisories: &[&str]) -> Result<Value, PkiError> {
    let components = |svns: &[u8]| svns.iter().map(|svn| json!({"svn": svn})).collect::<Vec<_>>();
    let mut level = json!({
        "tcb": {
            "sgxtcbcomponents": components(&CPU_SVN),
            "pcesvn": pce_svn,
            "tdxtcbcomponents": components(&TEE_TCB_SVN),
        },
        "tcbDate": rfc3339(date)?,
        "tcbStatus": status,
    });
    if let (Some(fields), false) = (level.as_object_mut(), advisories.is_empty()) {
        fields.insert("advisoryIDs".into(), json!(advisories));
    }
    Ok(level)
}

fn qe_identity((from, until): (i64, i64), number: u32, fault: Option<Fault>) -> Result<Value, PkiError> {
    let raised = matches!(fault, Some(Fault::OutOfDateQe | Fault::RevokedQe));
    let newest = QE_ISV_SVN + u16::from(raised);
    let below = if fault == Some(Fault::RevokedQe) { "Revoked" } else { "OutOfDate" };
    Ok(json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": rfc3339(from)?,
        "nextUpdate": rfc3339(until)?,
        "tcbEvaluationDataNumber": number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": hex::encode_upper(QE_ATTRIBUTES),
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_SIGNER),
        "isvprodid": QE_ISV_PROD_ID,
        "tcbLevels": [
            {"tcb": {"isvsvn": newest}, "tcbDate": rfc3339(from - 90 * DAY)?, "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": newest - 1}, "tcbDate": rfc3339(from - 400 * DAY)?, "tcbStatus": below, "advisoryIDs": [ADVISORY]},
        ],
    }))
}

fn rfc3339(seconds: i64) -> Result<String, PkiError> {
    date(seconds)?.format(&time::format_description::well_known::Rfc3339).map_err(|_| PkiError::Time(seconds))
}

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
const EVALUATION_DATA_NUMBER: u32 = 17;
const MODULE_ISV_SVN: u8 = 6;
/// Not one of Intel's: the platform is simulated.
const ADVISORY: &str = "SIMULATED-SA-00001";
