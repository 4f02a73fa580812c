// SPDX-License-Identifier: Apache-2.0
//! TCB information and QE identity in the form in which [`crate::warm`] compares quotes with them.
//!
//! Source: "Intel SGX and Intel TDX Provisioning Certification Service", API version 4, "TCB Info V3" and "Enclave
//! Identity V2"; the order of levels is that of Intel's quote verification library, as `dcap-qvl` follows it. Reading
//! verifies nothing: tables are used only after `dcap-qvl` accepted the very text that they were read from.

use core::cmp::Reverse;

use dcap_qvl::{
    QeIdentity, TcbInfo, TcbStatus,
    tcb_info::{TdxModuleIdentity, TdxModuleTcbLevel},
};
use der::DateTime;

/// What quotes of one kind of platform are compared with.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// TCB levels, the highest first.
    pub(crate) levels: Vec<Level>,
    /// What a TDX module must be whose version is 0.
    pub(crate) base_module: Module,
    /// TDX modules by version, as listed.
    pub(crate) modules: Vec<(u8, Module)>,
    pub(crate) qe: Qe,
}

/// One TCB level: what it demands, and what it means.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub(crate) cpu_svn: [u8; 16],
    pub(crate) pce_svn: u16,
    pub(crate) tee_tcb_svn: [u8; 16],
    pub(crate) standing: Standing,
}

/// What a level means for who meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) status: TcbStatus,
    /// Seconds since 1970.
    pub(crate) date: u64,
    pub(crate) advisories: Vec<String>,
}

/// What a TDX module must be, and its levels by ISVSVN, as listed.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) signer: [u8; 48],
    pub(crate) attributes: [u8; 8],
    pub(crate) mask: [u8; 8],
    pub(crate) levels: Vec<(u8, Standing)>,
}

/// What a quoting enclave must be, and its levels by ISVSVN, as listed.
#[derive(Debug, Clone)]
pub(crate) struct Qe {
    pub(crate) misc_select: u32,
    pub(crate) misc_select_mask: u32,
    pub(crate) attributes: [u8; 16],
    pub(crate) attributes_mask: [u8; 16],
    pub(crate) mr_signer: [u8; 32],
    pub(crate) isv_prod_id: u16,
    pub(crate) levels: Vec<(u16, Standing)>,
}

impl Tables {
    /// Reads both texts; `None` where anything is not as Intel publishes it today, and then `dcap-qvl` alone judges.
    pub(crate) fn read(tcb_info: &str, qe_identity: &str) -> Option<Self> {
        let info: TcbInfo = serde_json::from_str(tcb_info).ok()?;
        let identity: QeIdentity = serde_json::from_str(qe_identity).ok()?;
        let base = info.tdx_module.as_ref()?;
        let mut levels = info.tcb_levels.iter().map(level).collect::<Option<Vec<_>>>()?;
        // Stable, as the order of the list decides among equals.
        levels.sort_by_key(|level| Reverse((level.cpu_svn, level.pce_svn, level.tee_tcb_svn)));
        let base_module = module(&base.mrsigner, &base.attributes, &base.attributes_mask, &[])?;
        let modules = info.tdx_module_identities.iter().map(numbered).collect::<Option<Vec<_>>>()?;
        (info.id == "TDX" && info.version == 3).then_some(())?;
        Some(Self { levels, base_module, modules, qe: qe(&identity)? })
    }

    /// The module of a version, the first that is listed.
    pub(crate) fn module(&self, version: u8) -> Option<&Module> {
        self.modules.iter().find(|(listed, _)| *listed == version).map(|(_, module)| module)
    }
}

fn level(level: &dcap_qvl::TcbLevel) -> Option<Level> {
    let svns = |components: &[dcap_qvl::TcbComponents]| -> Option<[u8; 16]> {
        components.iter().map(|component| component.svn).collect::<Vec<_>>().try_into().ok()
    };
    // The advice to start a TD again is a result, never a level's own status.
    let no_level =
        matches!(level.tcb_status, TcbStatus::TDRelaunchAdvised | TcbStatus::TDRelaunchAdvisedConfigurationNeeded);
    (!no_level).then_some(())?;
    Some(Level {
        cpu_svn: svns(&level.tcb.sgx_components)?,
        pce_svn: level.tcb.pce_svn,
        tee_tcb_svn: svns(&level.tcb.tdx_components)?,
        standing: standing(level.tcb_status, &level.tcb_date, &level.advisory_ids)?,
    })
}

fn numbered(identity: &TdxModuleIdentity) -> Option<(u8, Module)> {
    let (prefix, version) = identity.id.split_at_checked(4)?;
    let exact = prefix.eq_ignore_ascii_case("TDX_") && version.len() == 2 && !version.starts_with('+');
    exact.then_some(())?;
    let version = u8::from_str_radix(version, 16).ok()?;
    let module = module(&identity.mrsigner, &identity.attributes, &identity.attributes_mask, &identity.tcb_levels)?;
    Some((version, module))
}

fn module(signer: &str, attributes: &str, mask: &str, levels: &[TdxModuleTcbLevel]) -> Option<Module> {
    let levels = levels.iter().map(|level| {
        let known = matches!(level.tcb_status, TcbStatus::UpToDate | TcbStatus::OutOfDate | TcbStatus::Revoked);
        known.then_some(())?;
        Some((level.tcb.isvsvn, standing(level.tcb_status, &level.tcb_date, &level.advisory_ids)?))
    });
    Some(Module {
        signer: bytes(signer)?,
        attributes: bytes(attributes)?,
        mask: bytes(mask)?,
        levels: levels.collect::<Option<_>>()?,
    })
}

fn qe(identity: &QeIdentity) -> Option<Qe> {
    let levels = identity.tcb_levels.iter().map(|level| {
        let known = matches!(
            level.tcb_status,
            TcbStatus::UpToDate
                | TcbStatus::OutOfDate
                | TcbStatus::ConfigurationNeeded
                | TcbStatus::Revoked
                | TcbStatus::OutOfDateConfigurationNeeded
        );
        known.then_some(())?;
        Some((level.tcb.isvsvn, standing(level.tcb_status, &level.tcb_date, &level.advisory_ids)?))
    });
    let levels = levels.collect::<Option<Vec<_>>>()?;
    (!levels.is_empty() && identity.id == "TD_QE").then_some(())?;
    Some(Qe {
        misc_select: u32::from_le_bytes(identity.miscselect),
        misc_select_mask: u32::from_le_bytes(identity.miscselect_mask),
        attributes: identity.attributes,
        attributes_mask: identity.attributes_mask,
        mr_signer: identity.mrsigner,
        isv_prod_id: identity.isvprodid,
        levels,
    })
}

fn standing(status: TcbStatus, date: &str, advisories: &[String]) -> Option<Standing> {
    let date: DateTime = date.parse().ok()?;
    Some(Standing { status, date: date.unix_duration().as_secs(), advisories: advisories.to_vec() })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}
