// SPDX-License-Identifier: Apache-2.0
//! The other moment: what a client appraises before it speaks to a serving guest.

use crate::world;

use appraise::{AcceptedQuote, AcpiRule, Appraisal, Binding, GpuGrounds, Policy, Verdict};
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, Tree, expected_events};
use calculator::{AcpiDigests, ExpectedRegisters};
use release::{TrustPolicy, VerifiedRelease};
use tdx_verify::{Collateral, PlatformPolicy, TrustAnchors, VerifiedQuote, verify};
use types::{
    Base64, ConnectionProof, Document as _, EventName, Evidence, Freshness, FreshnessKind, GuestConfig, Hex32,
    MachineShape, RegisterName, Registers, Role, Sha256Digest, Sha384Digest, shape::ShapeFacts,
};
use world::{NOW, World};

const CHALLENGE: [u8; 32] = [1; 32];
const EXPORTER: [u8; 32] = [2; 32];
/// Bytes of a log's event with one SHA-384 digest and no data.
const EVENT_LEN: usize = 66;

/// A serving guest, its proof for one connection of three, and the client's view.
struct Scene {
    evidence: Evidence,
    proof: ConnectionProof,
    quote: VerifiedQuote,
    release: VerifiedRelease,
}

impl Scene {
    async fn new() -> Self {
        Self::of(|_| (), |_| (), None).await
    }

    /// A guest with another configuration, other registers, or a firmware event log.
    async fn of(
        configure: impl FnOnce(&mut GuestConfig),
        launch: impl FnOnce(&mut Registers),
        firmware_log: Option<Vec<u8>>,
    ) -> Self {
        let world = World::start().await;
        let mut guest = world.guest_with(configure, launch).await;
        let config = GuestConfig::parse(&guest.config).unwrap();
        let mut evidence = guest.evidence_for(&CHALLENGE, &EXPORTER, &Hex32::default());
        evidence.firmware_log = firmware_log.map(|log| Base64::new(log).unwrap());
        let facts = BootFacts {
            config: GuestConfig::mr_config_id(&guest.config),
            time: &guest.time.clone(),
            gpu: &evidence.gpu.clone(),
            model: &config.model.0,
            spki_sha256: evidence.spki_sha256,
            instance_key: evidence.instance_key,
        };
        for event in expected_events(&facts, Moment::Serving).unwrap() {
            if event.name.number() > EventName::Gpu.number() {
                guest.extend(event.name, event.payload.as_slice());
            }
        }
        evidence.events = guest.events.clone();
        evidence.freshness = Freshness::none();
        guest.quote(&mut evidence);
        let leaf =
            |challenge, binding| Leaf { kind: FreshnessKind::Tls, role: Role::Inference, challenge, binding }.hash();
        let tree = Tree::new(vec![leaf([8; 32], [8; 32]), leaf(CHALLENGE, EXPORTER), leaf([9; 32], [9; 32])]).unwrap();
        let freshness = Freshness { kind: FreshnessKind::Tls, tree_size: tree.size(), root: tree.root() };
        let receipt_head = Sha256Digest::of(b"receipt");
        let inputs = ReportDataInputs {
            receipt_head,
            receipt_count: 4,
            freshness: freshness.clone(),
            ..ReportDataInputs::of(&evidence).unwrap()
        };
        let quote = guest.td.quote(inputs.report_data()).unwrap();
        let collateral = world.platform.collateral(NOW, None).unwrap().to_json();
        let collateral = Collateral::from_json(collateral.as_bytes()).unwrap();
        let anchors = TrustAnchors::custom(world.platform.root_der().to_vec());
        let verified = verify(&quote, &collateral, &anchors, NOW, &PlatformPolicy::default()).unwrap();
        let proof = ConnectionProof {
            schema: ConnectionProof::SCHEMA.into(),
            evidence: evidence.digest().unwrap(),
            quote: Base64::new(quote).unwrap(),
            receipt_head,
            receipt_count: 4,
            freshness,
            leaf_index: 1,
            path: tree.path(1).unwrap(),
        };
        let (bundle, trust) = world::write_release(world.dir.path());
        let trust = TrustPolicy::parse(&std::fs::read(trust).unwrap()).unwrap();
        let release = VerifiedRelease::verify(&std::fs::read(bundle).unwrap(), &trust, NOW).unwrap();
        Self { evidence, proof, quote: verified, release }
    }

    fn verdict(&self, challenge: &[u8; 32], exporter: &[u8; 32], policy: &Policy) -> Verdict {
        let spki_sha256 = &Sha256Digest::of(b"spki");
        let binding = Binding::Connection { proof: &self.proof, challenge, exporter, spki_sha256 };
        self.appraisal(binding, policy).appraise()
    }

    fn appraisal<'a>(&'a self, binding: Binding<'a>, policy: &'a Policy) -> Appraisal<'a> {
        Appraisal {
            evidence: &self.evidence,
            binding,
            quote: &self.quote,
            releases: std::slice::from_ref(&self.release),
            policy,
            rules: None,
            gpu: GpuGrounds::NVIDIA,
            now: NOW,
        }
    }

    fn codes(&self) -> Vec<String> {
        self.verdict(&CHALLENGE, &EXPORTER, &Policy::any_release()).reasons().into_iter().map(|r| r.code).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serving_guest_is_accepted_on_its_own_connection_only() {
    let scene = Scene::new().await;
    let policy = Policy::any_release();
    let verdict = scene.verdict(&CHALLENGE, &EXPORTER, &policy);
    assert!(verdict.is_accepted(), "{:?}", verdict.reasons());
    assert_eq!((verdict.instance(), verdict.registers().len()), ("any", 8));
    // Attacks 32 (a) and 36: another connection's exporter, another challenge.
    for (challenge, exporter) in [(CHALLENGE, [3; 32]), ([3; 32], EXPORTER)] {
        let reasons = scene.verdict(&challenge, &exporter, &policy).reasons();
        assert_eq!(reasons.iter().map(|r| r.code.as_str()).collect::<Vec<_>>(), ["binding_mismatch"]);
    }
    let spki_sha256 = &Sha256Digest::of(b"relay");
    let (challenge, exporter) = (&CHALLENGE, &EXPORTER);
    let binding = Binding::Connection { proof: &scene.proof, challenge, exporter, spki_sha256 };
    assert_eq!(scene.appraisal(binding, &policy).appraise().reasons()[0].code, "certificate_key_mismatch");
}

fn bound<'a>(
    proof: &'a ConnectionProof,
    challenge: &'a [u8; 32],
    exporter: &'a [u8; 32],
    spki_sha256: &'a Sha256Digest,
) -> Binding<'a> {
    Binding::Connection { proof, challenge, exporter, spki_sha256 }
}

/// What was accepted of a quote once is not judged again for the other connections that it proves. Everything that could
/// differ is compared, and each leaf must be in the tree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_quote_proves_the_connections_of_its_tree_and_no_other() {
    let scene = Scene::new().await;
    let policy = Policy::any_release();
    let spki = &Sha256Digest::of(b"spki");
    let own = bound(&scene.proof, &CHALLENGE, &EXPORTER, spki);
    let accepted = scene.appraisal(own, &policy).accept_quote().unwrap();
    assert_eq!(accepted.for_other(own, NOW).unwrap().challenge(), &CHALLENGE);
    // The third leaf of the tree, whose path is that of the tree's making.
    let leaf = |challenge, binding| Leaf { kind: FreshnessKind::Tls, role: Role::Inference, challenge, binding }.hash();
    let tree = Tree::new(vec![leaf([8; 32], [8; 32]), leaf(CHALLENGE, EXPORTER), leaf([9; 32], [9; 32])]).unwrap();
    let third = ConnectionProof { leaf_index: 2, path: tree.path(2).unwrap(), ..scene.proof.clone() };
    let nines = &[9; 32];
    let other = accepted.for_other(bound(&third, nines, nines, spki), NOW).unwrap();
    assert_eq!((other.challenge(), other.instance_key()), (nines, accepted.accepted().instance_key()));
    assert_eq!(other.expires(), accepted.accepted().expires());
    // Attacks 32 (a) and 36: another exporter, another challenge, another place; another key, side or second.
    fn refused(accepted: &AcceptedQuote, binding: Binding<'_>, now: u64) {
        assert!(accepted.for_other(binding, now).is_none(), "{binding:?} at {now}");
    }
    refused(&accepted, bound(&third, nines, &EXPORTER, spki), NOW);
    refused(&accepted, bound(&third, &CHALLENGE, nines, spki), NOW);
    refused(&accepted, bound(&scene.proof, nines, nines, spki), NOW);
    refused(&accepted, bound(&third, nines, nines, &Sha256Digest::of(b"relay")), NOW);
    refused(&accepted, bound(&third, nines, nines, spki), NOW + 1);
    refused(
        &accepted,
        Binding::GuestClient { proof: &third, challenge: nines, exporter: nines, spki_sha256: spki },
        NOW,
    );
    refused(&accepted, Binding::KeyRelease { challenge: nines, exporter: nines }, NOW);
    refused(&accepted, Binding::Document { moment: Moment::Serving }, NOW);
    let changes: [fn(&mut ConnectionProof); 9] = [
        |proof| proof.schema.push('x'),
        |proof| proof.evidence = Sha256Digest::ZERO,
        |proof| proof.quote = Base64::new(vec![0; 10]).unwrap(),
        |proof| proof.receipt_head = Sha256Digest::ZERO,
        |proof| proof.receipt_count += 1,
        |proof| proof.freshness.root = Sha256Digest::ZERO,
        |proof| proof.freshness.tree_size += 1,
        |proof| proof.freshness.kind = FreshnessKind::TlsClient,
        |proof| proof.path.push(Sha256Digest::ZERO),
    ];
    for change in changes {
        let mut changed = third.clone();
        change(&mut changed);
        refused(&accepted, bound(&changed, nines, nines, spki), NOW);
    }
    // A tree of the host's own, which has the leaf and was quoted by nobody.
    let own_tree = Tree::new(vec![leaf([9; 32], [9; 32])]).unwrap();
    let mut forged = ConnectionProof { leaf_index: 0, path: Vec::new(), ..scene.proof.clone() };
    (forged.freshness.tree_size, forged.freshness.root) = (1, own_tree.root());
    refused(&accepted, bound(&forged, nines, nines, spki), NOW);
    // What was refused, or is bound to no connection, is kept by nobody.
    assert!(scene.appraisal(bound(&third, nines, &EXPORTER, spki), &policy).accept_quote().is_err());
    let document = Binding::Document { moment: Moment::Serving };
    assert!(scene.appraisal(document, &policy).accept_quote().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_and_documents_that_do_not_belong_together_are_refused() {
    let mut scene = Scene::new().await;
    let good = scene.proof.clone();
    scene.proof.receipt_count += 1;
    assert_eq!(scene.codes(), ["report_data_mismatch"]);
    scene.proof = good.clone();
    scene.proof.path.pop();
    assert_eq!(scene.codes(), ["binding_mismatch"]);
    scene.proof = good.clone();
    scene.proof.evidence = Sha256Digest::of(b"other");
    assert_eq!(scene.codes(), ["evidence_digest_mismatch"]);
    scene.proof = good.clone();
    scene.proof.quote = Base64::new(vec![0; 10]).unwrap();
    assert_eq!(scene.codes(), ["quote_mismatch"]);
    scene.proof = good;
    scene.evidence.instance_key = Hex32::new([6; 32]);
    let codes = scene.codes();
    for code in ["evidence_digest_mismatch", "report_data_mismatch", "rtmr3_event_payload", "register_mismatch"] {
        assert!(codes.iter().any(|found| found == code), "{code} in {codes:?}");
    }
}

/// The key that the guest began with may be another one than that of its evidence, but not one that the register does not
/// know; and nothing else about the event may differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_register_says_with_which_key_a_guest_began() {
    let mut scene = Scene::new().await;
    let good = scene.evidence.clone();
    let serve = |payload: &[u8]| types::RuntimeEvent::new(EventName::Serve, payload).unwrap();
    let (first, instance) = (*good.spki_sha256.as_bytes(), *good.instance_key.as_bytes());
    for (payload, code) in [
        ([[1; 32], instance].concat(), "register_mismatch"),
        ([first, [1; 32]].concat(), "rtmr3_event_payload"),
        (first.to_vec(), "rtmr3_event_payload"),
        ([first, instance, [1; 32]].concat(), "rtmr3_event_payload"),
    ] {
        *scene.evidence.events.last_mut().unwrap() = serve(&payload);
        scene.proof.evidence = scene.evidence.digest().unwrap();
        assert_eq!(scene.codes(), [code]);
    }
    scene.evidence = good;
    scene.proof.evidence = scene.evidence.digest().unwrap();
    assert_eq!(scene.codes(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_narrow_what_is_accepted() {
    let scene = Scene::new().await;
    let refuse = |policy: Policy| {
        let reasons = scene.verdict(&CHALLENGE, &EXPORTER, &policy).reasons();
        reasons.into_iter().map(|reason| reason.code).collect::<Vec<_>>()
    };
    let any = Policy::any_release;
    let other = || Some(vec![Sha256Digest::of(b"other")]);
    assert_eq!(refuse(Policy { releases: other(), ..any() }), ["release_not_accepted"]);
    assert_eq!(refuse(Policy { revoked_releases: vec![*scene.release.digest()], ..any() }), ["release_revoked"]);
    assert_eq!(refuse(Policy { service_pins: other(), ..any() }), ["service_pin_mismatch"]);
    let model = types::ModelId::new("model", "1", types::Blake3Digest::of(b"x")).unwrap();
    assert_eq!(refuse(Policy { models: Some(vec![model]), ..any() }), ["model_not_allowed"]);
    assert_eq!(refuse(Policy { instances: Some(vec![Hex32::new([7; 32])]), ..any() }), ["instance_not_allowed"]);
    let pinned = Policy { instances: Some(vec![Hex32::new([5; 32])]), ..any() };
    let verdict = scene.verdict(&CHALLENGE, &EXPORTER, &pinned);
    assert!(verdict.is_accepted() && verdict.instance() == "pinned");
}

/// What a machine of three vCPUs measures, for which the release has no ACPI reference; and the firmware's log of it.
fn unpublished_machine() -> (MachineShape, ExpectedRegisters, Vec<u8>) {
    let shape = MachineShape::new(ShapeFacts { vcpus: 3, ..world::shape().facts() }).unwrap();
    let digest = |file: &str| Sha384Digest::of(file.as_bytes());
    let acpi = AcpiDigests { loader: digest("loader"), rsdp: digest("rsdp"), tables: digest("tables") };
    let expected = world::statement(release::Hardware::Simulated).predicate.registers_with(&shape, &acpi).unwrap();
    // TCG PC Client Platform Firmware Profile, section 10.2: a header that names SHA-384 alone, then the events.
    let words = |list: &[u32]| list.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut header = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
    header.extend([words(&[1]), vec![0x0c, 0, 48, 0, 0]].concat());
    let mut log = [words(&[1, 3]), vec![0; 20], words(&[33]), header].concat();
    for event in &expected.events {
        let index = match event.register {
            RegisterName::Rtmr0 => 1,
            RegisterName::Rtmr1 => 2,
            _ => 3,
        };
        log.extend([words(&[index, 0x8000_000a, 1]), vec![0x0c, 0], event.digest.as_bytes().to_vec()].concat());
        log.extend(words(&[0]));
    }
    (shape, expected, log)
}

/// The weaker rule for ACPI has to be asked for, needs a log that replays, and stands in the verdict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acpi_from_the_guests_log_is_a_policy_of_its_own() {
    let (shape, expected, log) = unpublished_machine();
    let weak = Policy { acpi: AcpiRule::FromEventLog, ..Policy::any_release() };
    let scene = |change: fn(&mut Registers), log: Option<Vec<u8>>| {
        let (shape, expected) = (shape.clone(), expected.clone());
        let launch = move |r: &mut Registers| {
            (r.rtmr_0, r.rtmr_1) = (expected.rtmr_0[0].value, expected.rtmr_1[0].value);
            (r.rtmr_2, r.mr_td) = (expected.rtmr_2[0].value, expected.mr_td[0].value);
            change(r);
        };
        Scene::of(move |c| c.shape.0 = shape, launch, log)
    };
    let reasons = |scene: &Scene, policy: &Policy| {
        let reasons = scene.verdict(&CHALLENGE, &EXPORTER, policy).reasons();
        reasons.into_iter().map(|reason| (reason.code, reason.detail)).collect::<Vec<_>>()
    };

    let good = scene(|_| (), Some(log.clone())).await;
    let verdict = good.verdict(&CHALLENGE, &EXPORTER, &weak);
    assert!(verdict.is_accepted(), "{:?}", verdict.reasons());
    assert_eq!(verdict.acpi(), Some("from-event-log"));
    let strict = reasons(&good, &Policy::any_release());
    assert!(matches!(strict.as_slice(), [(code, _)] if code == "shape_not_published"), "{strict:?}");

    // No log, half a log, a log of another boot, and a log with a digest that was not extended.
    let mut changed = log.clone();
    let place = changed.len() - 10;
    changed[place] ^= 1;
    for (log, says) in [
        (None, "has no firmware event log"),
        (Some(log[..log.len() - 1].to_vec()), "is malformed"),
        (Some(changed), "does not replay"),
    ] {
        let refused = reasons(&scene(|_| (), log).await, &weak);
        let [(code, detail)] = refused.as_slice() else { panic!("{says}: {refused:?}") };
        assert!(code == "shape_not_published" && detail.contains(says), "{says}: {detail}");
    }

    // Another image with an honest log of itself: everything but ACPI is still the release's.
    let other = |event: usize, register: fn(&mut Registers, Sha384Digest)| {
        let mut events: Vec<_> = expected.events.iter().map(|e| (e.register, e.digest)).collect();
        events[event].1 = Sha384Digest::of(b"another");
        let own = events.iter().filter(|(name, _)| *name == events[event].0);
        let value = own.fold(Sha384Digest::ZERO, |value, (_, digest)| value.extend(digest));
        let mut log = log.clone();
        let place = log.len() - (expected.events.len() - event) * EVENT_LEN + 14;
        log[place..place + 48].copy_from_slice(events[event].1.as_bytes());
        (log, move |r: &mut Registers| register(r, value))
    };
    for (name, register, field) in [
        ("kernel", (|r, v| r.rtmr_1 = v) as fn(&mut Registers, Sha384Digest), "rtmr_1"),
        ("initrd", |r, v| r.rtmr_2 = v, "rtmr_2"),
        ("TD HOB", |r, v| r.rtmr_0 = v, "rtmr_0"),
    ] {
        let place = expected.events.iter().position(|event| event.name == name).unwrap();
        let (log, change) = other(place, register);
        let (shape, expected) = (shape.clone(), expected.clone());
        let launch = move |r: &mut Registers| {
            (r.rtmr_0, r.rtmr_1) = (expected.rtmr_0[0].value, expected.rtmr_1[0].value);
            (r.rtmr_2, r.mr_td) = (expected.rtmr_2[0].value, expected.mr_td[0].value);
            change(r);
        };
        let scene = Scene::of(move |c| c.shape.0 = shape, launch, Some(log)).await;
        let reasons = scene.verdict(&CHALLENGE, &EXPORTER, &weak).reasons();
        let found: Vec<_> = reasons.iter().map(|r| (r.code.as_str(), r.field.as_str())).collect();
        assert_eq!(found, [("register_mismatch", field)], "{name}");
    }

    // Where the release has a reference, it is taken before the guest's word.
    let verdict = Scene::new().await.verdict(&CHALLENGE, &EXPORTER, &weak);
    assert_eq!((verdict.is_accepted(), verdict.acpi()), (true, Some("published")));
}

/// A document without a connection is judged, but never accepted for a protocol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_alone_opens_nothing() {
    let scene = Scene::new().await;
    let binding = Binding::Document { moment: Moment::Serving };
    let releases = std::slice::from_ref(&scene.release);
    let policy = &Policy::any_release();
    let appraisal = Appraisal {
        evidence: &scene.evidence,
        binding,
        quote: &scene.quote,
        releases,
        policy,
        rules: None,
        gpu: GpuGrounds::NVIDIA,
        now: NOW,
    };
    // The verified quote is the proof's, not the document's own: that alone is refused.
    assert_eq!(appraisal.appraise().reasons()[0].code, "quote_mismatch");
    assert!(appraisal.accept().is_err());
}
