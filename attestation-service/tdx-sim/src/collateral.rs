// SPDX-License-Identifier: Apache-2.0
//! Collateral of a simulated platform: TCB info version 3, QE identity version 2 and revocation lists, signed under its
//! own root (formats of Intel's "API Documentation for SGX and TDX Provisioning Certification Service", version 4).

use serde_json::{Value, json};

use crate::Fault;
use crate::pki::certificates::{Authority, pck_serial, platform_ca_serial, processor_ca, tcb_signer_serial};
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
        self.collateral_lasting(now, MONTH, number, fault)
    }

    /// [`SimulatedPlatform::collateral_numbered`] that is valid for `life` seconds.
    ///
    /// # Errors
    /// As there.
    pub fn collateral_lasting(
        &self,
        now: u64,
        life: u64,
        number: u32,
        fault: Option<Fault>,
    ) -> Result<Collateral, PkiError> {
        let windows = Windows::new(now, life, fault)?;
        let pck_revoked = if fault == Some(Fault::RevokedPck) { vec![pck_serial()] } else { Vec::new() };
        let root_revoked = match fault {
            Some(Fault::RevokedPlatformCa) => vec![platform_ca_serial()],
            Some(Fault::RevokedTcbSigner) => vec![tcb_signer_serial()],
            _ => Vec::new(),
        };
        let mut tcb_info = tcb_info(windows.tcb_info, number, fault)?.to_string();
        let mut qe_identity = qe_identity(windows.qe_identity, number, fault)?.to_string();
        let tcb_info_signature = sign_raw("tcb_signer", &self.keys.tcb_signer, tcb_info.as_bytes())?.to_vec();
        let qe_identity_signature = sign_raw("tcb_signer", &self.keys.tcb_signer, qe_identity.as_bytes())?.to_vec();
        match fault {
            Some(Fault::ForgedTcbInfo) => tcb_info.push(' '),
            Some(Fault::ForgedQeIdentity) => qe_identity.push(' '),
            _ => {}
        }
        let signer_chain = pem(&self.certificates.tcb_signer) + &pem(&self.certificates.root);
        let pck_list =
            Authority::PlatformCa.revocation_list(&self.keys.platform_ca, self.span, &pck_revoked, windows.lists);
        let root_list = Authority::Root.revocation_list(&self.keys.root, self.span, &root_revoked, windows.lists);
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

    /// [`SimulatedPlatform::collateral`] whose list of revoked PCK certificates is of another authority under the same
    /// root, that of processors: good by itself, and of no use for this platform's quotes.
    ///
    /// # Errors
    /// As there.
    pub fn collateral_of_processor_ca(&self, now: u64) -> Result<Collateral, PkiError> {
        let windows = Windows::new(now, MONTH, None)?;
        let (certificate, pck_crl) = processor_ca(self, windows.lists)?;
        let pck_crl_issuer_chain = pem(&certificate) + &pem(&self.certificates.root);
        Ok(Collateral { pck_crl_issuer_chain, pck_crl, ..self.collateral(now, None)? })
    }
}

/// Begin and end of the validity of each part.
struct Windows {
    tcb_info: (i64, i64),
    qe_identity: (i64, i64),
    lists: (i64, i64),
}

impl Windows {
    fn new(now: u64, life: u64, fault: Option<Fault>) -> Result<Self, PkiError> {
        let signed = |seconds: u64| i64::try_from(seconds).map_err(|_| PkiError::Time(i64::MAX));
        let (now, life) = (signed(now)?, signed(life)?);
        let end = now.saturating_add(life);
        let good = (now.saturating_sub(HOUR), end);
        let past = (now.saturating_sub(31 * DAY), now.saturating_sub(DAY));
        let future = (end.saturating_sub(29 * DAY), end.saturating_add(DAY));
        let (mut tcb_info, mut qe_identity, mut lists) = (good, good, good);
        match fault {
            Some(Fault::ExpiredCollateral) => (tcb_info, qe_identity, lists) = (past, past, past),
            Some(Fault::ExpiredTcbInfo) => tcb_info = past,
            Some(Fault::ExpiredQeIdentity) => qe_identity = past,
            Some(Fault::ExpiredLists) => lists = past,
            Some(Fault::FutureCollateral) => (tcb_info, qe_identity) = (future, future),
            _ => {}
        }
        Ok(Self { tcb_info, qe_identity, lists })
    }
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
        "pceId": if fault == Some(Fault::OtherPceId) { "0001" } else { "0000" },
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
    let advisories = if fault == Some(Fault::AdvisoryUpToDate) { &[ADVISORY][..] } else { &[] };
    let mut levels = vec![level(newest, from - 90 * DAY, "UpToDate", advisories, fault)?];
    if fault != Some(Fault::NoTcbLevel) {
        let (svn, status) = (PCE_SVN - u16::from(!raised), below.unwrap_or("OutOfDate"));
        levels.push(level(svn, from - 400 * DAY, status, &[ADVISORY], fault)?);
    }
    Ok(levels)
}

fn level(pce_svn: u16, date: i64, status: &str, advisories: &[&str], fault: Option<Fault>) -> Result<Value, PkiError> {
    let components = |svns: &[u8]| svns.iter().map(|svn| json!({"svn": svn})).collect::<Vec<_>>();
    let (mut sgx, mut tdx) = (components(&CPU_SVN), components(&TEE_TCB_SVN));
    match fault {
        Some(Fault::ShortSgxComponents) => sgx.truncate(15),
        Some(Fault::ShortTdxComponents) => tdx.truncate(15),
        Some(Fault::SwappedComponents) => core::mem::swap(&mut sgx, &mut tdx),
        _ => {}
    }
    let mut level = json!({
        "tcb": {
            "sgxtcbcomponents": sgx,
            "pcesvn": pce_svn,
            "tdxtcbcomponents": tdx,
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
const MONTH: u64 = 30 * 86_400;
const EVALUATION_DATA_NUMBER: u32 = 17;
const MODULE_ISV_SVN: u8 = 6;
/// Not one of Intel's: the platform is simulated.
const ADVISORY: &str = "SIMULATED-SA-00001";
