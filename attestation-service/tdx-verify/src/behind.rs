// SPDX-License-Identifier: Apache-2.0
//! What a platform lacks of the TCB level that it would need: which component, and what brings a newer one.

use dcap_qvl::{
    QeIdentity, TcbInfo, TcbLevel, TcbStatus,
    quote::Quote,
    tcb_info::{SvnComponent, SvnShortfall},
};
use serde::Deserialize;

use crate::{Collateral, examine::Formed};

/// A component of a platform whose security version is below the newest level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Which.
    pub component: Component,
    /// Its version in the quote, or in the PCK certificate.
    pub found: u16,
    /// What the level asks for.
    pub needed: u16,
    /// What Intel calls it (`category` and `type` of "TCB Info V3"), where it does.
    pub name: Option<String>,
}

/// Components that Intel gives security versions to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// SGX component of this number, from 1 as in Intel's lists.
    Sgx(u8),
    /// TDX component of this number, from 1.
    Tdx(u8),
    /// The provisioning certification enclave.
    Pce,
    /// The TDX module.
    TdxModule,
    /// The quoting enclave for TDs.
    QuotingEnclave,
}

impl Collateral {
    /// What the platform of `quote` lacks of the level that is up to date and nearest to it; empty where it lacks nothing,
    /// or where quote or collateral can't be read.
    ///
    /// Verifies nothing: it explains what [`crate::verify`] refused for its TCB.
    #[must_use]
    pub fn behind(&self, quote: &[u8]) -> Vec<Behind> {
        self.try_behind(quote).unwrap_or_default()
    }

    fn try_behind(&self, bytes: &[u8]) -> Option<Vec<Behind>> {
        let formed = Formed::read(bytes).ok()?;
        let quote = Quote::parse(bytes).ok()?;
        let certificate = dcap_qvl::intel::extract_cert_chain(&quote).ok()?.into_iter().next()?;
        let pck = dcap_qvl::intel::parse_pck_extension(&certificate).ok()?;
        let svn = &formed.quote.body.report().tee_tcb_svn;
        let info: TcbInfo = serde_json::from_str(&self.inner.tcb_info).ok()?;
        let identity: QeIdentity = serde_json::from_str(&self.inner.qe_identity).ok()?;
        let names: Names = serde_json::from_str(&self.inner.tcb_info).ok()?;
        let lacks = |level: &TcbLevel| level.shortfalls(&pck.cpu_svn, pck.pce_svn, Some(svn)).ok();
        let current = info.tcb_levels.iter().filter(|level| level.tcb_status == TcbStatus::UpToDate);
        let nearest = current.filter_map(lacks).min_by_key(Vec::len).unwrap_or_default();
        let module = info.tdx_module_identity(svn).ok().flatten();
        let levels = module.map(|module| module.tcb_levels.as_slice()).unwrap_or_default();
        let least = levels.iter().filter(|level| level.tcb_status == TcbStatus::UpToDate);
        let module = least.min_by_key(|level| level.tcb.isvsvn).and_then(|level| level.shortfall(svn));
        let found = nearest.into_iter().chain(module).map(|lack| names.named(lack));
        let enclaves = identity.tcb_levels.iter().filter(|level| level.tcb_status == TcbStatus::UpToDate);
        let (found_qe, needed_qe) = (formed.section.qe.isv_svn, enclaves.map(|level| level.tcb.isvsvn).min());
        let enclave = needed_qe.filter(|needed| found_qe < *needed).map(|needed| Behind {
            component: Component::QuotingEnclave,
            found: found_qe,
            needed,
            name: None,
        });
        Some(found.chain(enclave).collect())
    }
}

impl Behind {
    /// What brings a newer version.
    #[must_use]
    pub fn update(&self) -> &'static str {
        let named = |word: &str| self.name.as_deref().is_some_and(|name| name.contains(word));
        match self.component {
            Component::QuotingEnclave => "Intel's quote service (package tdx-qgs)",
            Component::Pce => "Intel's quoting enclaves (package libsgx-ae-pce), then the PCK certificate in PCCS",
            Component::TdxModule => "the TDX module (firmware, or the loader's module file)",
            _ if named("TDX Module") => "the TDX module (firmware, or the loader's module file)",
            _ if named("Late Microcode") => "the microcode (package intel-microcode, or firmware)",
            _ if named("SEAMLDR") => "the SEAM loader (firmware)",
            _ if named("SINIT") => "the SINIT module (firmware)",
            _ if named("BIOS") => "the firmware (BIOS) of the machine",
            _ => "firmware and microcode of the machine",
        }
    }
}

impl core::fmt::Display for Behind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.component {
            Component::Sgx(number) => write!(f, "SGX component {number}")?,
            Component::Tdx(number) => write!(f, "TDX component {number}")?,
            Component::Pce => f.write_str("PCE")?,
            Component::TdxModule => f.write_str("TDX module")?,
            Component::QuotingEnclave => f.write_str("quoting enclave")?,
        }
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        write!(f, " has {}, needs {}", self.found, self.needed)
    }
}

/// The names that Intel gives to components; the same in every level.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    tcb_levels: Vec<NamedLevel>,
}

#[derive(Deserialize)]
struct NamedLevel {
    tcb: NamedTcb,
}

#[derive(Deserialize)]
struct NamedTcb {
    #[serde(rename = "sgxtcbcomponents")]
    sgx: Vec<Name>,
    #[serde(rename = "tdxtcbcomponents", default)]
    tdx: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    category: String,
    #[serde(default, rename = "type")]
    kind: String,
}

impl Names {
    fn named(&self, lack: SvnShortfall) -> Behind {
        let level = self.tcb_levels.first().map(|level| &level.tcb);
        let name = |list: Option<&Vec<Name>>, index: u8| {
            let Name { category, kind } = list?.get(usize::from(index))?;
            let words: Vec<&str> = [category, kind].into_iter().map(String::as_str).filter(|w| !w.is_empty()).collect();
            (!words.is_empty()).then(|| words.join(", "))
        };
        let (component, name) = match lack.component {
            SvnComponent::Sgx(index) => {
                (Component::Sgx(index.saturating_add(1)), name(level.map(|tcb| &tcb.sgx), index))
            }
            SvnComponent::Tdx(index) => {
                (Component::Tdx(index.saturating_add(1)), name(level.map(|tcb| &tcb.tdx), index))
            }
            SvnComponent::PceSvn => (Component::Pce, None),
            SvnComponent::TdxModuleIsvSvn => (Component::TdxModule, None),
        };
        Behind { component, found: lack.have, needed: lack.needs, name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(component: Component, name: Option<&str>) -> Behind {
        Behind { component, found: 3, needed: 4, name: name.map(str::to_owned) }
    }

    #[test]
    fn each_component_has_its_update() {
        for (component, name, words) in [
            (Component::Sgx(1), Some("BIOS, Early Microcode Update"), "firmware (BIOS)"),
            (Component::Sgx(2), Some("OS/VMM, SGX Late Microcode Update"), "intel-microcode"),
            (Component::Sgx(3), Some("OS/VMM, TXT SINIT"), "SINIT"),
            (Component::Tdx(1), Some("OS/VMM, TDX Module"), "TDX module"),
            (Component::TdxModule, None, "TDX module"),
            (Component::Pce, None, "libsgx-ae-pce"),
            (Component::QuotingEnclave, None, "tdx-qgs"),
            (Component::Tdx(9), None, "firmware and microcode"),
        ] {
            let behind = behind(component, name);
            assert!(behind.update().contains(words), "{behind}: {}", behind.update());
        }
        assert_eq!(behind(Component::Sgx(2), Some("BIOS")).to_string(), "SGX component 2 (BIOS) has 3, needs 4");
    }
}
