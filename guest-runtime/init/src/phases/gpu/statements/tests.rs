// SPDX-License-Identifier: Apache-2.0
use std::{collections::BTreeMap, path::Path, thread};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use blob_protocol::REQUEST_HEAD;
use types::{Base64, GpuReport, Sha256Digest};

use super::{
    super::judge::maker::{Device, MAKER, Made, NOW, OcspStatus, RimSpec, answer},
    *,
};

const DRIVER: &str = "NV_GPU_DRIVER_GH100_550.10";
const VBIOS: &str = "NV_GPU_VBIOS_1010_0200_882_96005E0001";

type Files = BTreeMap<(u8, String), Vec<u8>>;

/// A host that has `files`; it counts what it was asked for.
fn given(files: Files) -> (Host, thread::JoinHandle<Vec<String>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let asked = thread::spawn(move || {
        let mut asked = Vec::new();
        let mut head = [0; REQUEST_HEAD];
        while theirs.read_exact(&mut head).is_ok() {
            let (kind, length) = Request::head(head).unwrap();
            let mut name = vec![0; length];
            theirs.read_exact(&mut name).unwrap();
            let request = Request::named(kind, &name).unwrap();
            let name = request.name.as_str().to_owned();
            let found = files.get(&(kind.number(), name.clone())).cloned();
            asked.push(name);
            let head = found.as_ref().map_or(Answer::Absent, |bytes| Answer::Present(bytes.len()));
            theirs.write_all(&head.to_bytes().unwrap()).unwrap();
            theirs.write_all(&found.unwrap_or_default()).unwrap();
        }
        asked
    });
    (Host::at(Some(ours)), asked)
}

fn evidence(made: &[Made]) -> GpuEvidence {
    let report = |(number, made): (usize, &Made)| GpuReport {
        uuid: format!("GPU-{number}"),
        report: Base64::new(made.report.clone()).unwrap(),
        chain: Base64::new(made.chain.clone()).unwrap(),
    };
    GpuEvidence { epoch: 1, reports: made.iter().enumerate().map(report).collect(), ..GpuEvidence::NONE }
}

fn rims(rims: &[(&str, Vec<u8>)]) -> Files {
    rims.iter().map(|(name, bytes)| ((Kind::Rim.number(), (*name).to_owned()), bytes.clone())).collect()
}

fn good() -> Files {
    rims(&[(DRIVER, RimSpec::driver().xml()), (VBIOS, RimSpec::vbios().xml())])
}

fn ocsp(certificate: &[u8], bytes: Vec<u8>) -> ((u8, String), Vec<u8>) {
    ((Kind::Ocsp.number(), Sha256Digest::of(certificate).to_string()), bytes)
}

/// The certificate at a place of a chain in PEM.
fn certificate(chain: &[u8], place: usize) -> Vec<u8> {
    let text = String::from_utf8(chain.to_vec()).unwrap();
    let block = text.split("-----BEGIN CERTIFICATE-----").nth(place + 1).unwrap();
    let block = block.split("-----END").next().unwrap().replace(['\n', '\r'], "");
    STANDARD.decode(block).unwrap()
}

fn judged(made: &[Made], files: Files) -> Result<[NoteCode; 2], Code> {
    let (mut host, _) = given(files);
    check(&evidence(made), &mut host, &MAKER.anchors(), NOW).map_err(|failure| failure.code)
}

const NEITHER: Result<[NoteCode; 2], Code> = Ok([NoteCode::GpuNotCompared, NoteCode::GpuRevocationNotChecked]);
const COMPARED: Result<[NoteCode; 2], Code> = Ok([NoteCode::GpuCompared, NoteCode::GpuRevocationNotChecked]);

#[test]
fn manifests_are_asked_for_by_their_names_and_each_once() {
    let made = [Device::gpu([1; 8]).make(), Device::gpu([2; 8]).make()];
    let (mut host, asked) = given(good());
    assert_eq!(check(&evidence(&made), &mut host, &MAKER.anchors(), NOW).map_err(|failure| failure.code), COMPARED);
    drop(host);
    let asked = asked.join().unwrap();
    assert_eq!(asked[..2], [DRIVER, VBIOS]);
    // Two boot ROMs, two authorities of devices, two signers of manifests, two authorities of those.
    assert_eq!(asked.len(), 2 + 8, "{asked:?}");
    let boot_rom = Sha256Digest::of(&certificate(&made[0].chain, 1)).to_string();
    assert!(asked.contains(&boot_rom));
}

#[test]
fn a_host_without_files_or_without_an_end_is_as_before() {
    let made = [Device::gpu([1; 8]).make()];
    assert_eq!(judged(&made, Files::new()), NEITHER);
    let anchors = MAKER.anchors();
    let mut nobody = Host::at(None);
    assert_eq!(check(&evidence(&made), &mut nobody, &anchors, NOW).map_err(|failure| failure.code), NEITHER);
    for noise in [b"".as_slice(), b"HTTP/1.1 400\r\n\r\n", b"CBLB\x01\x01\xff\xff\xff\xff"] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(noise).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut host = Host::at(Some(ours));
        assert_eq!(check(&evidence(&made), &mut host, &anchors, NOW).map_err(|failure| failure.code), NEITHER);
    }
    // One manifest alone is compared, and that the other one is missing is said.
    let one = rims(&[(DRIVER, RimSpec::driver().xml())]);
    assert_eq!(judged(&made, one), NEITHER);
}

#[test]
fn a_slow_host_costs_half_a_minute_at_most_and_no_boot() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut host = Host::at(Some(ours));
    host.until = Instant::now() + Duration::from_millis(300);
    let dripping = thread::spawn(move || {
        for byte in Answer::Present(9).to_bytes().unwrap().into_iter().chain([0; 9]) {
            if theirs.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    let began = Instant::now();
    assert_eq!(host.get(Kind::Rim, "a"), None);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(host.get(Kind::Rim, "b"), None, "it is not asked again");
    dripping.join().unwrap();
}

#[test]
fn what_differs_from_a_signed_manifest_ends_the_boot() {
    let mut device = Device::gpu([1; 8]);
    device.changed = vec![(8, [0xab; 48])];
    assert_eq!(judged(&[device.make()], good()), Err(Code::GpuMeasurements));
    // One of several, and with one of its manifests only.
    let driver = rims(&[(DRIVER, RimSpec::driver().xml())]);
    assert_eq!(judged(&[Device::gpu([2; 8]).make(), device.make()], driver), Err(Code::GpuMeasurements));
    // The host can leave manifests out: then it is as strict as without them, and the service compares.
    assert_eq!(judged(&[device.make()], Files::new()), NEITHER);
}

#[test]
fn what_nobody_signed_counts_for_nothing() {
    let made = [Device::gpu([1; 8]).make()];
    let mut other = RimSpec::driver();
    other.resources[0].2 = vec![[0xab; 48]];
    let unsigned = String::from_utf8(other.xml()).unwrap().replace(&"ab".repeat(48), &"ac".repeat(48));
    let truncated = RimSpec::driver().xml()[..500].to_vec();
    for bytes in [unsigned.into_bytes(), truncated, b"<x/>".to_vec(), vec![0xff; 256 * 1024]] {
        assert_eq!(judged(&made, rims(&[(DRIVER, bytes)])), NEITHER);
    }
    // With what a released program trusts, the test's maker is nobody; so are the manifests it signs.
    let mut changed = Device::gpu([1; 8]);
    changed.changed = vec![(8, [0xab; 48])];
    let (mut host, _) = given(good());
    let nvidia = check(&evidence(&[changed.make()]), &mut host, &GpuAnchors::nvidia(), NOW);
    assert_eq!(nvidia.map_err(|failure| failure.code), NEITHER);
    // Nor does a signed manifest of another version say anything.
    let version = RimSpec { version: "550.11", ..other };
    assert_eq!(judged(&made, rims(&[(DRIVER, version.xml())])), NEITHER);
    let expired = {
        let (mut host, _) = given(good());
        check(&evidence(&made), &mut host, &MAKER.anchors(), 2_000_000_000).map_err(|failure| failure.code)
    };
    assert_eq!(expired, NEITHER, "a manifest whose time is over");
}

#[test]
fn a_revoked_device_or_manifest_ends_the_boot_and_a_forged_answer_does_not() {
    let made = [Device::gpu([1; 8]).make()];
    let boot_rom = certificate(&made[0].chain, 1);
    let with = |certificate: &[u8], issuer: usize, status, from, to, rim: bool| {
        let authorities = if rim { &MAKER.rim } else { &MAKER.device };
        let bytes = answer(certificate, &authorities[issuer], status, from, to);
        let mut files = good();
        files.extend([ocsp(certificate, bytes)]);
        judged(&made, files)
    };
    let (from, to) = ("20251201", "20260201");
    assert_eq!(with(&boot_rom, 2, OcspStatus::Revoked, from, to, false), Err(Code::GpuRevoked));
    assert_eq!(with(&boot_rom, 2, OcspStatus::Unknown, from, to, false), Err(Code::GpuRevoked));
    assert_eq!(with(&MAKER.device[2].der, 1, OcspStatus::Revoked, from, to, false), Err(Code::GpuRevoked));
    assert_eq!(with(&MAKER.rim[2].der, 1, OcspStatus::Revoked, from, to, true), Err(Code::GpuRevoked));
    // However old, a revocation counts; another answer counts in its time only.
    assert_eq!(with(&boot_rom, 2, OcspStatus::Revoked, "20240201", "20240301", false), Err(Code::GpuRevoked));
    assert_eq!(with(&boot_rom, 2, OcspStatus::Good, "20240201", "20240301", false), COMPARED);
    // By somebody else's key.
    assert_eq!(with(&boot_rom, 1, OcspStatus::Revoked, from, to, false), COMPARED);
    let mut noise = good();
    noise.extend([ocsp(&boot_rom, vec![0x30; 16 * 1024])]);
    assert_eq!(judged(&made, noise), COMPARED);
}

#[test]
fn good_answers_about_all_certificates_are_said() {
    let made = [Device::gpu([1; 8]).make()];
    let mut files = good();
    let good = |certificate: &[u8], issuer| answer(certificate, issuer, OcspStatus::Good, "20251201", "20260201");
    let boot_rom = certificate(&made[0].chain, 1);
    files.extend([ocsp(&boot_rom, good(&boot_rom, &MAKER.device[2]))]);
    for place in [1, 2] {
        for authorities in [&MAKER.device, &MAKER.rim] {
            let certificate = &authorities[place].der;
            files.extend([ocsp(certificate, good(certificate, &authorities[place - 1]))]);
        }
    }
    assert_eq!(judged(&made, files.clone()), COMPARED, "the signers of the manifests are not answered for");
    let signers: Vec<_> = [DRIVER, VBIOS].map(|name| first_certificate(&files[&(1, name.to_owned())])).into();
    for signer in signers {
        files.extend([ocsp(&signer, good(&signer, &MAKER.rim[2]))]);
    }
    assert_eq!(judged(&made, files), Ok([NoteCode::GpuCompared, NoteCode::GpuRevocationChecked]));
}

fn first_certificate(xml: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(xml.to_vec()).unwrap();
    let block = text.split("<ds:X509Certificate>").nth(1).unwrap().split('<').next().unwrap();
    STANDARD.decode(block).unwrap()
}

/// A real H100 with NVIDIA's own manifests of its driver and VBIOS.
#[test]
fn a_real_device_is_compared_with_real_manifests() {
    const DECEMBER_2024: u64 = 1_733_011_200;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/nvidia");
    let file = |name: &str| std::fs::read(directory.join(name)).ok();
    let Some(report) = file("h100_545.00_report.txt") else {
        println!("SKIPPED: no test vectors of NVIDIA devices");
        return;
    };
    let report = hex::decode(String::from_utf8(report).unwrap().trim()).unwrap();
    let made = [Made { report, chain: file("h100_545.00_chain.txt").unwrap() }];
    let gpu = evidence(&made);
    let reports = devices(&gpu);
    let anchors = GpuAnchors::nvidia();
    let nothing =
        Statements { gpus: &reports, switches: &[], manifests: &[], ocsp: &[], anchors: &anchors, now: DECEMBER_2024 };
    let names = nothing.manifest_names();
    assert_eq!(names[0], "NV_GPU_DRIVER_GH100_545.00");
    assert!(names[1].starts_with("NV_GPU_VBIOS_") && names[1].ends_with("_96005E0001"), "{names:?}");
    let (driver, vbios) =
        (file("h100_545.00_driver_rim.swidtag").unwrap(), file("h100_545.00_vbios_rim.swidtag").unwrap());
    let judged = |driver: Vec<u8>, now| {
        let (mut host, _) = given(rims(&[(&names[0], driver), (&names[1], vbios.clone())]));
        check(&gpu, &mut host, &anchors, now).map_err(|failure| failure.code)
    };
    assert_eq!(judged(driver.clone(), DECEMBER_2024), COMPARED);
    assert_eq!(judged(driver.clone(), 1_780_272_000), NEITHER, "in June 2026 they have expired");
    let mut changed = driver;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    assert_eq!(judged(changed, DECEMBER_2024), NEITHER);
}

/// A host may take what it is asked in pieces, each just before it would be given up.
#[test]
fn writing_has_an_end_however_slowly_it_is_taken() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let taking = thread::spawn(move || {
        let mut some = [0; 16 << 10];
        while theirs.read(&mut some).is_ok_and(|read| read > 0) {
            thread::sleep(Duration::from_millis(30));
        }
    });
    let start = Instant::now();
    let error = write_until(&mut ours, &vec![0; 8 << 20], start + Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
    // All of it would take a quarter of a minute.
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(ours);
    taking.join().unwrap();
}

#[test]
fn caps_of_the_wire_are_those_of_the_readers() {
    assert_eq!(Kind::Rim.max_len(), gpu_verify::MAX_XML_LEN);
    assert_eq!(Kind::Ocsp.max_len(), gpu_verify::MAX_ANSWER_LEN);
    const { assert!(MAX_RIMS + MAX_ANSWERS <= MAX_REQUESTS) };
}
