// SPDX-License-Identifier: Apache-2.0
//! Several GPUs, and eight with their switches in protected PCIe mode.

use gpu_verify::{DriverState, GpuPolicy, Mode, Requirement, Topology, bound_nonce, devices, driver_state, switches};
use types::{Base64, GpuDriver, GpuEvidence, GpuReport, Hex32, Role};

use crate::{
    Scenario,
    world::{Device, RimSpec},
};

fn pdi(number: u8) -> [u8; 8] {
    [0x20, 1, 2, 3, 4, 5, 6, number]
}

fn several(count: u8) -> Scenario {
    let mut scenario = Scenario::one(&Device::gpu(pdi(0)));
    scenario.gpus = (0..count).map(|number| Device::gpu(pdi(number)).make()).collect();
    scenario.policy.gpus = Some(2);
    scenario
}

/// What an eight-GPU machine hands out, with changes to its devices.
fn machine(change: impl Fn(&mut [Device], &mut [Device])) -> Scenario {
    let own: Vec<_> = (0..8).map(pdi).collect();
    let switches: Vec<_> = (100..104).map(pdi).collect();
    let links: Vec<u8> = switches.iter().chain([&[0; 8]]).flat_map(|pdi| pdi.iter().rev().copied()).collect();
    let mut gpus: Vec<_> = own.iter().map(|pdi| Device::gpu(*pdi)).collect();
    for gpu in &mut gpus {
        gpu.set(36, &[2, 0]);
        gpu.set(21, &[0xaa]);
        gpu.set(22, &links);
    }
    let mut switches: Vec<_> = switches.iter().map(|pdi| Device::switch(*pdi, &own)).collect();
    change(&mut gpus, &mut switches);
    let mut scenario = several(0);
    scenario.gpus = gpus.iter().map(Device::make).collect();
    scenario.switches = switches.iter().map(Device::make).collect();
    scenario.rims.push(RimSpec::switch().xml());
    scenario.driver_state = Some(DriverState { confidential: true, dev_tools: false, protected_pcie: true });
    scenario.policy = GpuPolicy {
        topology: Topology::Ppcie8,
        modes: vec![Mode::Ppcie],
        gpus: None,
        revocation: Requirement::Optional,
        ..GpuPolicy::strict()
    };
    scenario
}

#[test]
fn attack_43_fewer_or_more_gpus() {
    assert_eq!(several(2).codes(), [""; 0]);
    assert_eq!(several(1).codes(), ["gpu_count"]);
    assert_eq!(several(3).codes(), ["gpu_count"]);
    assert_eq!(several(0).codes(), ["gpu_count"]);
    let mut any = several(0);
    any.policy.gpus = None;
    assert_eq!(any.codes(), ["gpu_count"]);
    let mut same = several(2);
    same.gpus[1] = same.gpus[0].clone();
    assert_eq!(same.codes(), ["gpu_duplicate"]);
    // Another certificate for the same device.
    same.gpus[1] = Device::gpu(pdi(0)).make();
    assert_eq!(same.codes(), ["gpu_duplicate"]);
    let mut many = several(1);
    many.gpus = vec![many.gpus[0].clone(); gpu_verify::MAX_DEVICES + 1];
    assert_eq!(many.codes(), ["gpu_evidence_too_large"]);
}

#[test]
fn attack_44_mixed_generations() {
    let mut scenario = several(2);
    let mut other = Device::gpu(pdi(9));
    other.chip = "GB100";
    other.set(3, b"575.32");
    scenario.gpus[1] = other.make();
    let driver = RimSpec { product: "GB100", version: "575.32", ..RimSpec::driver() };
    let mut vbios = RimSpec::vbios();
    vbios.product = "GB100";
    scenario.rims.extend([driver.xml(), vbios.xml()]);
    assert_eq!(scenario.codes(), ["gpu_mixed"]);
    let mut modes = several(2);
    let mut other = Device::gpu(pdi(9));
    other.set(36, &[0, 0]);
    modes.gpus[1] = other.make();
    assert_eq!(modes.codes(), ["gpu_mixed"]);
}

#[test]
fn attack_45_switches() {
    let good = machine(|_, _| {});
    assert_eq!(good.codes(), [""; 0]);
    let set = good.verdict().accept().unwrap();
    assert_eq!((set.gpus().len(), set.switches().len()), (8, 4));
    assert_eq!(set.switches()[0].pdi().0, pdi(100));

    let mut unprotected = machine(|_, _| {});
    unprotected.driver_state.as_mut().unwrap().protected_pcie = false;
    assert_eq!(unprotected.codes(), ["gpu_protected_pcie"]);
    let mut fewer = machine(|_, _| {});
    fewer.switches.pop();
    assert_eq!(fewer.codes(), ["switch_count", "switch_missing"]);
    let mut seven = machine(|_, _| {});
    seven.gpus.pop();
    assert_eq!(seven.codes(), ["gpu_count", "switch_topology"]);
    let mut twice = machine(|_, _| {});
    twice.switches[3] = twice.switches[0].clone();
    assert_eq!(twice.codes(), ["switch_topology", "switch_missing"]);
    // A switch that no GPU is linked to, a GPU that no switch is linked to, a switch with another's name.
    let stranger = machine(|_, switches| {
        switches[3] = Device::switch(pdi(110), &(0..8).map(pdi).collect::<Vec<_>>());
    });
    assert_eq!(stranger.codes(), ["switch_missing"]);
    let outside = machine(|gpus, _| gpus[7].pdi = pdi(50));
    assert_eq!(outside.codes(), ["switch_topology"]);
    let named = machine(|_, switches| switches[0].pdi = pdi(77));
    assert_eq!(named.codes(), ["switch_identity"]);
    let unlinked = machine(|gpus, _| gpus[2].set(22, &[0; 16]));
    assert_eq!(unlinked.codes(), ["switch_topology"]);
    let unlocked = machine(|_, switches| switches[1].set(25, &[0, 0]));
    assert_eq!(unlocked.codes(), ["switch_unlocked"]);
    let changed = machine(|_, switches| switches[1].changed = vec![(1, [0; 48])]);
    assert_eq!(changed.codes(), ["measurement_mismatch"]);
    let nonce = machine(|_, switches| switches[1].nonce = [1; 32]);
    assert_eq!(nonce.codes(), ["gpu_nonce"]);
    let alone = machine(|gpus, _| gpus[0].set(36, &[1, 0]));
    assert_eq!(alone.codes(), ["gpu_mode_contradiction", "gpu_mode", "gpu_mixed", "switch_topology"]);
    let mut no_manifest = machine(|_, _| {});
    no_manifest.rims.pop();
    assert!(no_manifest.codes().contains(&"rim_version"), "the GPUs' VBIOS manifest is of another version");
    for (kind, value) in [(22, [0; 7].as_slice()), (26, &[0; 63]), (30, &[0])] {
        let malformed = machine(|_, switches| switches[1].set(kind, value));
        assert_eq!(malformed.codes(), ["gpu_report_malformed"], "{kind}");
    }
}

/// What a refused verdict names is verified for itself.
#[test]
fn devices_with_a_failed_check_are_not_named() {
    let named = |scenario: &Scenario| {
        let json = serde_json::to_value(scenario.verdict()).unwrap();
        let pdis = |kind: &str| -> Vec<_> { json[kind].as_array().unwrap().iter().map(|d| d["pdi"].clone()).collect() };
        (pdis("gpus"), pdis("switches").len())
    };
    assert_eq!(named(&several(2)).0.len(), 2);
    let good = |number| hex(&pdi(number));
    let mut nonce = several(2);
    let mut other = Device::gpu(pdi(1));
    other.nonce = [9; 32];
    nonce.gpus[1] = other.make();
    assert_eq!(nonce.codes(), ["gpu_nonce"]);
    assert_eq!(named(&nonce).0, [good(0)]);
    let mut signature = several(2);
    let end = signature.gpus[0].report.len() - 1;
    signature.gpus[0].report[end] ^= 1;
    assert_eq!(signature.codes(), ["gpu_report_signature"]);
    assert_eq!(named(&signature).0, [good(1)]);
    // Too many for the policy, each good for itself.
    assert_eq!(named(&several(3)).0.len(), 3);
    let unlocked = machine(|_, switches| switches[1].set(25, &[0, 0]));
    assert_eq!((named(&unlocked).0.len(), named(&unlocked).1), (8, 3));
}

fn hex(pdi: &[u8]) -> String {
    pdi.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn kinds_are_not_confused() {
    let mut switch_as_gpu = several(2);
    switch_as_gpu.gpus[1] = Device::switch(pdi(100), &[]).make();
    assert_eq!(switch_as_gpu.codes(), ["gpu_report_malformed"]);
    let mut gpu_as_switch = machine(|_, _| {});
    gpu_as_switch.switches[0] = gpu_as_switch.gpus[0].clone();
    assert_eq!(gpu_as_switch.codes(), ["gpu_report_malformed"]);
    let mut unneeded = several(2);
    unneeded.switches = vec![Device::switch(pdi(100), &[pdi(0); 8]).make()];
    unneeded.rims.push(RimSpec::switch().xml());
    assert_eq!(unneeded.codes(), ["switch_count"]);
}

#[test]
fn the_nonce_of_a_guest_is_made_of_its_keys() {
    let report = |uuid: &str| GpuReport {
        uuid: uuid.to_owned(),
        report: Base64::new(vec![1]).unwrap(),
        chain: Base64::new(vec![2]).unwrap(),
    };
    let instance = Hex32::new([1; 32]);
    let good = GpuEvidence {
        epoch: 1,
        random: Hex32::new([3; 32]),
        reports: vec![report("GPU-a"), report("GPU-b")],
        ..GpuEvidence::NONE
    };
    let nonce = |gpu: &GpuEvidence| bound_nonce(Role::Inference, &instance, gpu);
    let expected = attested_channel::gpu_nonce(Role::Inference, &instance, &Hex32::default(), 1, &good.random);
    assert_eq!(nonce(&good).unwrap(), *expected.as_bytes());
    assert_eq!(devices(&good).len(), 2);
    assert_eq!((devices(&good)[0].report, devices(&good)[0].chain), ([1].as_slice(), [2].as_slice()));
    assert!(nonce(&GpuEvidence { reports: Vec::new(), ..good.clone() }).is_err());
    assert!(nonce(&GpuEvidence { epoch: 0, ..good.clone() }).is_err());
    assert!(nonce(&GpuEvidence { random: Hex32::default(), ..good.clone() }).is_err());
    assert!(nonce(&GpuEvidence { reports: vec![report("GPU-b"), report("GPU-a")], ..good.clone() }).is_err());
    assert!(nonce(&GpuEvidence { reports: vec![report("GPU-a"), report("GPU-a")], ..good.clone() }).is_err());
    let switched = GpuEvidence { switches: vec![report("SWX-a"), report("SWX-b")], ..good.clone() };
    assert!(nonce(&switched).is_ok());
    assert_eq!(switches(&switched).len(), 2);
    assert!(nonce(&GpuEvidence { switches: vec![report("SWX-b"), report("SWX-a")], ..good.clone() }).is_err());
    assert_eq!(driver_state(&good), None);
    let driver = GpuDriver { version: "550.10".into(), confidential: true, dev_tools: true, protected_pcie: true };
    let stated = driver_state(&GpuEvidence { driver: Some(driver), ..good });
    assert_eq!(stated, Some(DriverState { confidential: true, dev_tools: true, protected_pcie: true }));
}
