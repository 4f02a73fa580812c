// SPDX-License-Identifier: Apache-2.0
//! One GPU: its report, its certificates, and what it says of itself.

use gpu_verify::{DriverState, GpuPolicy};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384,
};

use crate::{
    PDI, Scenario,
    world::{Authority, Device, FWID, MAKER, Tcb, authorities, ca, issue},
};

fn gpu(change: impl Fn(&mut Device)) -> Scenario {
    let mut device = Device::gpu(PDI);
    change(&mut device);
    Scenario::one(&device)
}

fn codes(change: impl Fn(&mut Device)) -> Vec<&'static str> {
    gpu(change).codes()
}

#[test]
fn a_good_gpu_is_accepted() {
    let scenario = gpu(|_| {});
    assert_eq!(scenario.codes(), [""; 0]);
    let set = scenario.verdict().accept().unwrap();
    let gpu = &set.gpus()[0];
    assert_eq!((gpu.driver_measurements(), gpu.vbios_measurements(), gpu.mode()), (5, 4, Some(gpu_verify::Mode::Spt)));
    assert_eq!(gpu.pdi().unwrap().0, PDI);
    let json = serde_json::to_value(scenario.verdict()).unwrap();
    assert_eq!(json["hardware"], "simulated");
    assert_eq!(json["gpus"][0]["pdi"], "48b02db73e52137e");
    assert_eq!(json["revocation"], "not_checked");
    assert_eq!(codes(|device| device.tcb = Some(Tcb::Dice(FWID, 0x80))), [""; 0]);
    assert_eq!(codes(|device| device.set(36, &[0, 0])), [""; 0]);
}

#[test]
fn attack_39_another_nonce() {
    assert_eq!(codes(|device| device.nonce = [8; 32]), ["gpu_nonce"]);
    let mut scenario = gpu(|_| {});
    scenario.nonce = None;
    assert_eq!(scenario.codes(), ["gpu_nonce_missing"]);
}

#[test]
fn attack_40_evidence_of_another_device() {
    let mut scenario = gpu(|_| {});
    scenario.gpus[0].chain = Device::gpu([1; 8]).make().chain;
    assert_eq!(scenario.codes(), ["gpu_report_signature"]);
}

#[test]
fn attacks_41_and_42_dev_tools_and_confidential_mode() {
    const GOOD: DriverState = DriverState { confidential: true, dev_tools: false, protected_pcie: false };
    let mut scenario = gpu(|_| {});
    scenario.driver_state = Some(DriverState { dev_tools: true, ..GOOD });
    assert_eq!(scenario.codes(), ["gpu_dev_tools"]);
    scenario.driver_state = Some(DriverState { confidential: false, ..GOOD });
    assert_eq!(scenario.codes(), ["gpu_cc_off"]);
    scenario.driver_state = Some(DriverState { protected_pcie: true, ..GOOD });
    assert_eq!(scenario.codes(), ["gpu_protected_pcie"], "one GPU needs none");
    scenario.driver_state = None;
    assert_eq!(scenario.codes(), ["gpu_driver_state_missing"]);
    // Even a policy that asks for nothing does not accept what is said.
    scenario.policy = GpuPolicy::files_only();
    assert_eq!(scenario.codes(), [""; 0]);
    scenario.driver_state = Some(DriverState { confidential: false, dev_tools: true, ..GOOD });
    assert_eq!(scenario.codes(), ["gpu_cc_off", "gpu_dev_tools"]);
}

#[test]
fn modes() {
    assert_eq!(codes(|device| device.set(36, &[2, 0])), ["gpu_mode"]);
    assert_eq!(codes(|device| device.set(36, &[3, 0])), ["gpu_mode"]);
    assert_eq!(codes(|device| device.remove(36)), ["gpu_mode"]);
    assert_eq!(codes(|device| device.set(34, &[0, 0])), ["gpu_mode"], "the flag has no meaning in version 0");
    assert_eq!(codes(|device| device.set(21, &[0xaa])), ["gpu_mode_contradiction"]);
    assert_eq!(codes(|device| device.set(21, &[0x55])), [""; 0]);
    let old = |device: &mut Device| {
        [20, 34, 36].into_iter().for_each(|kind| device.remove(kind));
    };
    assert_eq!(codes(old), ["gpu_fwid", "gpu_mode"]);
    let mut scenario = gpu(old);
    scenario.policy = GpuPolicy::files_only();
    assert_eq!(scenario.codes(), [""; 0]);
    scenario.gpus = vec![{
        let mut device = Device::gpu(PDI);
        old(&mut device);
        device.set(21, &[0xaa]);
        device.make()
    }];
    assert_eq!(scenario.codes(), ["gpu_mode"], "protected PCIe without its switches");
}

#[test]
fn firmware_digest() {
    assert_eq!(codes(|device| device.set(20, &[1; 48])), ["gpu_fwid"]);
    assert_eq!(codes(|device| device.tcb = None), ["gpu_fwid"]);
    assert_eq!(codes(|device| device.tcb = Some(Tcb::Composite([1; 48]))), ["gpu_fwid"]);
    assert_eq!(codes(|device| device.tcb = Some(Tcb::Dice([1; 48], 0))), ["gpu_fwid"]);
    assert_eq!(codes(|device| device.tcb = Some(Tcb::Dice(FWID, 0x10))), ["gpu_firmware_debug"]);
    assert_eq!(codes(|device| device.tcb = Some(Tcb::Dice(FWID, 0x40))), ["gpu_firmware_debug"]);
}

#[test]
fn opaque_fields() {
    for (kind, value) in [
        (3, b"550\x0010".as_slice()),
        (3, b""),
        (3, &[0xff; 4]),
        (6, &[1; 8]),
        (6, &[0; 5]),
        (11, &[0]),
        (20, &[0; 47]),
        (21, &[1]),
        (22, &[0; 7]),
        (34, &[2]),
        (34, &[0; 9]),
        (37, &[0]),
        (0, &[0]),
    ] {
        assert_eq!(codes(|device| device.set(kind, value)), ["gpu_report_malformed"], "{kind} {value:?}");
    }
    for kind in [3, 6, 11, 15, 17, 18] {
        assert_eq!(codes(|device| device.remove(kind)), ["gpu_report_malformed"], "{kind}");
    }
    assert_eq!(codes(|device| device.opaque.push((3, b"1".to_vec()))), ["gpu_report_malformed"], "twice");
    assert_eq!(codes(|device| device.set(4, &[0; 2000])), ["gpu_report_malformed"]);
}

#[test]
fn generations_and_listed_versions() {
    let mut device = Device::gpu(PDI);
    device.chip = "AD102";
    assert_eq!(Scenario::one(&device).codes(), ["gpu_architecture", "rim_product"]);
    device.chip = "LS_10";
    assert_eq!(Scenario::one(&device).codes(), ["gpu_architecture", "rim_product"]);
    device.chip = "GB100";
    assert_eq!(Scenario::one(&device).codes(), ["rim_product"]);
    let mut scenario = gpu(|_| {});
    scenario.policy.architectures = vec![gpu_verify::Architecture::Blackwell];
    scenario.policy.drivers = vec!["550.11".to_owned()];
    scenario.policy.vbioses = vec!["96.00.5E.00.02".to_owned()];
    assert_eq!(scenario.codes(), ["gpu_architecture", "gpu_driver_version", "gpu_vbios_version"]);
    scenario.policy = GpuPolicy { drivers: vec!["550.10".to_owned()], ..GpuPolicy::files_only() };
    assert_eq!(scenario.codes(), [""; 0]);
}

#[test]
fn report_forms() {
    let good = Device::gpu(PDI).make();
    // Version, code, attributes and operation of the request; slot; version, code, parameters of the response.
    for place in [0, 1, 2, 3, 36, 37, 38, 39, 40] {
        let mut scenario = gpu(|_| {});
        scenario.gpus[0].report[place] ^= 0x10;
        assert_eq!(scenario.codes(), ["gpu_report_malformed"], "{place}");
    }
    for (place, value) in [(41, 0), (41, 63), (41, 65), (45, 2), (45, 0), (46, 2), (47, 52), (50, 47), (50, 0)] {
        let mut scenario = gpu(|_| {});
        assert_ne!(scenario.gpus[0].report[place], value);
        scenario.gpus[0].report[place] = value;
        assert_eq!(scenario.codes(), ["gpu_report_malformed"], "{place} {value}");
    }
    for len in (0..good.report.len()).step_by(37) {
        let mut scenario = gpu(|_| {});
        scenario.gpus[0].report.truncate(len);
        assert_eq!(scenario.codes(), ["gpu_report_malformed"], "{len}");
    }
    let mut scenario = gpu(|_| {});
    scenario.gpus[0].report.resize(gpu_verify::MAX_REPORT_LEN + 1, 0);
    assert_eq!(scenario.codes(), ["gpu_report_malformed"]);
    // Fewer measurements than the manifests need.
    assert_eq!(codes(|device| device.blocks = 8), ["measurement_mismatch"]);
}

#[test]
fn certificates() {
    type Change = fn(&mut CertificateParams);
    let cases: [(usize, Change, &str); 9] = [
        (0, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "gpu_chain"),
        (0, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement], "gpu_chain"),
        (0, |p| p.key_usages = Vec::new(), "gpu_chain"),
        (0, |p| p.custom_extensions.push(critical(&[1, 2, 3])), "gpu_chain"),
        (0, |p| p.not_after = rcgen::date_time_ymd(2025, 12, 31), "gpu_certificate_expired"),
        (0, |p| p.not_before = rcgen::date_time_ymd(2026, 1, 2), "gpu_certificate_not_yet_valid"),
        (1, |p| p.is_ca = IsCa::ExplicitNoCa, "gpu_chain"),
        (1, |p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "gpu_chain"),
        (1, |p| p.custom_extensions.push(critical(&[2, 5, 29, 36])), "gpu_chain"),
    ];
    for (case, (place, change, code)) in cases.into_iter().enumerate() {
        let mut scenario = gpu(|_| {});
        scenario.gpus = vec![Device::gpu(PDI).make_under(&MAKER.device, |at, params| {
            if at == place {
                change(params);
            }
        })];
        assert_eq!(scenario.codes(), [code], "case {case}");
    }
}

#[test]
fn authorities_above_the_device() {
    let good = |chain: &[Authority]| {
        let mut scenario = gpu(|_| {});
        scenario.gpus = vec![Device::gpu(PDI).make_under(chain, |_, _| {})];
        scenario
    };
    // The same names under a root of the attacker's.
    let fake = authorities(&["Test Device Root", "Test GH100 Identity", "Test Provisioner"]);
    assert_eq!(good(&fake).codes(), ["gpu_root_untrusted"]);
    // An authority that may have no authority below it has two.
    let root = &MAKER.device[0];
    let mut params = ca("Short");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = issue(params, root, &PKCS_ECDSA_P384_SHA384);
    let below = issue(ca("Below"), &short, &PKCS_ECDSA_P384_SHA384);
    let mut chain = pem_of(&good(&[below]).gpus[0].chain);
    chain.extend([crate::world::pem(&short.der), crate::world::pem(&root.der)]);
    let mut scenario = gpu(|_| {});
    scenario.gpus = vec![scenario.gpus.remove(0)];
    scenario.gpus[0].chain = chain.concat().into_bytes();
    assert_eq!(scenario.codes(), ["gpu_chain", "gpu_report_signature"], "the report is another leaf's");
    // A key on another curve.
    let weak = issue(ca("Weak"), root, &PKCS_ECDSA_P256_SHA256);
    let mut scenario = gpu(|_| {});
    let made = Device::gpu(PDI).make_under(&[weak], |_, _| {});
    let with_root = [made.chain, crate::world::pem(&root.der).into_bytes()].concat();
    scenario.gpus[0] = crate::world::Made { report: made.report, chain: with_root };
    assert_eq!(scenario.codes(), ["gpu_chain", "gpu_chain_signature"]);
}

#[test]
fn chains_that_are_none() {
    let good = String::from_utf8(Device::gpu(PDI).make().chain).unwrap();
    let many = good.repeat(3);
    let cases = [
        String::new(),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_owned(),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        good.replacen("-----END CERTIFICATE-----", "", 4),
        format!("{good}x"),
        many,
        format!("{good}{}", " ".repeat(gpu_verify::MAX_CHAIN_LEN)),
    ];
    for case in cases {
        let mut scenario = gpu(|_| {});
        scenario.gpus[0].chain = case.into_bytes();
        assert_eq!(scenario.codes(), ["gpu_chain_malformed"]);
    }
    let mut scenario = gpu(|_| {});
    scenario.gpus[0].chain.extend(b"\n\0\0");
    assert_eq!(scenario.codes(), [""; 0]);
}

fn critical(oid: &[u64]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, vec![0x05, 0]);
    extension.set_criticality(true);
    extension
}

fn pem_of(chain: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(chain).unwrap();
    text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
}
