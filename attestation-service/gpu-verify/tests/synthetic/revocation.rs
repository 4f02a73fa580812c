// SPDX-License-Identifier: Apache-2.0
//! OCSP answers about devices and manifests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gpu_verify::Requirement;

use crate::{
    PDI, Scenario,
    world::{Authority, Device, MAKER, OcspStatus, RimSpec, answer, authorities, delegated_answer},
};

/// The strict policy, with good answers for every certificate of the device and of both manifests.
fn answered() -> Scenario {
    let mut scenario = Scenario::one(&Device::gpu(PDI));
    scenario.policy.revocation = Requirement::Required;
    scenario.rim_revocation = Requirement::Required;
    let mut answers = vec![good(&boot_rom(&scenario), &MAKER.device[2])];
    answers.extend([2, 1].map(|i| good(&MAKER.device[i].der, &MAKER.device[i - 1])));
    answers.extend([2, 1].map(|i| good(&MAKER.rim[i].der, &MAKER.rim[i - 1])));
    for xml in &scenario.rims {
        answers.push(good(&first_certificate(xml), &MAKER.rim[2]));
    }
    scenario.ocsp = answers;
    scenario
}

#[test]
fn good_answers_satisfy_the_strict_policy() {
    let scenario = answered();
    assert_eq!(scenario.codes(), [""; 0]);
    let json = serde_json::to_value(scenario.verdict()).unwrap();
    assert_eq!(json["revocation"], "checked");
}

/// What was accepted must be judged again when anything of it ends.
#[test]
fn a_verdict_lasts_as_long_as_all_that_it_rests_on() {
    const FEBRUARY: u64 = 1_769_904_000;
    const MIDDLE_OF_JANUARY: u64 = 1_768_435_200;
    let until = |scenario: &Scenario| {
        let verdict = scenario.verdict();
        assert!(verdict.is_accepted(), "{:?}", verdict.reasons());
        verdict.expires()
    };
    let mut scenario = answered();
    assert_eq!(until(&scenario), FEBRUARY);
    // Of several answers about one certificate the longest, and of all certificates the first that has none.
    let shorter = |certificate: &[u8], issuer| answer(certificate, issuer, OcspStatus::Good, "20251201", "20260115");
    scenario.ocsp.push(shorter(&boot_rom(&scenario), &MAKER.device[2]));
    assert_eq!(until(&scenario), FEBRUARY);
    scenario.ocsp.remove(0);
    assert_eq!(until(&scenario), MIDDLE_OF_JANUARY, "of the device");
    let mut manifest = answered();
    let place = manifest.ocsp.len() - 1;
    manifest.ocsp[place] = shorter(&first_certificate(&manifest.rims[1]), &MAKER.rim[2]);
    assert_eq!(until(&manifest), MIDDLE_OF_JANUARY, "of the manifest");
    // Without answers: certificates.
    let mut plain = Scenario::one(&Device::gpu(PDI));
    let certificates = until(&plain);
    assert!(certificates > FEBRUARY);
    let ends = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2026, 1, 15);
    plain.rims[0] = RimSpec::driver().xml_by(&MAKER.rim, ends);
    assert_eq!(until(&plain), MIDDLE_OF_JANUARY, "of the manifest");
    let mut device = Scenario::one(&Device::gpu(PDI));
    device.now = certificates;
    assert_eq!(until(&device), certificates);
    device.now += 1;
    assert!(device.codes().contains(&"gpu_certificate_expired"));
}

#[test]
fn answers_that_miss_or_say_no() {
    let issuer = &MAKER.device[2];
    let with = |bytes: Option<Vec<u8>>| {
        let mut scenario = answered();
        scenario.ocsp.remove(0);
        let device = boot_rom(&scenario);
        assert_ne!(device, issuer.der);
        scenario.ocsp.extend(bytes);
        scenario
    };
    assert_eq!(with(None).codes(), ["gpu_revocation_unknown"]);
    let device = boot_rom(&answered());
    // Each scenario makes a new device: make the answers for the one that is judged.
    let judged = |make: &dyn Fn(&[u8]) -> Vec<u8>| {
        let mut scenario = answered();
        let device = boot_rom(&scenario);
        scenario.ocsp[0] = make(&device);
        scenario.codes()
    };
    let dated = |status, from, to| judged(&move |der: &[u8]| answer(der, issuer, status, from, to));
    assert_eq!(dated(OcspStatus::Revoked, "20251201", "20260201"), ["gpu_revoked"]);
    assert_eq!(dated(OcspStatus::Revoked, "20241201", "20250201"), ["gpu_revoked"], "for good");
    assert_eq!(dated(OcspStatus::Unknown, "20251201", "20260201"), ["gpu_revocation_unknown"]);
    assert_eq!(dated(OcspStatus::Good, "20241201", "20251231"), ["gpu_ocsp_expired"]);
    assert_eq!(dated(OcspStatus::Good, "20260102", "20260201"), ["gpu_ocsp_expired"]);
    // About another certificate, and cut short.
    assert_eq!(judged(&|_| good(&device, issuer)), ["gpu_revocation_unknown"]);
    assert_eq!(judged(&|der| good(der, issuer)[..200].to_vec()), ["gpu_revocation_unknown"]);
    assert_eq!(judged(&|der| [good(der, issuer), vec![0]].concat()), ["gpu_revocation_unknown"]);
    assert_eq!(judged(&|der| changed(&good(der, issuer))), ["gpu_ocsp_signature"]);
}

#[test]
fn responders_need_the_issuer_and_the_purpose() {
    let issuer = &MAKER.device[2];
    let judged = |by: &Authority, purpose: bool| {
        let mut scenario = answered();
        let device = boot_rom(&scenario);
        scenario.ocsp[0] = delegated_answer(&device, issuer, by, purpose);
        scenario.codes()
    };
    assert_eq!(judged(issuer, true), [""; 0]);
    assert_eq!(judged(issuer, false), ["gpu_ocsp_signature"]);
    assert_eq!(judged(&MAKER.device[1], true), ["gpu_ocsp_signature"]);
    let fake = authorities(&["Test Device Root", "Test GH100 Identity", "Test Provisioner"]);
    assert_eq!(judged(&fake[2], true), ["gpu_ocsp_signature"]);
}

#[test]
fn revoked_manifests() {
    let mut scenario = answered();
    let signer = first_certificate(&scenario.rims[0]);
    scenario.ocsp.push(answer(&signer, &MAKER.rim[2], OcspStatus::Revoked, "20251201", "20260201"));
    assert_eq!(scenario.codes(), ["rim_revoked", "rim_refused"]);
    // It counts where none is asked for, too.
    scenario.rim_revocation = Requirement::Optional;
    assert_eq!(scenario.codes(), ["rim_revoked", "rim_refused"]);
    scenario.ocsp.clear();
    scenario.policy.revocation = Requirement::Optional;
    assert_eq!(scenario.codes(), [""; 0]);
    scenario.rim_revocation = Requirement::Required;
    assert_eq!(scenario.codes(), ["rim_revocation_unknown", "rim_refused"]);
}

#[test]
fn too_many_answers() {
    let mut scenario = answered();
    scenario.ocsp.resize(gpu_verify::MAX_ANSWERS + 1, Vec::new());
    assert_eq!(scenario.codes(), ["gpu_evidence_too_large"]);
    let mut scenario = answered();
    scenario.ocsp.push(vec![0; gpu_verify::MAX_ANSWER_LEN + 1]);
    assert_eq!(scenario.codes(), ["gpu_evidence_too_large"]);
}

fn good(certificate: &[u8], issuer: &Authority) -> Vec<u8> {
    answer(certificate, issuer, OcspStatus::Good, "20251201", "20260201")
}

/// The second certificate of the GPU.
fn boot_rom(scenario: &Scenario) -> Vec<u8> {
    let text = std::str::from_utf8(&scenario.gpus[0].chain).unwrap();
    let body = text.split("-----BEGIN CERTIFICATE-----").nth(2).unwrap();
    STANDARD.decode(body.split("-----END").next().unwrap().trim()).unwrap()
}

fn first_certificate(xml: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(xml).unwrap();
    let body = text.split("<ds:X509Certificate>").nth(1).unwrap();
    STANDARD.decode(body.split('<').next().unwrap()).unwrap()
}

/// A minute later, with the old signature.
fn changed(answer: &[u8]) -> Vec<u8> {
    let place = answer.windows(8).position(|window| window == b"20260201").unwrap();
    let mut changed = answer.to_vec();
    changed[place + 7] = b'2';
    changed
}
