// SPDX-License-Identifier: Apache-2.0
//! The result of an appraisal of GPU evidence: every check, and what the devices are.

use serde::Serialize;
use types::Refusal;

use crate::verified::{VerifiedGpu, VerifiedGpuSet, VerifiedSwitch};

/// Every check and what it established. Read [`GpuVerdict::is_accepted`] or take [`GpuVerdict::accept`].
#[derive(Debug, Clone, Serialize)]
#[must_use = "a verdict that nobody reads accepts everything"]
pub struct GpuVerdict {
    pub(crate) accepted: bool,
    pub(crate) hardware: &'static str,
    /// `checked`, or `not_given`: then the reports may be copies of older ones.
    pub(crate) nonce: &'static str,
    /// `checked` for every certificate below a root, or `not_checked`.
    pub(crate) revocation: &'static str,
    /// `given`: what the driver told the measured guest; or `not_given`: then DevTools is not excluded.
    pub(crate) driver_state: &'static str,
    /// `compared` with manifests, or `not_compared`: then driver and VBIOS may be any.
    pub(crate) measurements: &'static str,
    #[serde(skip)]
    pub(crate) expires: u64,
    pub(crate) checks: Vec<GpuCheck>,
    /// Devices whose own checks passed, no others.
    pub(crate) gpus: Vec<VerifiedGpu>,
    pub(crate) switches: Vec<VerifiedSwitch>,
}

/// A verdict without its checks, for display beside the checks of other evidence.
#[derive(Debug, Clone, Serialize)]
pub struct GpuSummary {
    hardware: &'static str,
    nonce: &'static str,
    revocation: &'static str,
    driver_state: &'static str,
    measurements: &'static str,
    #[serde(skip)]
    expires: u64,
    gpus: Vec<VerifiedGpu>,
    switches: Vec<VerifiedSwitch>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuCheck {
    /// Code of the refusal, had it failed.
    pub code: &'static str,
    /// What was looked at.
    pub field: String,
    /// Whether it holds.
    pub passed: bool,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// What would make it pass.
    pub fix: &'static str,
}

impl GpuVerdict {
    /// True when every check passed.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// All reasons for a refusal, in the order of the checks.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        self.checks.iter().filter(|check| !check.passed).map(GpuCheck::refusal).collect()
    }

    /// Last second (since 1970) at which all that it rests on is valid: certificates of devices and manifests, and the OCSP answers
    /// about them. It means nothing for a verdict that is not accepted.
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }

    /// Every check, in order.
    #[must_use]
    pub fn checks(&self) -> &[GpuCheck] {
        &self.checks
    }

    /// The devices, once every check passed and measurements were compared.
    ///
    /// # Errors
    /// All reasons for the refusal; never empty.
    pub fn accept(self) -> Result<VerifiedGpuSet, Vec<Refusal>> {
        if self.measurements != "compared" {
            let detail = "expected measurements compared with manifests; found none compared";
            let fix = "appraise with the manifests of driver and VBIOS";
            let mut reasons = self.reasons();
            reasons.push(Refusal::new("measurements_not_compared", "rims", detail.to_owned(), fix));
            return Err(reasons);
        }
        if self.accepted {
            return Ok(VerifiedGpuSet { gpus: self.gpus, switches: self.switches });
        }
        Err(self.reasons())
    }
}

impl GpuVerdict {
    /// Every check, and the rest for display.
    #[must_use]
    pub fn into_parts(self) -> (Vec<GpuCheck>, GpuSummary) {
        let Self {
            accepted: _,
            hardware,
            nonce,
            revocation,
            driver_state,
            measurements,
            expires,
            checks,
            gpus,
            switches,
        } = self;
        (checks, GpuSummary { hardware, nonce, revocation, driver_state, measurements, expires, gpus, switches })
    }
}

impl GpuSummary {
    /// As [`GpuVerdict::expires`].
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }

    /// The switches whose own checks passed.
    #[must_use]
    pub fn switches(&self) -> &[VerifiedSwitch] {
        &self.switches
    }

    /// Whose devices.
    #[must_use]
    pub const fn hardware(&self) -> &'static str {
        self.hardware
    }

    /// `checked` for every certificate below a root, or `not_checked`.
    #[must_use]
    pub const fn revocation(&self) -> &'static str {
        self.revocation
    }

    /// `given`: what the driver told the measured guest; or `not_given`.
    #[must_use]
    pub const fn driver_state(&self) -> &'static str {
        self.driver_state
    }

    /// The GPUs whose own checks passed: those that need no other device and no statement of the driver. They were accepted if the
    /// verdict is.
    #[must_use]
    pub fn gpus(&self) -> &[VerifiedGpu] {
        &self.gpus
    }
}

impl GpuCheck {
    fn refusal(&self) -> Refusal {
        let detail = format!("expected {}; found {}", self.expected, self.found);
        Refusal::new(self.code, &self.field, detail, self.fix)
    }
}

/// What is found where there is nothing: nobody shall read a missing thing as a good one.
pub(crate) const fn absent(passed: bool) -> &'static str {
    if passed { "none, and the policy asks for none" } else { "none" }
}

/// Code, and what would make the check pass.
pub(crate) type Rule = (&'static str, &'static str);

/// Collects checks in order. Fields of one device stand under its name.
#[derive(Debug, Default)]
pub(crate) struct Checks(pub(crate) Vec<GpuCheck>);

impl Checks {
    pub(crate) fn add(
        &mut self,
        passed: bool,
        (code, fix): Rule,
        field: impl core::fmt::Display,
        expected: impl core::fmt::Display,
        found: impl core::fmt::Display,
    ) -> bool {
        let (field, expected, found) = (field.to_string(), expected.to_string(), found.to_string());
        self.0.push(GpuCheck { code, field, passed, expected, found, fix });
        passed
    }

    /// Whether everything holds. Where every check does, a last one notes that every device has a verified result: one without is
    /// refused even if no check said why.
    pub(crate) fn conclude(&mut self, verified: usize, devices: usize) -> bool {
        let passed = self.0.iter().all(|check| check.passed);
        let expected = format!("a verified result of each of {devices} devices, at least one");
        passed && self.add(devices > 0 && verified == devices, UNVERIFIED, "evidence", expected, verified)
    }
}

const UNVERIFIED: Rule = ("gpu_unverified", "give the report, certificates and manifests of every device");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_result_is_a_reason_of_its_own() {
        const OTHER: Rule = ("other", "fix");
        for (verified, devices, good) in [(1, 1, true), (1, 2, false), (0, 1, false), (0, 0, false)] {
            let mut checks = Checks::default();
            checks.add(true, OTHER, "other", "good", "good");
            assert_eq!(checks.conclude(verified, devices), good, "{verified} of {devices}");
            let [_, last] = checks.0.as_slice() else { panic!("{checks:?}") };
            assert_eq!((last.code, last.passed), ("gpu_unverified", good));
        }
        let mut failed = Checks::default();
        failed.add(false, OTHER, "other", "good", "bad");
        assert!(!failed.conclude(1, 1));
        assert_eq!(failed.0.len(), 1, "it was said why");
    }
}
