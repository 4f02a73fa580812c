// SPDX-License-Identifier: Apache-2.0
//! Guests with GPUs: what a key release and a client demand of their evidence. Devices and manifests are of a maker made for the
//! test; the same rules judge NVIDIA's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    unused_imports,
    missing_docs,
    reason = "tests fail loudly, and are no library"
)]

#[path = "../../../gpu-verify/tests/synthetic/world/mod.rs"]
mod maker;
use crate::world;

use std::sync::Arc;

use appraise::{Appraisal, Binding, GpuGrounds, Policy, Verdict};
use attested_channel::{BootFacts, Moment, expected_events};
use gpu_verify::{GpuPolicy, Requirement, RimLibrary, bound_nonce};
use maker::{Device, MAKER, RimSpec};
use release::{TrustPolicy, VerifiedRelease};
use store::{OpenOptions, Store};
use tdx_sim::SimulatedTd;
use tdx_verify::{Collateral, PlatformPolicy, TrustAnchors, VerifiedQuote, verify};
use types::{
    Base64, Document as _, Evidence, GpuDriver, GpuEvidence, GpuReport, GuestConfig, Hex32, Role, Sha256Digest,
};
use world::{Guest, NOW, World, key_pair, model, reasons, registers_of, shape};

const CHALLENGE: [u8; 32] = [1; 32];
const EXPORTER: [u8; 32] = [2; 32];
/// The instance key of the test's guests.
const INSTANCE: Hex32 = Hex32::new([5; 32]);

/// A guest with GPUs at the moment of key release, and what a verifier has.
struct Scene {
    evidence: Evidence,
    quote: VerifiedQuote,
    release: VerifiedRelease,
    policy: Policy,
    rims: Vec<Vec<u8>>,
}

impl Scene {
    /// A guest whose configuration names `configured` GPUs and whose evidence is `gpu`.
    async fn new(configured: u8, gpu: GpuEvidence) -> Self {
        let world = World::start().await;
        let guest = boot(&world, configured, &gpu).await;
        let mut evidence = guest.evidence_for(&CHALLENGE, &EXPORTER, &Hex32::new([3; 32]));
        evidence.gpu = gpu;
        guest.quote(&mut evidence);
        let collateral = world.platform.collateral(NOW, None).unwrap().to_json();
        let collateral = Collateral::from_json(collateral.as_bytes()).unwrap();
        let anchors = TrustAnchors::custom(world.platform.root_der().to_vec());
        let bytes = evidence.quote.as_slice();
        let quote = verify(bytes, &collateral, &anchors, NOW, &PlatformPolicy::default()).unwrap();
        let (bundle, trust) = world::write_release(world.dir.path());
        let trust = TrustPolicy::parse(&std::fs::read(trust).unwrap()).unwrap();
        let release = VerifiedRelease::verify(&std::fs::read(bundle).unwrap(), &trust, NOW).unwrap();
        let gpu = GpuPolicy { revocation: Requirement::Optional, ..GpuPolicy::strict() };
        let policy = Policy { gpu: Some(gpu), ..Policy::any_release() };
        let rims = vec![RimSpec::driver().xml(), RimSpec::vbios().xml()];
        Self { evidence, quote, release, policy, rims }
    }

    fn verdict(&self) -> Verdict {
        let rims = RimLibrary::new(self.rims.clone()).unwrap();
        let anchors = MAKER.anchors();
        Appraisal {
            evidence: &self.evidence,
            binding: Binding::KeyRelease { challenge: &CHALLENGE, exporter: &EXPORTER },
            quote: &self.quote,
            releases: std::slice::from_ref(&self.release),
            policy: &self.policy,
            rules: None,
            gpu: GpuGrounds { anchors: &anchors, rims: &rims, ocsp: &[] },
            now: NOW,
        }
        .appraise()
    }

    fn policy(mut self, change: impl FnOnce(&mut GpuPolicy)) -> Self {
        change(self.policy.gpu.as_mut().unwrap());
        self
    }

    /// Codes and fields of all reasons.
    fn reasons(&self) -> Vec<(String, String)> {
        let verdict = self.verdict();
        let reasons = verdict.reasons();
        assert_eq!(verdict.is_accepted(), reasons.is_empty());
        reasons.into_iter().map(|reason| (reason.code, reason.field)).collect()
    }

    fn codes(&self) -> Vec<String> {
        self.reasons().into_iter().map(|(code, _)| code).collect()
    }
}

/// A guest with GPUs, booted as published up to the moment of key release.
async fn boot(world: &World, configured: u8, gpu: &GpuEvidence) -> Guest {
    let Guest { config, time, .. } = world.guest_with(|config| config.gpus.0 = configured, |_| ()).await;
    let parsed = GuestConfig::parse(&config).unwrap();
    let mr_config_id = GuestConfig::mr_config_id(&config);
    let td = SimulatedTd::new(Arc::clone(&world.platform), registers_of(&shape(), mr_config_id));
    let facts = BootFacts {
        config: mr_config_id,
        time: &time,
        gpu,
        model: &parsed.model.0,
        spki_sha256: Sha256Digest::of(b"spki"),
        instance_key: INSTANCE,
    };
    let events = expected_events(&facts, Moment::KeyRelease).unwrap();
    events.iter().for_each(|event| td.extend_event(event));
    Guest { td, config, events, time }
}

/// Evidence of GPUs that were asked with the nonce of this guest, or of another key.
fn evidence(gpus: u8, key: &Hex32, change: impl Fn(u8, &mut Device)) -> GpuEvidence {
    let report = |number: u8, nonce: [u8; 32]| {
        let mut device = Device::gpu([0x20, 1, 2, 3, 4, 5, 6, number]);
        device.nonce = nonce;
        change(number, &mut device);
        let made = device.make();
        GpuReport {
            uuid: format!("GPU-{number:08x}"),
            report: Base64::new(made.report).unwrap(),
            chain: Base64::new(made.chain).unwrap(),
        }
    };
    let driver = GpuDriver { version: "550.10".into(), confidential: true, dev_tools: false, protected_pcie: false };
    let mut gpu = GpuEvidence { epoch: 1, random: Hex32::new([6; 32]), driver: Some(driver), ..GpuEvidence::NONE };
    // The nonce is not made of the reports.
    gpu.reports = (0..gpus).map(|number| report(number, [0; 32])).take(1).collect();
    let nonce = bound_nonce(Role::Inference, key, &gpu).unwrap();
    gpu.reports = (0..gpus).map(|number| report(number, nonce)).collect();
    gpu
}

fn good(gpus: u8) -> GpuEvidence {
    evidence(gpus, &INSTANCE, |_, _| ())
}

/// A good guest with one GPU, changed before it was measured.
async fn changed(change: impl FnOnce(&mut GpuEvidence)) -> Scene {
    let mut gpu = good(1);
    change(&mut gpu);
    Scene::new(1, gpu).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_with_gpus_are_accepted_as_policy_says() {
    let one = Scene::new(1, good(1)).await;
    let verdict = one.verdict();
    assert!(verdict.is_accepted(), "{:?}", verdict.reasons());
    let shown = serde_json::to_value(&verdict).unwrap();
    assert_eq!(shown["gpu"]["hardware"], "simulated");
    assert_eq!((&shown["gpu"]["nonce"], &shown["gpu"]["driver_state"]), (&"checked".into(), &"given".into()));
    assert_eq!(shown["gpu"]["gpus"][0]["chip"], "GH100");
    assert!(verdict.checks().iter().any(|check| check.field == "gpu[0].measurements.driver" && check.passed));
    let eight = Scene::new(8, good(8)).await;
    assert_eq!(eight.codes(), ["gpu_count"]);
    assert!(eight.policy(|policy| policy.gpus = Some(8)).reasons().is_empty());
}

/// Without a word about GPUs in the policy, there must be none, whatever the machine is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_without_gpus_refuses_them() {
    let mut scene = Scene::new(1, good(1)).await;
    scene.policy.gpu = None;
    assert_eq!(scene.codes(), ["gpu_evidence_unexpected"]);
    let mut none = Scene::new(1, GpuEvidence::NONE).await;
    assert_eq!(none.codes(), ["gpu_count_mismatch", "gpu_evidence_malformed"]);
    none.policy.gpu = None;
    assert_eq!(none.codes(), ["gpu_evidence_unexpected"]);
    let mut without = Scene::new(0, GpuEvidence::NONE).await;
    assert_eq!(without.codes(), ["gpu_evidence_malformed"]);
    without.policy.gpu = None;
    assert!(without.reasons().is_empty());
}

/// Attacks 39 and 40: reports of another nonce and of another guest, and the quote that covers others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_another_guest_or_time_are_refused() {
    let others = evidence(1, &Hex32::new([4; 32]), |_, _| ());
    assert_eq!(Scene::new(1, others).await.reasons(), [("gpu_nonce".into(), "gpu[0].report.nonce".into())]);
    let older = changed(|gpu| gpu.epoch = 2).await;
    assert_eq!(older.codes(), ["gpu_nonce"]);
    let random = changed(|gpu| gpu.random = Hex32::new([7; 32])).await;
    assert_eq!(random.codes(), ["gpu_nonce"]);
    // Exchanged after the quote: REPORTDATA and RTMR3 are of others.
    let mut exchanged = Scene::new(1, good(1)).await;
    exchanged.evidence.gpu = good(1);
    let codes = exchanged.codes();
    assert!(codes.contains(&"report_data_mismatch".into()) && codes.contains(&"register_mismatch".into()), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_out_of_form_is_refused() {
    for change in [(|gpu| gpu.epoch = 0) as fn(&mut GpuEvidence), |gpu| gpu.random = Hex32::default()] {
        assert_eq!(changed(change).await.codes(), ["gpu_evidence_malformed"]);
    }
    let mut unsorted = good(2);
    unsorted.reports.reverse();
    let scene = Scene::new(2, unsorted).await.policy(|policy| policy.gpus = Some(2));
    assert_eq!(scene.reasons(), [("gpu_evidence_malformed".into(), "gpu".into())]);
    let twice = evidence(2, &INSTANCE, |_, device| device.pdi = [9; 8]);
    let scene = Scene::new(2, twice).await.policy(|policy| policy.gpus = Some(2));
    assert_eq!(scene.codes(), ["gpu_duplicate"]);
}

/// Attack 43: fewer or more reports than the configuration names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_is_that_of_the_configuration_and_of_the_policy() {
    assert_eq!(Scene::new(2, good(1)).await.codes(), ["gpu_count_mismatch"]);
    assert_eq!(Scene::new(1, good(2)).await.codes(), ["gpu_count_mismatch", "gpu_count"]);
    assert_eq!(Scene::new(2, good(2)).await.codes(), ["gpu_count"]);
}

/// What is too much for one guest is not read: neither reports nor the manifests that they name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_devices_than_one_guest_has_are_not_read() {
    let copies = |gpu: &GpuEvidence, kind: &str| -> Vec<GpuReport> {
        let copy = |number| GpuReport { uuid: format!("{kind}-{number:08x}"), ..gpu.reports[0].clone() };
        (0..=gpu_verify::MAX_DEVICES).map(copy).collect()
    };
    let limit = ("gpu_evidence_too_large".to_owned(), "gpu".to_owned());
    let switches = changed(|gpu| gpu.switches = copies(gpu, "SWX")).await;
    assert_eq!(switches.reasons(), std::slice::from_ref(&limit));
    let gpus = changed(|gpu| gpu.reports = copies(gpu, "GPU")).await;
    assert_eq!(gpus.reasons(), [("gpu_count_mismatch".to_owned(), "gpu.reports".to_owned()), limit]);
    assert!(gpus.verdict().gpu().is_none());
}

/// Attacks 41 and 42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drivers_statement_counts() {
    let off = changed(|gpu| gpu.driver.as_mut().unwrap().confidential = false).await;
    assert_eq!(off.reasons(), [("gpu_cc_off".into(), "driver_state.confidential".into())]);
    let tools = changed(|gpu| gpu.driver.as_mut().unwrap().dev_tools = true).await;
    assert_eq!(tools.codes(), ["gpu_dev_tools"]);
    let protected = changed(|gpu| gpu.driver.as_mut().unwrap().protected_pcie = true).await;
    assert_eq!(protected.reasons(), [("gpu_protected_pcie".into(), "driver_state.protected_pcie".into())]);
    let silent = changed(|gpu| gpu.driver = None).await;
    assert_eq!(silent.codes(), ["gpu_driver_state_missing"]);
    let other = changed(|gpu| gpu.driver.as_mut().unwrap().version = "550.11".into()).await;
    assert_eq!(other.reasons(), [("gpu_driver_contradiction".into(), "gpu.driver.version".into())]);
}

/// Attack 46.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_decide_about_measurements() {
    let mut scene = Scene::new(1, good(1)).await;
    let all = scene.rims.clone();
    scene.rims.remove(0);
    assert_eq!(scene.reasons(), [("rim_missing".into(), "gpu[0].rim.driver".into())]);
    scene.rims = Vec::new();
    assert_eq!(scene.codes(), ["rim_missing", "rim_missing"]);
    // The one value is of the decoder, which the device says it has not: nothing is left to compare.
    let mut empty = RimSpec::driver();
    empty.resources.retain(|(index, _, _)| *index == 35);
    scene.rims = vec![empty.xml(), all[1].clone()];
    assert_eq!(scene.reasons(), [("measurement_mismatch".into(), "gpu[0].measurements.driver".into())]);
    // Manifests of other machines do no harm, even ones that are not good.
    let mut other = RimSpec::driver();
    other.version = "999.1";
    scene.rims = [all, vec![other.xml_by(&maker::authorities(&["Other root", "a", "b"]), |_| ())]].concat();
    assert!(scene.reasons().is_empty());
    let tampered = evidence(1, &INSTANCE, |_, device| device.changed = vec![(9, [0; 48])]);
    let scene = Scene::new(1, tampered).await;
    assert_eq!(scene.reasons(), [("measurement_mismatch".into(), "gpu[0].measurements.driver[8]".into())]);
}

/// A verdict ends with the manifests that it rests on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_ends_when_its_gpu_part_does() {
    let mut scene = Scene::new(1, good(1)).await;
    assert_eq!(scene.verdict().expires(), NOW + appraise::VERDICT_SECONDS);
    let midnight = NOW - NOW % 86_400;
    let end = rcgen::date_time_ymd(2027, 1, 15) + std::time::Duration::from_secs(NOW - midnight + 100);
    scene.rims[0] = RimSpec::driver().xml_by(&MAKER.rim, |params| params.not_after = end);
    assert!(scene.reasons().is_empty());
    assert_eq!(scene.verdict().expires(), NOW + 100);
}

/// The strict policy asks for OCSP answers; the roots of a program that is released are NVIDIA's, whatever a policy says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_built_in_rules_stay() {
    let strict = Scene::new(1, good(1)).await.policy(|policy| policy.revocation = Requirement::Required);
    assert!(strict.codes().iter().any(|code| code == "gpu_revocation_unknown"));
    let scene = Scene::new(1, good(1)).await;
    let verdict = Appraisal {
        evidence: &scene.evidence,
        binding: Binding::Document { moment: Moment::KeyRelease },
        quote: &scene.quote,
        releases: std::slice::from_ref(&scene.release),
        policy: &scene.policy,
        rules: None,
        gpu: GpuGrounds::NVIDIA,
        now: NOW,
    }
    .appraise();
    assert!(verdict.reasons().iter().any(|reason| reason.code == "gpu_root_untrusted"));
    let mode = evidence(1, &INSTANCE, |_, device| device.set(36, &[9, 0]));
    assert_eq!(Scene::new(1, mode).await.codes(), ["gpu_mode"]);
}

/// The service itself trusts NVIDIA alone: over the wire no device of another maker gets a key, with a policy for GPUs or without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_releases_no_key_to_a_guest_with_other_gpus() {
    let world = World::start().await;
    let gpu = good(1);
    let guest = boot(&world, 1, &gpu).await;
    let codes = ask(&world, &guest, &gpu).await;
    assert_eq!(codes, ["gpu_evidence_unexpected"]);
    let policy = Policy { gpu: Some(GpuPolicy::strict()), ..Policy::any_release() };
    let beside = OpenOptions { sequencer: false, ..OpenOptions::default() };
    let store = Store::open_with(&world.store_dir(), &beside).unwrap();
    store.set_policy("appraisal", &serde_json::to_vec(&policy).unwrap()).unwrap();
    let codes = ask(&world, &guest, &gpu).await;
    for code in ["gpu_root_untrusted", "gpu_revocation_unknown", "rim_missing"] {
        assert!(codes.iter().any(|found| found == code), "{codes:?}");
    }
    assert!(!codes.iter().any(|code| code == "gpu_nonce"), "{codes:?}");
}

/// The codes with which the service answers the whole protocol.
async fn ask(world: &World, guest: &Guest, gpu: &GpuEvidence) -> Vec<String> {
    let mut connection = world.connect().await;
    let challenge = connection.challenge().await.unwrap();
    let key = key_pair();
    let mut evidence = guest.evidence(&challenge, key.public());
    evidence.gpu = gpu.clone();
    guest.quote(&mut evidence);
    let released = connection.release(challenge, &model(), evidence.to_canonical().unwrap(), key).await;
    reasons(released).into_iter().map(|(code, _)| code).collect()
}
