// SPDX-License-Identifier: Apache-2.0
//! What is an NVSwitch's own: its identifier, its lock, and the measurements of its firmware.

use crate::{
    appraisal::GpuAppraisal,
    evidence::{Judged, check_firmware},
    measured::{self, Wanted},
    policy::{Architecture, Requirement},
    verdict::{Checks, Rule},
    verified::VerifiedSwitch,
};

/// Notes the checks of one switch; gives it when its measurements match, or shall not be compared. Whether it is accepted, the
/// checks say.
pub(crate) fn judge(
    appraisal: &GpuAppraisal<'_>,
    compare: bool,
    judged: &Judged<'_>,
    checks: &mut Checks,
) -> Option<VerifiedSwitch> {
    let name = judged.name;
    let fields = match judged.report.opaque.switch() {
        Ok(fields) => fields,
        Err(malformed) => {
            let field = format!("{name}.report.opaque_data");
            checks.add(false, OPAQUE, field, "the opaque data of an NVSwitch", malformed);
            return None;
        }
    };
    let architecture = judged.facts.architecture;
    let is_switch = architecture == Architecture::Nvswitch;
    let found = format!("{architecture} ({})", judged.facts.chip);
    checks.add(is_switch, ARCHITECTURE, format!("{name}.chain.chip"), "nvswitch", found);
    // Published switches do not report it.
    check_firmware(judged, fields.fwid.as_ref(), Requirement::Optional, checks);
    let certified = judged.facts.pdi.map_or_else(|| "none".to_owned(), |pdi| pdi.to_string());
    let same = judged.facts.pdi == Some(fields.pdi);
    checks.add(same, IDENTITY, format!("{name}.report.device_pdi"), certified, fields.pdi);
    let found = if fields.locked { "locked" } else { "not locked" };
    checks.add(fields.locked, LOCK, format!("{name}.report.lock"), "locked", found);
    let measured = if compare { check_measurements(appraisal, judged, &fields.vbios_version, checks)? } else { 0 };
    Some(VerifiedSwitch {
        chip: judged.facts.chip.clone(),
        pdi: fields.pdi,
        leaf: judged.leaf,
        vbios_version: fields.vbios_version,
        vbios_measurements: measured,
        gpus: fields.gpus,
    })
}

fn check_measurements(
    appraisal: &GpuAppraisal<'_>,
    judged: &Judged<'_>,
    version: &str,
    checks: &mut Checks,
) -> Option<usize> {
    let name = judged.name;
    let id = rim_id(version);
    let products = [judged.facts.chip.replace('_', "")];
    let wanted = Wanted { part: "vbios", edition: "SWITCH", version, products: &products, id: &id };
    let rim = measured::find(wanted, name, appraisal.rims, checks)?;
    measured::compare("vbios", name, &rim.golden, &judged.report.measurements, true, checks)
}

/// Name of a switch's manifest at NVIDIA's service.
pub(crate) fn rim_id(version: &str) -> String {
    format!("NV_SWITCH_BIOS_5612_0002_890_{}", version.replace('.', "").to_uppercase())
}

const OPAQUE: Rule = ("gpu_report_malformed", "use firmware and a verifier that know each other's fields");
const ARCHITECTURE: Rule = ("gpu_architecture", "give an NVSwitch's report as such");
const IDENTITY: Rule = ("switch_identity", "give the report and the certificates of the same switch");
const LOCK: Rule = ("switch_unlocked", "put the switches into protected PCIe mode and reset them");
