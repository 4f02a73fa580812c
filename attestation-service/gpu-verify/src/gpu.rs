// SPDX-License-Identifier: Apache-2.0
//! What is a GPU's own: generation, mode, versions, and the measurements of driver and VBIOS.

use crate::{
    appraisal::GpuAppraisal,
    evidence::{Judged, check_firmware},
    measured::{self, Wanted},
    opaque::{GpuFields, ReportedMode},
    policy::{Architecture, GpuPolicy, Mode, Requirement},
    verdict::{Checks, Rule, absent},
    verified::VerifiedGpu,
};

/// Notes the checks of one GPU; gives it when its measurements match, or shall not be compared. Whether it is accepted, the checks
/// say.
pub(crate) fn judge(
    appraisal: &GpuAppraisal<'_>,
    compare: bool,
    judged: &Judged<'_>,
    checks: &mut Checks,
) -> Option<VerifiedGpu> {
    let (name, policy) = (judged.name, appraisal.policy);
    let fields = match judged.report.opaque.gpu() {
        Ok(fields) => fields,
        Err(malformed) => {
            let field = format!("{name}.report.opaque_data");
            checks.add(false, OPAQUE, field, "the opaque data of a GPU", malformed);
            return None;
        }
    };
    let architecture = judged.facts.architecture;
    let known = matches!(architecture, Architecture::Hopper | Architecture::Blackwell);
    let found = format!("{architecture} ({})", judged.facts.chip);
    let expected = list(&policy.architectures);
    let accepted = known && policy.architectures.contains(&architecture);
    checks.add(accepted, ARCHITECTURE, format!("{name}.chain.chip"), expected, found);
    check_firmware(judged, fields.fwid.as_ref(), policy.fwid, checks);
    let mode = check_mode(policy, name, &fields, checks);
    check_listed(&policy.drivers, &fields.driver_version, &format!("{name}.report.driver_version"), DRIVER, checks);
    check_listed(&policy.vbioses, &fields.vbios_version, &format!("{name}.report.vbios_version"), VBIOS, checks);
    let (driver, vbios) = if compare { check_measurements(appraisal, judged, &fields, checks)? } else { (0, 0) };
    Some(VerifiedGpu {
        architecture,
        chip: judged.facts.chip.clone(),
        pdi: judged.facts.pdi,
        leaf: judged.leaf,
        driver_version: fields.driver_version,
        vbios_version: fields.vbios_version,
        mode,
        driver_measurements: driver,
        vbios_measurements: vbios,
        switches: fields.switches,
    })
}

/// A GPU answers attestation requests in confidential mode only, but no field of an old report says so; newer ones
/// name the mode, and whether protected PCIe is on. The two must agree.
fn check_mode(policy: &GpuPolicy, name: &str, fields: &GpuFields, checks: &mut Checks) -> Option<Mode> {
    let field = format!("{name}.report.mode");
    if let (Some(mode), Some(protected)) = (fields.mode, fields.protected_pcie) {
        let agree = (mode == ReportedMode::Ppcie) == protected;
        let found = format!("{mode}, protected PCIe {}", if protected { "on" } else { "off" });
        checks.add(agree, CONTRADICTION, &field, "mode and protected PCIe that agree", found);
    }
    let mode = match (fields.mode, fields.protected_pcie) {
        (Some(ReportedMode::Spt), _) => Ok(Some(Mode::Spt)),
        (Some(ReportedMode::Mpt), _) => Ok(Some(Mode::Mpt)),
        (Some(ReportedMode::Ppcie), _) | (None, Some(true)) => Ok(Some(Mode::Ppcie)),
        (Some(ReportedMode::Unknown(flag)), _) => Err(flag),
        (None, _) => Ok(None),
    };
    let good = match mode {
        Ok(Some(mode)) => policy.modes.contains(&mode),
        Ok(None) => policy.mode_in_report == Requirement::Optional,
        Err(_) => false,
    };
    let found = match mode {
        Ok(Some(mode)) => mode.to_string(),
        Ok(None) => absent(good).to_owned(),
        Err(flag) => format!("unknown ({flag})"),
    };
    checks.add(good, MODE, field, list(&policy.modes), found);
    mode.ok().flatten()
}

fn check_listed(allowed: &[String], found: &str, field: &str, rule: Rule, checks: &mut Checks) {
    if !allowed.is_empty() {
        checks.add(allowed.iter().any(|version| version == found), rule, field, allowed.join(", "), found);
    }
}

fn check_measurements(
    appraisal: &GpuAppraisal<'_>,
    judged: &Judged<'_>,
    fields: &GpuFields,
    checks: &mut Checks,
) -> Option<(usize, usize)> {
    let name = judged.name;
    let mut products = vec![judged.facts.chip.clone()];
    products.extend(fields.chip_info.clone().filter(|chip| *chip != judged.facts.chip));
    let (driver_id, vbios_id) = (driver_rim_id(judged.facts.architecture, fields), vbios_rim_id(fields));
    let wanted = |part, version, id| Wanted { part, edition: "GPU", version, products: &products, id };
    let driver = measured::find(wanted("driver", &fields.driver_version, &driver_id), name, appraisal.rims, checks);
    let vbios = measured::find(wanted("vbios", &fields.vbios_version, &vbios_id), name, appraisal.rims, checks);
    if let (Some(driver), Some(vbios)) = (driver, vbios) {
        let both: Vec<_> = driver.golden.keys().filter(|index| vbios.golden.contains_key(index)).collect();
        let found = if both.is_empty() { "none".to_owned() } else { format!("{both:?}") };
        checks.add(both.is_empty(), CONFLICT, format!("{name}.rim"), "no index in both manifests", found);
    }
    let report = &judged.report.measurements;
    let mut compare = |part, rim: Option<&crate::Rim>| {
        rim.and_then(|rim| measured::compare(part, name, &rim.golden, report, fields.nvdec0_enabled, checks))
    };
    let (driver, vbios) = (compare("driver", driver), compare("vbios", vbios));
    Some((driver?, vbios?))
}

/// Name of a driver's manifest at NVIDIA's service (`get_driver_rim_id` of attestation-sdk).
pub(crate) fn driver_rim_id(architecture: Architecture, fields: &GpuFields) -> String {
    let version = &fields.driver_version;
    match (architecture, &fields.chip_info) {
        (Architecture::Blackwell, Some(chip)) => format!("NV_GPU_CC_DRIVER_{chip}_{version}"),
        (Architecture::Blackwell, None) => format!("NV_GPU_CC_DRIVER_GB100_{version}"),
        _ => format!("NV_GPU_DRIVER_GH100_{version}"),
    }
}

/// Name of a VBIOS's manifest at NVIDIA's service (`get_vbios_rim_id` of attestation-sdk).
pub(crate) fn vbios_rim_id(fields: &GpuFields) -> String {
    let GpuFields { project, project_sku, chip_sku, vbios_version, .. } = fields;
    format!("NV_GPU_VBIOS_{project}_{project_sku}_{chip_sku}_{}", vbios_version.replace('.', ""))
}

fn list<T: core::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

const OPAQUE: Rule = ("gpu_report_malformed", "use firmware and a verifier that know each other's fields");
const ARCHITECTURE: Rule = ("gpu_architecture", "use a GPU of a generation that the policy names");
const MODE: Rule = ("gpu_mode", "set the GPU to a confidential mode that the policy names and reset it");
const CONTRADICTION: Rule = ("gpu_mode_contradiction", "reset the GPU; its report contradicts itself");
const DRIVER: Rule = ("gpu_driver_version", "use a driver that the policy names");
const VBIOS: Rule = ("gpu_vbios_version", "use a VBIOS that the policy names");
const CONFLICT: Rule = ("rim_conflict", "fetch both manifests again from NVIDIA's RIM service");
