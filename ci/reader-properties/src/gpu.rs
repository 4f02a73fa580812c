// SPDX-License-Identifier: Apache-2.0
//! Evidence of GPUs: reports, certificates, reference manifests and OCSP answers.

#[path = "../../../attestation-service/gpu-verify/tests/synthetic/world/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the tests' own maker, which fails loudly"
)]
pub(crate) mod maker;

use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gpu_verify::{
    DeviceEvidence, DriverState, GpuAnchors, GpuAppraisal, GpuPolicy, GpuVerdict, MAX_REPORT_LEN, MAX_VALUE_LEN,
    Requirement, Rim, RimLibrary, RimRefused, SpdmReport,
};

use self::maker::{Authority, Device, MAKER, NONCE, NOW, OcspStatus, RimSpec, answer};

/// `r` and a report, `x` and a manifest, or `m` and edits of good evidence: which part ([`REPORT`] and so on), where
/// (two bytes, little endian), how many bytes are taken out, how many are put in, and those.
///
/// Reports and manifests of invented bytes are accepted when they can be read; nobody signed them, so they never
/// verify. Edited evidence is accepted when its verdict says so.
pub fn gpu(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'r', report)) => is_report(report),
        Some((b'x', manifest)) => is_manifest(manifest),
        Some((b'm', edits)) => edited(edits),
        _ => false,
    }
}

fn is_report(bytes: &[u8]) -> bool {
    let world = world();
    let device = [DeviceEvidence { report: bytes, chain: &world.parts[CHAIN] }];
    let verdict = world.appraise(&device, &device, &world.rims, &world.parts[ANSWERS..]);
    assert!(!verdict.is_accepted(), "a report that no device signed");
    let (_, summary) = verdict.into_parts();
    assert!(summary.gpus().is_empty() && summary.switches().is_empty(), "a device that signed nothing");
    let Ok(report) = SpdmReport::parse(bytes) else { return false };
    assert!(bytes.len() <= MAX_REPORT_LEN, "a report that is too large");
    assert_eq!(bytes[4..36], report.nonce, "the nonce stands in the request");
    let values = report.measurements.values().all(|found| (1..=MAX_VALUE_LEN).contains(&found.value.len()));
    assert!(values && !report.measurements.contains_key(&0), "a measurement out of its range");
    assert!(SpdmReport::parse(&[bytes, &[0]].concat()).is_err(), "a byte after the report");
    assert!(SpdmReport::parse(&bytes[..bytes.len() - 1]).is_err(), "a report without its last byte");
    true
}

fn is_manifest(bytes: &[u8]) -> bool {
    let read = RimLibrary::new(vec![bytes.to_vec()]).is_ok();
    let refused = Rim::verify(bytes, &world().anchors, &[], Requirement::Optional, NOW);
    let refused = refused.expect_err("a manifest that nobody signed");
    assert!(!refused.faults.is_empty() && !refused.refusals().is_empty(), "a refusal has a reason");
    assert_eq!(refused.claims.is_some(), read, "a library reads what verification reads");
    read
}

fn edited(edits: &[u8]) -> bool {
    let world = world();
    let mut parts = world.parts.clone();
    Edit::all(edits, |edit| edit.apply(&mut parts));
    let rims = [DRIVER, VBIOS].map(|part| world.manifest(part, &parts));
    let device = DeviceEvidence { report: &parts[REPORT], chain: &parts[CHAIN] };
    let verdict = world.appraise(&[device], &[], &rims, &parts[ANSWERS..]);
    if !verdict.is_accepted() {
        assert_ne!(parts, world.parts, "good evidence was refused: {:?}", verdict.reasons());
        return false;
    }
    assert!(parts[REPORT] == world.parts[REPORT], "a changed report was accepted");
    assert_eq!(without_space(&parts[CHAIN]), without_space(&world.parts[CHAIN]), "changed certificates were accepted");
    for signed in &world.signed {
        let there = parts[ANSWERS..].iter().any(|part| part.windows(signed.len()).any(|window| window == signed));
        assert!(there, "revocation was taken for checked without an answer");
    }
    assert_eq!(verdict.expires(), world.expires, "the verdict lasts as long as what was signed");
    true
}

/// One change of the good evidence.
struct Edit<'a> {
    part: usize,
    place: usize,
    removed: usize,
    put: &'a [u8],
}

impl<'a> Edit<'a> {
    fn all(mut bytes: &'a [u8], mut visit: impl FnMut(Self)) {
        for _ in 0..MAX_EDITS {
            let Some(([part, low, high, removed, len], rest)) = bytes.split_first_chunk() else { return };
            let (put, rest) = rest.split_at(usize::from(*len).min(rest.len()));
            let place = usize::from(u16::from_le_bytes([*low, *high]));
            visit(Self { part: usize::from(*part), place, removed: usize::from(*removed), put });
            bytes = rest;
        }
    }

    fn apply(self, parts: &mut [Vec<u8>]) {
        let count = parts.len();
        let part = &mut parts[self.part % count];
        let from = self.place % (part.len() + 1);
        let to = (from + self.removed).min(part.len());
        part.splice(from..to, self.put.iter().copied());
    }
}

/// Good evidence, made once for each process: no input depends on its keys.
struct World {
    anchors: GpuAnchors,
    /// Report, chain, two manifests, and an OCSP answer about every certificate that somebody issued.
    parts: Vec<Vec<u8>>,
    /// The manifests, verified.
    rims: [Result<Rim, RimRefused>; 2],
    /// What is signed of each answer.
    signed: Vec<Vec<u8>>,
    expires: u64,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let made = Device::gpu(PDI).make();
        let manifests = [RimSpec::driver(), RimSpec::vbios()].map(|spec| spec.xml());
        let good =
            |certificate: &[u8], by: &Authority| answer(certificate, by, OcspStatus::Good, "20251201", "20260201");
        let boot_rom = base64_between(&made.chain, "-----BEGIN CERTIFICATE-----", "-----END", 1);
        let mut answers = vec![good(&boot_rom, &MAKER.device[2])];
        for authorities in [&MAKER.device, &MAKER.rim] {
            answers.extend([2, 1].map(|place| good(&authorities[place].der, &authorities[place - 1])));
        }
        for xml in &manifests {
            answers.push(good(&base64_between(xml, "<ds:X509Certificate>", "</ds:X509", 0), &MAKER.rim[2]));
        }
        let anchors = MAKER.anchors();
        let rims = manifests.each_ref().map(|xml| Rim::verify(xml, &anchors, &answers, Requirement::Required, NOW));
        let signed = answers.iter().map(|answer| response_data(answer).to_vec()).collect();
        let parts: Vec<_> = [made.report, made.chain].into_iter().chain(manifests).chain(answers).collect();
        let mut world = World { anchors, parts, rims, signed, expires: 0 };
        let device = DeviceEvidence { report: &world.parts[REPORT], chain: &world.parts[CHAIN] };
        world.expires = world.appraise(&[device], &[], &world.rims, &world.parts[ANSWERS..]).expires();
        world
    })
}

impl World {
    fn appraise(
        &self,
        gpus: &[DeviceEvidence<'_>],
        switches: &[DeviceEvidence<'_>],
        rims: &[Result<Rim, RimRefused>],
        ocsp: &[Vec<u8>],
    ) -> GpuVerdict {
        let state = DriverState { confidential: true, dev_tools: false, protected_pcie: false };
        let verdict = GpuAppraisal {
            gpus,
            switches,
            rims,
            ocsp,
            nonce: Some(&NONCE),
            driver_state: Some(&state),
            policy: &GpuPolicy::strict(),
            anchors: &self.anchors,
            now: NOW,
        }
        .appraise();
        assert_eq!(verdict.is_accepted(), verdict.reasons().is_empty(), "a refusal has a reason");
        verdict
    }

    /// One manifest of edited evidence. It says what was signed, whatever its spelling.
    fn manifest(&self, part: usize, parts: &[Vec<u8>]) -> Result<Rim, RimRefused> {
        if parts[part] == self.parts[part] && parts[ANSWERS..] == self.parts[ANSWERS..] {
            return self.rims[part - DRIVER].clone();
        }
        let found = Rim::verify(&parts[part], &self.anchors, &parts[ANSWERS..], Requirement::Required, NOW);
        if let (Ok(found), Ok(good)) = (&found, &self.rims[part - DRIVER]) {
            assert_eq!(content(found), content(good), "a changed manifest was accepted");
            assert!(!is_one_letter_off(&parts[part], &self.parts[part]), "a changed letter was accepted");
        }
        found
    }
}

/// All that a manifest says, but not how its file is spelt.
fn content(rim: &Rim) -> String {
    format!("{rim:?}").replace(&format!("{:?}", rim.digest()), "")
}

fn is_one_letter_off(found: &[u8], good: &[u8]) -> bool {
    let mut changed = found.iter().zip(good).filter(|(found, good)| found != good).map(|(_, good)| good);
    found.len() == good.len() && changed.next().is_some_and(u8::is_ascii_alphanumeric) && changed.next().is_none()
}

/// Between and inside certificates white space is free, and zeros at the end.
fn without_space(chain: &[u8]) -> String {
    let text = std::str::from_utf8(chain).expect("an accepted chain is text");
    text.trim_end_matches('\0').chars().filter(|letter| !letter.is_whitespace()).collect()
}

/// The bytes of the base64 that stands between two texts, for the `number`th time.
fn base64_between(text: &[u8], begin: &str, end: &str, number: usize) -> Vec<u8> {
    let text = std::str::from_utf8(text).expect("the maker writes text");
    let found = text.split(begin).nth(number + 1).and_then(|rest| rest.split(end).next());
    STANDARD.decode(found.expect("it stands there").trim()).expect("the maker writes base64")
}

/// `ResponseData` of an answer (RFC 6960, section 4.2.1): what is signed.
fn response_data(answer: &[u8]) -> &[u8] {
    let [_, response, _] = element(answer);
    let [_, _, explicit] = element(response);
    let [_, explicit, _] = element(explicit);
    let [_, bytes, _] = element(explicit);
    let [_, _, octets] = element(bytes);
    let [_, octets, _] = element(octets);
    let [_, basic, _] = element(octets);
    element(basic)[0]
}

/// The first element in DER, its content, and what follows it.
fn element(der: &[u8]) -> [&[u8]; 3] {
    let (head, len) = match usize::from(der[1]) {
        short @ 0..0x80 => (2, short),
        long => {
            let digits = &der[2..2 + (long & 0x7f)];
            (2 + digits.len(), digits.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
        }
    };
    [&der[..head + len], &der[head..head + len], &der[head + len..]]
}

/// Of the device whose evidence is edited.
pub(crate) const PDI: [u8; 8] = [0x48, 0xb0, 0x2d, 0xb7, 0x3e, 0x52, 0x13, 0x7e];
/// Parts of the evidence, as an edit names them; answers are the last of them.
pub(crate) const REPORT: usize = 0;
pub(crate) const CHAIN: usize = 1;
pub(crate) const DRIVER: usize = 2;
pub(crate) const VBIOS: usize = 3;
pub(crate) const ANSWERS: usize = 4;
const MAX_EDITS: usize = 8;
