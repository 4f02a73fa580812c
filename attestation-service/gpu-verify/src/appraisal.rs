// SPDX-License-Identifier: Apache-2.0
//! Evidence of all devices of a guest against manifests and policy.

use crate::{
    GpuAnchors,
    evidence::{Judged, judge_device},
    gpu, nvswitch,
    ocsp::{MAX_ANSWER_LEN, MAX_ANSWERS},
    policy::{DriverState, GpuPolicy, Requirement, Topology},
    rim::{Rim, RimRefused},
    topology,
    verdict::{Checks, GpuVerdict, Rule, absent},
    verified::VerifiedGpu,
};

/// What one device hands out: its report and its certificates.
#[derive(Debug, Clone, Copy)]
pub struct DeviceEvidence<'a> {
    /// SPDM request and response.
    pub report: &'a [u8],
    /// Certificates in PEM, from the leaf to the root.
    pub chain: &'a [u8],
}

/// An appraisal: everything that it looks at.
#[derive(Debug, Clone, Copy)]
pub struct GpuAppraisal<'a> {
    /// GPUs, at most [`MAX_DEVICES`].
    pub gpus: &'a [DeviceEvidence<'a>],
    /// NVSwitches, at most [`MAX_DEVICES`].
    pub switches: &'a [DeviceEvidence<'a>],
    /// Manifests, at most [`MAX_RIMS`]. Every one that was refused refuses the evidence: leave out what is not needed.
    pub rims: &'a [Result<Rim, RimRefused>],
    /// OCSP answers about device certificates (those about manifests were given to [`Rim::verify`]).
    pub ocsp: &'a [Vec<u8>],
    /// The nonce that every device was asked with: [`crate::bound_nonce`] for a guest.
    pub nonce: Option<&'a [u8; 32]>,
    /// What the measured guest states of its driver.
    pub driver_state: Option<&'a DriverState>,
    /// What is acceptable.
    pub policy: &'a GpuPolicy,
    /// Whose devices.
    pub anchors: &'a GpuAnchors,
    /// Seconds since 1970.
    pub now: u64,
}

impl GpuAppraisal<'_> {
    /// Judges everything and gives all independent reasons, in this order: limits, manifests, the driver's statement, each
    /// GPU, each switch, then all of them together.
    pub fn appraise(&self) -> GpuVerdict {
        self.judge(true)
    }

    /// Judges everything but measurements: for a guest without manifests, before it lets its own devices work. The verdict says so,
    /// and gives no [`crate::VerifiedGpuSet`]: whoever decides about keys has to compare them.
    pub fn appraise_without_measurements(&self) -> GpuVerdict {
        self.judge(false)
    }

    fn judge(&self, compare: bool) -> GpuVerdict {
        let mut checks = Checks::default();
        let (mut gpus, mut switches) = (Devices::default(), Devices::default());
        let mut revocation = self.rims.iter().flatten().all(|rim| rim.revocation_checked);
        if self.within_limits(&mut checks) {
            self.check_rims(&mut checks);
            self.check_driver_state(&mut checks);
            self.check_nonce_given(&mut checks);
            gpus = self.each("gpu", self.gpus, &mut checks, |judged, checks| gpu::judge(self, compare, judged, checks));
            switches = self.each("switch", self.switches, &mut checks, |judged, checks| {
                nvswitch::judge(self, compare, judged, checks)
            });
            revocation &= gpus.revocation_checked && switches.revocation_checked;
            self.check_set(&gpus.judged, &mut checks);
            let complete = gpus.judged.len() == self.gpus.len() && switches.judged.len() == self.switches.len();
            if complete && self.policy.topology == Topology::Ppcie8 {
                topology::check(&gpus.judged, &switches.judged, &mut checks);
            }
        }
        let verified = gpus.judged.len().saturating_add(switches.judged.len());
        let accepted = checks.conclude(verified, self.gpus.len().saturating_add(self.switches.len()));
        GpuVerdict {
            accepted,
            hardware: self.anchors.hardware(),
            nonce: if self.nonce.is_some() { "checked" } else { "not_given" },
            revocation: if revocation { "checked" } else { "not_checked" },
            driver_state: if self.driver_state.is_some() { "given" } else { "not_given" },
            measurements: if compare { "compared" } else { "not_compared" },
            expires: self.rims.iter().flatten().map(Rim::expires).fold(gpus.expires.min(switches.expires), u64::min),
            checks: checks.0,
            gpus: gpus.good(),
            switches: switches.good(),
        }
    }

    /// Judges devices of one kind, each by itself.
    fn each<T>(
        &self,
        kind: &str,
        all: &[DeviceEvidence<'_>],
        checks: &mut Checks,
        judge: impl Fn(&Judged<'_>, &mut Checks) -> Option<T>,
    ) -> Devices<T> {
        let mut devices = Devices { revocation_checked: true, ..Devices::default() };
        for (index, evidence) in all.iter().enumerate() {
            let (name, before) = (format!("{kind}[{index}]"), checks.0.len());
            let judged = judge_device(self, &name, *evidence, checks);
            devices.expires = judged.as_ref().map_or(u64::MAX, |judged| judged.expires).min(devices.expires);
            devices.revocation_checked &= judged.as_ref().is_some_and(|judged| judged.revocation_checked);
            if let Some(device) = judged.and_then(|judged| judge(&judged, checks)) {
                devices.judged.push(device);
                devices.passed.push(checks.0.iter().skip(before).all(|check| check.passed));
            }
        }
        devices
    }

    fn within_limits(&self, checks: &mut Checks) -> bool {
        let answers = self.ocsp.len() <= MAX_ANSWERS && self.ocsp.iter().all(|answer| answer.len() <= MAX_ANSWER_LEN);
        let good = self.gpus.len() <= MAX_DEVICES
            && self.switches.len() <= MAX_DEVICES
            && self.rims.len() <= MAX_RIMS
            && answers;
        let expected = format!(
            "at most {MAX_DEVICES} GPUs, {MAX_DEVICES} switches, {MAX_RIMS} manifests, {MAX_ANSWERS} OCSP answers of {MAX_ANSWER_LEN} bytes"
        );
        let found = format!(
            "{} GPUs, {} switches, {} manifests, {} OCSP answers",
            self.gpus.len(),
            self.switches.len(),
            self.rims.len(),
            self.ocsp.len()
        );
        checks.add(good, LIMITS, "evidence", expected, found)
    }

    fn check_rims(&self, checks: &mut Checks) {
        for (index, rim) in self.rims.iter().enumerate() {
            let field = format!("rim[{index}]");
            match rim {
                Ok(rim) => {
                    let found = format!("{} {}", rim.identity.product, rim.identity.version);
                    checks.add(true, RIM, field, "a manifest that is signed and valid", found);
                }
                Err(refused) => {
                    for fault in &refused.faults {
                        let rule = (fault.code(), fault.fix());
                        checks.add(false, rule, &field, "a manifest that is signed and valid", refused.detail(fault));
                    }
                }
            }
        }
    }

    fn check_driver_state(&self, checks: &mut Checks) {
        match self.driver_state {
            None => {
                let good = self.policy.driver_state == Requirement::Optional;
                checks.add(good, DRIVER_STATE, "driver_state", "the guest's statement", absent(good));
            }
            Some(state) => {
                checks.add(state.confidential, CC_OFF, "driver_state.confidential", true, state.confidential);
                checks.add(!state.dev_tools, DEV_TOOLS, "driver_state.dev_tools", false, state.dev_tools);
                let (found, expected) = (state.protected_pcie, self.policy.topology == Topology::Ppcie8);
                checks.add(found == expected, PROTECTED_PCIE, "driver_state.protected_pcie", expected, found);
            }
        }
    }

    fn check_nonce_given(&self, checks: &mut Checks) {
        let good = self.nonce.is_some() || self.policy.nonce == Requirement::Optional;
        let found = if self.nonce.is_some() { "given" } else { absent(good) };
        checks.add(good, NONCE, "nonce", "a nonce to compare with", found);
    }

    fn check_set(&self, gpus: &[VerifiedGpu], checks: &mut Checks) {
        let expected = match (self.policy.topology, self.policy.gpus) {
            (Topology::Ppcie8, _) => Some(topology::GPUS),
            (Topology::Independent, expected) => expected.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        };
        let found = self.gpus.len();
        let good = expected.map_or(found >= 1, |expected| expected == found);
        checks.add(good, COUNT, "gpus", expected.map_or_else(|| "one or more".to_owned(), |n| n.to_string()), found);
        let switches = if self.policy.topology == Topology::Ppcie8 { topology::SWITCHES } else { 0 };
        checks.add(self.switches.len() == switches, SWITCH_COUNT, "switches", switches, self.switches.len());
        let mut seen: Vec<_> = gpus.iter().map(|gpu| gpu.leaf).collect();
        seen.sort_unstable();
        seen.dedup();
        let mut identifiers: Vec<_> = gpus.iter().filter_map(|gpu| gpu.pdi).collect();
        let named = identifiers.len();
        identifiers.sort_unstable();
        identifiers.dedup();
        let distinct = seen.len() == gpus.len() && identifiers.len() == named;
        checks.add(distinct, DUPLICATE, "gpus", "each GPU once", format!("{} of {} differ", seen.len(), gpus.len()));
        let kinds = |gpu: &VerifiedGpu| (gpu.chip.clone(), gpu.driver_version.clone(), gpu.mode);
        let mut kinds: Vec<_> = gpus.iter().map(kinds).collect();
        kinds.dedup();
        let found =
            kinds.iter().map(|(chip, driver, _)| format!("{chip} with {driver}")).collect::<Vec<_>>().join(", ");
        checks.add(kinds.len() <= 1, MIXED, "gpus", "one chip, one driver and one mode", found);
    }
}

/// Devices of one kind.
struct Devices<T> {
    /// Those whose measurements match, or shall not be compared.
    judged: Vec<T>,
    /// Of each, whether its own checks passed.
    passed: Vec<bool>,
    revocation_checked: bool,
    /// Last second (since 1970) of what any of them rests on; without a device there is no end.
    expires: u64,
}

impl<T> Devices<T> {
    /// Those that a verdict may show as verified.
    fn good(self) -> Vec<T> {
        self.judged.into_iter().zip(self.passed).filter_map(|(device, passed)| passed.then_some(device)).collect()
    }
}

impl<T> Default for Devices<T> {
    fn default() -> Self {
        Self { judged: Vec::new(), passed: Vec::new(), revocation_checked: false, expires: u64::MAX }
    }
}

/// Most GPUs, and most switches, of one guest.
pub const MAX_DEVICES: usize = 16;
/// Most manifests for one appraisal.
pub const MAX_RIMS: usize = 16;
const LIMITS: Rule = ("gpu_evidence_too_large", "give the evidence of one guest");
const RIM: Rule = ("rim_malformed", "fetch the manifest again from NVIDIA's RIM service");
const DRIVER_STATE: Rule = ("gpu_driver_state_missing", "collect evidence with an image that states it");
const CC_OFF: Rule = ("gpu_cc_off", "switch confidential mode on and reset the GPU");
const DEV_TOOLS: Rule = ("gpu_dev_tools", "switch DevTools mode off and reset the GPU");
const PROTECTED_PCIE: Rule =
    ("gpu_protected_pcie", "set protected PCIe as the policy's topology needs it, and reset the GPUs and switches");
const NONCE: Rule = ("gpu_nonce_missing", "give the nonce that the guest's keys make");
const COUNT: Rule = ("gpu_count", "give evidence of every GPU of the guest, and a policy for that many");
const SWITCH_COUNT: Rule = ("switch_count", "give evidence of every switch; none without protected PCIe");
const DUPLICATE: Rule = ("gpu_duplicate", "give evidence of each GPU once");
const MIXED: Rule = ("gpu_mixed", "use GPUs of one kind with one driver");
