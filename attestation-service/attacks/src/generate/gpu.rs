// SPDX-License-Identifier: Apache-2.0
//! Evidence of GPUs of a maker that exists for tests: devices, manifests and OCSP answers, bad in one way each.
//!
//! A device's nonce is made of the guest's instance key, epoch and randomness, and of no challenge: recorded reports fit
//! any guest that has the same three. Those of the runner's guests are fixed.

#[path = "../../../gpu-verify/tests/synthetic/world/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the tests' own maker, which fails loudly"
)]
mod maker;

use std::path::Path;

use anyhow::{Context as _, Result};
use attested_channel::gpu_nonce;
use gpu_verify::{DriverState, GpuPolicy, Mode, Requirement, Topology};
use maker::{Device, MAKER, Made as Report, OcspStatus, RimSpec, answer};
use types::{Hex32, Role};

use super::Made;
use crate::case::{GpuGuest, Run};
use crate::gpu::{EPOCH, INSTANCE, RANDOM};

/// Writes the cases under `out`; gives their number.
///
/// # Errors
/// A file can't be written.
pub fn gpus(out: &Path) -> Result<usize> {
    maker::LAST_YEAR.store(2099, std::sync::atomic::Ordering::Relaxed);
    let common = out.join("common");
    std::fs::create_dir_all(&common).with_context(|| common.display().to_string())?;
    let roots = [&MAKER.device, &MAKER.rim].map(|chain| chain.first().map(|root| types::Sha256Digest::of(&root.der)));
    let roots: String = roots.into_iter().flatten().map(|root| format!("{root}\n")).collect();
    std::fs::write(common.join("gpu-roots.txt"), roots)?;
    for (name, rim) in [("driver", RimSpec::driver()), ("vbios", RimSpec::vbios()), ("switch", RimSpec::switch())] {
        std::fs::write(common.join(format!("{name}-rim.xml")), rim.xml())?;
    }
    let machine = Machine::new(|_, _| ());
    for (index, made) in machine.gpus.iter().enumerate() {
        std::fs::write(common.join(format!("ppcie-gpu-{index}.bin")), &made.report)?;
        std::fs::write(common.join(format!("ppcie-gpu-{index}.pem")), &made.chain)?;
    }
    for (index, made) in machine.switches.iter().enumerate() {
        std::fs::write(common.join(format!("ppcie-switch-{index}.bin")), &made.report)?;
        std::fs::write(common.join(format!("ppcie-switch-{index}.pem")), &made.chain)?;
    }
    let mut cases = devices()?;
    cases.extend(manifests()?);
    cases.extend(sets()?);
    cases.extend(switches(&machine)?);
    for case in &cases {
        case.write(out)?;
    }
    Ok(cases.len())
}

/// With one GPU, asked by the runner's guest.
fn case(name: &str, title: &str, expected: &[(&str, &str)]) -> Result<Made> {
    let origin = "simulated: a maker of GPUs for tests (gpu-verify), keys of one run";
    let mut made = Made::new(Run::Gpu, name, title, origin, expected)?.common("root", "gpu-roots.txt");
    made.case.arguments = vec!["--nonce".to_owned(), hex::encode(nonce(&INSTANCE))];
    made.case.gpu = Some(GpuGuest { configured: 1, driver: "550.10".to_owned(), gone: 0 });
    Ok(made)
}

impl Made {
    fn gpu(self, report: &Report) -> Self {
        let number = self.case.inputs.get("report").map_or(0, Vec::len);
        self.own("report", &format!("gpu-{number}.bin"), report.report.clone()).own(
            "chain",
            &format!("gpu-{number}.pem"),
            report.chain.clone(),
        )
    }

    fn rims(self) -> Self {
        self.common("rim", "driver-rim.xml").common("rim", "vbios-rim.xml")
    }

    fn driver(self, confidential: bool, dev_tools: bool, protected_pcie: bool) -> Result<Self> {
        let state = DriverState { confidential, dev_tools, protected_pcie };
        Ok(self.own("driver-state", "driver-state.json", serde_json::to_vec(&state)?))
    }

    fn policy(self, change: impl FnOnce(&mut GpuPolicy)) -> Result<Self> {
        let mut policy = GpuPolicy { revocation: Requirement::Optional, ..GpuPolicy::strict() };
        change(&mut policy);
        Ok(self.own("policy", "policy.json", serde_json::to_vec_pretty(&policy)?))
    }

    fn configured(mut self, configured: u8) -> Self {
        if let Some(gpu) = &mut self.case.gpu {
            gpu.configured = configured;
        }
        self
    }

    fn gone(mut self, gone: u8) -> Self {
        if let Some(gpu) = &mut self.case.gpu {
            gpu.gone = gone;
        }
        self
    }

    /// Good manifests, driver and policy.
    fn complete(self) -> Result<Self> {
        self.rims().driver(true, false, false)?.policy(|_| ())
    }
}

fn nonce(instance: &Hex32) -> [u8; 32] {
    *gpu_nonce(Role::Inference, instance, &Hex32::default(), EPOCH, &RANDOM).as_bytes()
}

fn pdi(number: u8) -> [u8; 8] {
    [0x20, 1, 2, 3, 4, 5, 6, number]
}

/// A device that the runner's guest asked.
fn asked(number: u8) -> Device {
    let mut device = Device::gpu(pdi(number));
    device.nonce = nonce(&INSTANCE);
    device
}

fn with(change: impl FnOnce(&mut Device)) -> Report {
    let mut device = asked(0);
    change(&mut device);
    device.make()
}

/// Attacks 9, 39 to 42, 47: one device.
fn devices() -> Result<Vec<Made>> {
    let good = asked(0).make();
    let asked_otherwise = ("gpu_nonce", "gpu[0].report.nonce");
    let ocsp = MAKER.device.get(2).zip(MAKER.device.get(1)).context("the maker's authorities")?;
    let revoked = answer(&ocsp.0.der, ocsp.1, OcspStatus::Revoked, "20251201", "20990101");
    let dated = |from: i32, until: i32| {
        asked(0).make_under(&MAKER.device, move |place, params| {
            if place == 0 {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(until, 1, 1);
            }
        })
    };
    let exchanged = Report { chain: asked(1).make().chain, report: good.report.clone() };
    Ok(vec![
        case("00-gpu", "a GPU as it should be", &[])?.gpu(&good).complete()?,
        case(
            "09-revoked-gpu",
            "the maker revoked the authority of the device",
            &[("gpu_revoked", "gpu[0].chain[2].revocation")],
        )?
        .gpu(&good)
        .complete()?
        .own("ocsp", "revoked.der", revoked),
        case("39-nonce", "a report that was asked for with another nonce", &[asked_otherwise])?
            .gpu(&with(|device| device.nonce = [1; 32]))
            .complete()?,
        case("40-other-guest", "a report that another guest asked for, with its own key", &[asked_otherwise])?
            .gpu(&with(|device| device.nonce = nonce(&Hex32::new([4; 32]))))
            .complete()?,
        case(
            "40-other-device",
            "the report of one device with the certificates of another",
            &[("gpu_report_signature", "gpu[0].report.signature")],
        )?
        .gpu(&exchanged)
        .complete()?,
        case("41-dev-tools", "DevTools mode", &[("gpu_dev_tools", "driver_state.dev_tools")])?
            .gpu(&good)
            .rims()
            .driver(true, true, false)?
            .policy(|_| ())?,
        case(
            "42-confidential-off",
            "confidential mode is off, as the driver says",
            &[("gpu_cc_off", "driver_state.confidential")],
        )?
        .gpu(&good)
        .rims()
        .driver(false, false, false)?
        .policy(|_| ())?,
        case(
            "42-mode-of-the-report",
            "a mode that the policy does not name, as the report says",
            &[("gpu_mode", "gpu[0].report.mode")],
        )?
        .gpu(&with(|device| device.set(36, &[9, 0])))
        .complete()?,
        case("42-no-mode", "a report that does not say its mode", &[("gpu_mode", "gpu[0].report.mode")])?
            .gpu(&with(|device| device.remove(36)))
            .complete()?,
        case(
            "47-not-yet",
            "a certificate of the future: the device's clock, or the verifier's, is wrong",
            &[("gpu_certificate_not_yet_valid", "gpu[0].chain")],
        )?
        .gpu(&dated(2098, 2099))
        .complete()?,
        case("47-ended", "a certificate that has ended", &[("gpu_certificate_expired", "gpu[0].chain")])?
            .gpu(&dated(2024, 2025))
            .complete()?,
    ])
}

/// Attack 46.
fn manifests() -> Result<Vec<Made>> {
    let good = asked(0).make();
    let dated = |from: i32, until: i32| {
        RimSpec::driver().xml_by(&MAKER.rim, move |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        })
    };
    let one = |name: &str, title: &str, expected: &[(&str, &str)]| -> Result<Made> {
        case(name, title, expected)?.gpu(&good).driver(true, false, false)?.policy(|_| ())
    };
    let refused = ("rim_refused", "gpu[0].rim.driver");
    let mut changed = RimSpec::driver().xml();
    let place = changed.windows(9).position(|window| window == b"ns2:Hash0").context("a value")?.saturating_add(11);
    if let Some(byte) = changed.get_mut(place) {
        *byte = if *byte == b'0' { b'1' } else { b'0' };
    }
    let strangers = maker::authorities(&["Other root", "Other values", "Other L3"]);
    Ok(vec![
        one("46-rim-missing", "no manifest of the driver", &[("rim_missing", "gpu[0].rim.driver")])?
            .common("rim", "vbios-rim.xml"),
        one(
            "46-rims-missing",
            "no manifest at all",
            &[("rim_missing", "gpu[0].rim.driver"), ("rim_missing", "gpu[0].rim.vbios")],
        )?,
        case(
            "46-mismatch-driver",
            "a value that the driver's manifest does not have",
            &[("measurement_mismatch", "gpu[0].measurements.driver[8]")],
        )?
        .gpu(&with(|device| device.changed = vec![(9, [0; 48])]))
        .complete()?,
        case(
            "46-mismatch-vbios",
            "a value that the VBIOS manifest does not have",
            &[("measurement_mismatch", "gpu[0].measurements.vbios[1]")],
        )?
        .gpu(&with(|device| device.changed = vec![(2, [0; 48])]))
        .complete()?,
        one("46-rim-expired", "the manifest's signer has ended", &[("rim_expired", "rim[0]"), refused])?
            .own("rim", "driver-rim.xml", dated(2024, 2025))
            .common("rim", "vbios-rim.xml"),
        one("46-rim-changed", "a value of the manifest was changed", &[("rim_signature", "rim[0]"), refused])?
            .own("rim", "driver-rim.xml", changed)
            .common("rim", "vbios-rim.xml"),
        one("46-rim-other-root", "a manifest under another root", &[("rim_root_untrusted", "rim[0]"), refused])?
            .own("rim", "driver-rim.xml", RimSpec::driver().xml_by(&strangers, |_| ()))
            .common("rim", "vbios-rim.xml"),
    ])
}

/// Attacks 43, 44, 48: several devices.
fn sets() -> Result<Vec<Made>> {
    let two = |name: &str, title: &str, expected: &[(&str, &str)]| -> Result<Made> {
        Ok(case(name, title, expected)?
            .rims()
            .driver(true, false, false)?
            .policy(|policy| policy.gpus = Some(2))?
            .configured(2))
    };
    let (first, second) = (asked(0).make(), asked(1).make());
    let mut other = asked(9);
    other.set(36, &[0, 0]);
    let mut generation = asked(9);
    generation.chip = "GB100";
    generation.set(3, b"575.32");
    let driver = RimSpec { product: "GB100", version: "575.32", ..RimSpec::driver() };
    let vbios = RimSpec { product: "GB100", ..RimSpec::vbios() };
    let count = ("gpu_count", "gpus");
    let configured = ("gpu_count_mismatch", "gpu.reports");
    Ok(vec![
        two("00-gpu-two", "two GPUs as they should be", &[])?.gpu(&first).gpu(&second),
        two("43-fewer", "one of two GPUs", &[count])?.wire(&[configured, count]).gpu(&first),
        two("43-more", "three GPUs for two", &[count])?
            .wire(&[configured, count])
            .gpu(&first)
            .gpu(&second)
            .gpu(&asked(2).make()),
        two("43-twice", "one GPU under two certificates", &[("gpu_duplicate", "gpus")])?
            .gpu(&first)
            .gpu(&asked(0).make()),
        two("44-generations", "two generations", &[("gpu_mixed", "gpus")])?
            .wire(&[("gpu_mixed", "gpus"), ("gpu_driver_contradiction", "gpu.driver.version")])
            .gpu(&first)
            .gpu(&generation.make())
            .own("rim", "driver-2-rim.xml", driver.xml())
            .own("rim", "vbios-2-rim.xml", vbios.xml()),
        two("44-modes", "two modes", &[("gpu_mixed", "gpus")])?.gpu(&first).gpu(&other.make()),
        two("48-removed", "a GPU that is gone after the boot measured it", &[count])?
            .wire(&[("rtmr3_event_payload", "events"), ("register_mismatch", "rtmr_3"), configured, count])
            .gpu(&first)
            .gone(1)
            .configured(2),
    ])
}

/// Eight GPUs and four switches in protected PCIe mode.
struct Machine {
    gpus: Vec<Report>,
    switches: Vec<Report>,
}

impl Machine {
    fn new(change: impl Fn(&mut [Device], &mut [Device])) -> Self {
        let own: Vec<_> = (0..8).map(pdi).collect();
        let names: Vec<_> = (100..104).map(pdi).collect();
        let links: Vec<u8> = names.iter().chain([&[0; 8]]).flat_map(|pdi| pdi.iter().rev().copied()).collect();
        let mut gpus: Vec<_> = (0..8).map(asked).collect();
        for gpu in &mut gpus {
            gpu.set(36, &[2, 0]);
            gpu.set(21, &[0xaa]);
            gpu.set(22, &links);
        }
        let switch = |pdi: &[u8; 8]| Device { nonce: nonce(&INSTANCE), ..Device::switch(*pdi, &own) };
        let mut switches: Vec<_> = names.iter().map(switch).collect();
        change(&mut gpus, &mut switches);
        Self { gpus: gpus.iter().map(Device::make).collect(), switches: switches.iter().map(Device::make).collect() }
    }
}

/// Attack 45. Devices that a case does not change are those in `../common`.
fn switches(good: &Machine) -> Result<Vec<Made>> {
    let eight = |name: &str, title: &str, expected: &[(&str, &str)]| -> Result<Made> {
        Ok(case(name, title, expected)?
            .rims()
            .common("rim", "switch-rim.xml")
            .driver(true, false, true)?
            .policy(|policy| {
                policy.topology = Topology::Ppcie8;
                policy.modes = vec![Mode::Ppcie];
                policy.gpus = None;
            })?
            .configured(8))
    };
    let gpus = |mut made: Made, own: Option<(usize, Report)>| {
        for index in 0..good.gpus.len() {
            made = match &own {
                Some((place, report)) if *place == index => made
                    .own("report", &format!("gpu-{index}.bin"), report.report.clone())
                    .own("chain", &format!("gpu-{index}.pem"), report.chain.clone()),
                _ => made
                    .common("report", &format!("ppcie-gpu-{index}.bin"))
                    .common("chain", &format!("ppcie-gpu-{index}.pem")),
            };
        }
        made
    };
    let switches = |mut made: Made, count: usize, own: Option<(usize, Report)>| {
        for index in 0..count {
            made = match &own {
                Some((place, report)) if *place == index => made
                    .own("switch-report", &format!("switch-{index}.bin"), report.report.clone())
                    .own("switch-chain", &format!("switch-{index}.pem"), report.chain.clone()),
                _ => made
                    .common("switch-report", &format!("ppcie-switch-{index}.bin"))
                    .common("switch-chain", &format!("ppcie-switch-{index}.pem")),
            };
        }
        made
    };
    let own: Vec<_> = (0..8).map(pdi).collect();
    let switch = |pdi: [u8; 8], change: fn(&mut Device)| {
        let mut device = Device { nonce: nonce(&INSTANCE), ..Device::switch(pdi, &own) };
        change(&mut device);
        device.make()
    };
    let unlinked = Machine::new(|gpus, _| {
        if let Some(gpu) = gpus.get_mut(2) {
            gpu.set(22, &[0; 16]);
        }
    });
    let unlinked = unlinked.gpus.into_iter().nth(2).context("the third GPU")?;
    let missing = |gpu: usize| format!("gpu[{gpu}].report.switches");
    let names: Vec<_> = (0..8).map(missing).collect();
    let all_missing: Vec<_> = names.iter().map(|name| ("switch_missing", name.as_str())).collect();
    let fewer: Vec<_> = core::iter::once(("switch_count", "switches")).chain(all_missing.iter().copied()).collect();
    Ok(vec![
        switches(gpus(eight("00-gpu-eight", "eight GPUs and four switches", &[])?, None), 4, None),
        switches(gpus(eight("45-switch-missing", "three of four switches", &fewer)?, None), 3, None),
        switches(
            gpus(eight("45-stranger", "a switch that no GPU is linked to", &all_missing)?, None),
            4,
            Some((3, switch(pdi(110), |_| ()))),
        ),
        switches(
            gpus(
                eight(
                    "45-unlinked",
                    "a GPU that is linked to no switch",
                    &[("switch_topology", "gpu[2].report.switches")],
                )?,
                Some((2, unlinked)),
            ),
            4,
            None,
        ),
        switches(
            gpus(
                eight("45-unlocked", "a switch that is not locked", &[("switch_unlocked", "switch[1].report.lock")])?,
                None,
            ),
            4,
            Some((1, switch(pdi(101), |device| device.set(25, &[0, 0])))),
        ),
    ])
}
