// SPDX-License-Identifier: Apache-2.0
//! Every refusal, from devices, manifests and OCSP answers of a maker made for the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "tests fail loudly, and are no library"
)]

mod devices;
mod manifests;
mod properties;
mod revocation;
mod sets;
mod world;

use gpu_verify::{DeviceEvidence, DriverState, GpuAppraisal, GpuPolicy, GpuVerdict, Requirement, Rim, RimRefused};
use world::{Device, MAKER, Made, NONCE, NOW, RimSpec};

/// A whole appraisal that is accepted; tests change one thing.
struct Scenario {
    gpus: Vec<Made>,
    switches: Vec<Made>,
    rims: Vec<Vec<u8>>,
    ocsp: Vec<Vec<u8>>,
    rim_revocation: Requirement,
    nonce: Option<[u8; 32]>,
    driver_state: Option<DriverState>,
    policy: GpuPolicy,
    now: u64,
}

impl Scenario {
    /// One GPU under the strict policy, but for revocation, which has its own tests.
    fn one(device: &Device) -> Self {
        Self {
            gpus: vec![device.make()],
            switches: Vec::new(),
            rims: vec![RimSpec::driver().xml(), RimSpec::vbios().xml()],
            ocsp: Vec::new(),
            rim_revocation: Requirement::Optional,
            nonce: Some(NONCE),
            driver_state: Some(DriverState { confidential: true, dev_tools: false, protected_pcie: false }),
            policy: GpuPolicy { revocation: Requirement::Optional, ..GpuPolicy::strict() },
            now: NOW,
        }
    }

    fn verdict(&self) -> GpuVerdict {
        let rims: Vec<_> = self.rims.iter().map(|xml| self.rim(xml)).collect();
        self.with(&rims, |appraisal| appraisal.appraise())
    }

    fn without_measurements(&self) -> GpuVerdict {
        self.with(&[], |appraisal| appraisal.appraise_without_measurements())
    }

    fn with(
        &self,
        rims: &[Result<Rim, RimRefused>],
        appraise: impl FnOnce(GpuAppraisal<'_>) -> GpuVerdict,
    ) -> GpuVerdict {
        appraise(GpuAppraisal {
            gpus: &evidence(&self.gpus),
            switches: &evidence(&self.switches),
            rims,
            ocsp: &self.ocsp,
            nonce: self.nonce.as_ref(),
            driver_state: self.driver_state.as_ref(),
            policy: &self.policy,
            anchors: &MAKER.anchors(),
            now: self.now,
        })
    }

    fn rim(&self, xml: &[u8]) -> Result<Rim, RimRefused> {
        Rim::verify(xml, &MAKER.anchors(), &self.ocsp, self.rim_revocation, self.now)
    }

    /// Codes of failed checks, in order, each once.
    fn codes(&self) -> Vec<&'static str> {
        let verdict = self.verdict();
        let mut codes: Vec<_> = verdict.checks().iter().filter(|check| !check.passed).map(|check| check.code).collect();
        assert_eq!(verdict.is_accepted(), codes.is_empty(), "{:#?}", verdict.checks());
        assert_eq!(verdict.reasons().len(), codes.len());
        codes.dedup();
        assert_eq!(verdict.accept().is_ok(), codes.is_empty());
        codes
    }
}

fn evidence(made: &[Made]) -> Vec<DeviceEvidence<'_>> {
    made.iter().map(|made| DeviceEvidence { report: &made.report, chain: &made.chain }).collect()
}

const PDI: [u8; 8] = [0x48, 0xb0, 0x2d, 0xb7, 0x3e, 0x52, 0x13, 0x7e];
