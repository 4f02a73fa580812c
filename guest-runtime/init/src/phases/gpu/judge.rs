// SPDX-License-Identifier: Apache-2.0
//! The guest's own verdict on its GPUs: whether they are genuine, in confidential mode, all there, and answered this boot.
//!
//! Measurements of driver and VBIOS are not compared here: a guest may have no manifests (see [`super::statements`]). The service
//! compares them before it releases a key, and clients before they speak to the guest.

use gpu_verify::{
    GpuAnchors, GpuAppraisal, GpuPolicy, Mode, Requirement, Topology, bound_nonce, devices, driver_state, switches,
};
use types::{GpuEvidence, Hex32, Role};

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// Devices that the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) gpus: u8,
    pub(super) switches: u8,
}

/// Refuses what no guest may let work.
pub(super) fn check(
    gpu: &GpuEvidence,
    expected: Expected,
    instance_key: &Hex32,
    anchors: &GpuAnchors,
    now: u64,
) -> Result<(), Failure> {
    let nonce = bound_nonce(Role::Inference, instance_key, gpu).map_err(Code::GpuEvidenceFailed.because())?;
    let Expected { gpus, switches: switch_count } = expected;
    let with_switches = switch_count > 0;
    let policy = GpuPolicy {
        modes: if with_switches { vec![Mode::Ppcie] } else { vec![Mode::Spt, Mode::Mpt] },
        mode_in_report: Requirement::Optional,
        fwid: Requirement::Optional,
        revocation: Requirement::Optional,
        gpus: Some(gpus.into()),
        topology: if with_switches { Topology::Ppcie8 } else { Topology::Independent },
        ..GpuPolicy::strict()
    };
    let verdict = GpuAppraisal {
        gpus: &devices(gpu),
        switches: &switches(gpu),
        rims: &[],
        ocsp: &[],
        nonce: Some(&nonce),
        driver_state: driver_state(gpu).as_ref(),
        policy: &policy,
        anchors,
        now,
    }
    .appraise_without_measurements();
    if verdict.is_accepted() {
        return Ok(());
    }
    let codes: Vec<_> =
        verdict.reasons().into_iter().map(|reason| format!("{} {}", reason.code, reason.field)).collect();
    Err(Code::GpuRefused.because()(codes.join(", ")))
}

#[cfg(test)]
#[allow(dead_code, unused_imports, unreachable_pub, missing_docs, reason = "made for the verifier's own tests")]
#[path = "../../../../../attestation-service/gpu-verify/tests/synthetic/world/mod.rs"]
pub(super) mod maker;

#[cfg(test)]
mod tests {
    use types::{Base64, GpuDriver, GpuReport};

    use super::{
        maker::{Device, MAKER, NOW},
        *,
    };

    const KEY: Hex32 = Hex32::new([5; 32]);

    fn device(change: impl Fn(&mut Device)) -> GpuReport {
        let mut device = Device::gpu([1; 8]);
        change(&mut device);
        let made = device.make();
        let (report, chain) = (Base64::new(made.report).unwrap(), Base64::new(made.chain).unwrap());
        GpuReport { uuid: "GPU-1".into(), report, chain }
    }

    /// Evidence of one GPU that was asked with the nonce of [`KEY`].
    fn evidence(change: impl Fn(&mut Device)) -> GpuEvidence {
        let driver = GpuDriver { version: "550".into(), confidential: true, dev_tools: false, protected_pcie: false };
        let asked = |reports| GpuEvidence {
            epoch: 1,
            random: Hex32::new([6; 32]),
            reports,
            driver: Some(driver.clone()),
            ..GpuEvidence::NONE
        };
        let nonce = bound_nonce(Role::Inference, &KEY, &asked(vec![device(|_| ())])).unwrap();
        asked(vec![device(|device| {
            device.nonce = nonce;
            change(device);
        })])
    }

    fn refusal(gpu: &GpuEvidence, expected: Expected, anchors: &GpuAnchors, now: u64) -> Option<(Code, String)> {
        let failure = check(gpu, expected, &KEY, anchors, now).err()?;
        Some((failure.code, failure.detail))
    }

    const ONE: Expected = Expected { gpus: 1, switches: 0 };

    #[test]
    fn a_genuine_gpu_in_confidential_mode_may_work() {
        let good = evidence(|_| ());
        assert_eq!(refusal(&good, ONE, &MAKER.anchors(), NOW), None);
        // With what a released program trusts, the test's maker is nobody.
        let (code, detail) = refusal(&good, ONE, &GpuAnchors::nvidia(), NOW).unwrap();
        assert_eq!((code, detail.as_str()), (Code::GpuRefused, "gpu_root_untrusted gpu[0].chain"));
    }

    #[test]
    fn others_may_not() {
        let anchors = MAKER.anchors();
        let refused = |gpu: &GpuEvidence, expected, now, reason: &str| {
            let (code, detail) = refusal(gpu, expected, &anchors, now).unwrap();
            assert_eq!(code, Code::GpuRefused);
            assert!(detail.contains(reason), "{detail}: {reason}");
        };
        let good = evidence(|_| ());
        refused(&evidence(|device| device.nonce = [9; 32]), ONE, NOW, "gpu_nonce");
        refused(&good, Expected { gpus: 2, switches: 0 }, NOW, "gpu_count");
        refused(&good, Expected { gpus: 1, switches: 4 }, NOW, "switch_count");
        refused(&good, ONE, 2_000_000_000, "gpu_certificate_expired");
        refused(&evidence(|device| device.chip = "GA100"), ONE, NOW, "gpu_architecture");
        refused(&evidence(|device| device.set(36, &[3, 0])), ONE, NOW, "gpu_mode");
        let stated = |change: fn(&mut GpuDriver)| {
            let mut gpu = good.clone();
            gpu.driver.as_mut().map(change).unwrap();
            gpu
        };
        refused(&stated(|driver| driver.confidential = false), ONE, NOW, "gpu_cc_off");
        refused(&stated(|driver| driver.dev_tools = true), ONE, NOW, "gpu_dev_tools");
        refused(&stated(|driver| driver.protected_pcie = true), ONE, NOW, "gpu_protected_pcie");
        refused(&GpuEvidence { driver: None, ..good.clone() }, ONE, NOW, "gpu_driver_state_missing");
        let mut forged = good.clone();
        let mut report = forged.reports[0].report.as_slice().to_vec();
        report[60] ^= 1;
        forged.reports[0].report = Base64::new(report).unwrap();
        refused(&forged, ONE, NOW, "gpu_report_signature");
        let unsorted = GpuEvidence { reports: [good.reports.clone(), good.reports.clone()].concat(), ..good };
        let (code, _) = refusal(&unsorted, Expected { gpus: 2, switches: 0 }, &anchors, NOW).unwrap();
        assert_eq!(code, Code::GpuEvidenceFailed);
    }
}
