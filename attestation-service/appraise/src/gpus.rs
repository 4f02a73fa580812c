// SPDX-License-Identifier: Apache-2.0
//! The GPUs of a guest: that the evidence is of this boot, and of as many devices as the configuration names; then every device
//! against manifests and policy.

use gpu_verify::{
    GpuAnchors, GpuAppraisal, GpuPolicy, GpuSummary, MAX_DEVICES, RimLibrary, bound_nonce, devices, driver_state,
    switches,
};
use types::{Evidence, GpuEvidence};

use crate::verdict::{Check, Checks};

/// What evidence of GPUs is judged by, beside the policy. It comes from files that were fetched before; what is in it was signed.
#[derive(Debug, Clone, Copy)]
pub struct GpuGrounds<'a> {
    /// Whose devices and manifests.
    pub anchors: &'a GpuAnchors,
    /// Reference manifests.
    pub rims: &'a RimLibrary,
    /// OCSP answers about certificates of devices and manifests.
    pub ocsp: &'a [Vec<u8>],
}

impl GpuGrounds<'_> {
    /// NVIDIA's devices, and no manifest: every GPU is refused for the want of them.
    pub const NVIDIA: GpuGrounds<'static> =
        GpuGrounds { anchors: &GpuAnchors::nvidia(), rims: RimLibrary::EMPTY, ocsp: &[] };
}

/// Notes every check; gives what the verdict shows of the devices where there are any.
///
/// REPORTDATA covers the whole GPU part of the evidence and the instance key: that the quote's is made of them is checked there.
pub(crate) fn check(
    evidence: &Evidence,
    configured: u8,
    policy: Option<&GpuPolicy>,
    grounds: GpuGrounds<'_>,
    now: u64,
    checks: &mut Checks,
) -> Option<GpuSummary> {
    let gpu = &evidence.gpu;
    let Some(policy) = policy else {
        let none = *gpu == GpuEvidence::NONE && configured == 0;
        let found = format!("{} reports, epoch {}, {configured} configured", gpu.reports.len(), gpu.epoch);
        checks.add(none, UNEXPECTED, "no GPU, since the policy has no part about them", found);
        return None;
    };
    let found = gpu.reports.len();
    checks.add(found == usize::from(configured), COUNT, format!("{configured} reports, as configured"), found);
    let (reports, switch_reports) = (gpu.reports.len(), gpu.switches.len());
    if reports.max(switch_reports) > MAX_DEVICES {
        let expected = format!("at most {MAX_DEVICES} GPUs and {MAX_DEVICES} switches");
        checks.add(false, TOO_LARGE, expected, format!("{reports} GPUs, {switch_reports} switches"));
        return None;
    }
    let nonce = match bound_nonce(evidence.role, &evidence.instance_key, gpu) {
        Ok(nonce) => nonce,
        Err(error) => {
            checks.add(false, FORM, "reports of one collection, sorted", error);
            return None;
        }
    };
    let (gpus, switches) = (devices(gpu), switches(gpu));
    let GpuGrounds { anchors, rims, ocsp } = grounds;
    let all = [gpus.as_slice(), switches.as_slice()].concat();
    let rims = rims.verify(&all, anchors, ocsp, policy.revocation, now);
    let (judged, summary) = GpuAppraisal {
        gpus: &gpus,
        switches: &switches,
        rims: &rims,
        ocsp,
        nonce: Some(&nonce),
        driver_state: driver_state(gpu).as_ref(),
        policy,
        anchors,
        now,
    }
    .appraise()
    .into_parts();
    checks.list.extend(judged.into_iter().map(|check| {
        let gpu_verify::GpuCheck { code, field, passed, expected, found, fix } = check;
        Check { code, field, passed, expected, found, fix }
    }));
    check_driver(gpu, &summary, checks);
    Some(summary)
}

/// The guest's statement and the signed reports are about one driver.
fn check_driver(gpu: &GpuEvidence, summary: &GpuSummary, checks: &mut Checks) {
    let Some(driver) = &gpu.driver else { return };
    for verified in summary.gpus() {
        let signed = verified.driver_version();
        checks.add(driver.version == signed, DRIVER, format!("{signed}, as the reports say"), &driver.version);
    }
}

type Facts = (&'static str, &'static str, &'static str);
const UNEXPECTED: Facts =
    ("gpu_evidence_unexpected", "gpu", "launch a machine without GPUs, or say by policy (gpu) which are accepted");
const COUNT: Facts =
    ("gpu_count_mismatch", "gpu.reports", "collect a report of every GPU that the configuration names");
const TOO_LARGE: Facts = ("gpu_evidence_too_large", "gpu", "send the evidence of one guest");
const FORM: Facts = ("gpu_evidence_malformed", "gpu", "send the evidence that the guest collected, unchanged");
const DRIVER: Facts =
    ("gpu_driver_contradiction", "gpu.driver.version", "collect evidence and statement from one driver");
