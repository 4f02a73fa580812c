// SPDX-License-Identifier: Apache-2.0
//! Evidence of GPUs. Signatures and certificates differ from process to process, so that none stands here: reports and
//! manifests have empty ones, and edits put bytes that are always the same in their own place.

use super::Seed;
use crate::gpu::{
    ANSWERS, CHAIN, DRIVER, PDI, REPORT, VBIOS,
    maker::{Device, MAKER, OcspStatus, RimSpec, answer, sign_rim},
};

pub(super) fn all() -> Vec<Seed> {
    let of = |name, kind: u8, bytes: &[u8]| Seed { target: "gpu", name, bytes: [&[kind], bytes].concat() };
    let gpu = unsigned(&Device::gpu(PDI));
    let in_place = |part, at: usize, bytes: &[u8]| edit(part, at, bytes.len(), bytes);
    let (driver, vbios) = (RimSpec::driver().body(), RimSpec::vbios().body());
    let begin = b"-----BEGIN CERTIFICATE-----";
    let meta = vbios.find("<ns0:Meta").expect("a manifest has one");
    vec![
        of("report", b'r', &gpu),
        of("report-switch", b'r', &unsigned(&Device::switch(PDI, &[[7; 8]]))),
        of("manifest", b'x', &unsigned_rim(&RimSpec::vbios())),
        of("unchanged", b'm', &[]),
        of("in-report", b'm', &in_place(REPORT, 0, &gpu[..200])),
        of(
            "in-opaque",
            b'm',
            &in_place(REPORT, gpu.len() - SIGNATURE - 150, &gpu[gpu.len() - SIGNATURE - 150..][..150]),
        ),
        of("in-chain", b'm', &in_place(CHAIN, 0, begin)),
        of("in-driver", b'm', &in_place(DRIVER, 0, &driver.as_bytes()[..200])),
        of("in-vbios", b'm', &in_place(VBIOS, meta, &vbios.as_bytes()[meta..][..200])),
        // `responseStatus` of the first answer.
        of("in-answer", b'm', &in_place(ANSWERS, 4, &[0x0a, 1, 0])),
        of("in-answer-signed", b'm', &in_place(ANSWERS, produced_at(), PRODUCED_AT)),
        // White space in a tag and before a certificate.
        of("spelling", b'm', &[edit(DRIVER, 17, 0, b" \n"), edit(CHAIN, 0, 0, b"\r\n")].concat()),
    ]
}

fn edit(part: usize, place: usize, removed: usize, put: &[u8]) -> Vec<u8> {
    let byte = |number: usize| u8::try_from(number).expect("a small number");
    let [low, high] = u16::try_from(place).expect("parts are small").to_le_bytes();
    [&[byte(part), low, high, byte(removed), byte(put.len())], put].concat()
}

/// Where `producedAt` of the first answer stands: before all that differs from process to process.
fn produced_at() -> usize {
    let answer = answer(&MAKER.device[2].der, &MAKER.device[2], OcspStatus::Good, "20251201", "20260201");
    answer.windows(PRODUCED_AT.len()).position(|window| window == PRODUCED_AT).expect("an answer has a time")
}

fn unsigned(device: &Device) -> Vec<u8> {
    let mut report = device.make().report;
    let place = report.len() - SIGNATURE;
    report[place..].fill(7);
    report
}

/// With the maker's structure, but neither certificates nor a signature.
fn unsigned_rim(spec: &RimSpec) -> Vec<u8> {
    let root = &MAKER.rim[..1];
    let mut text = sign_rim(&spec.body(), &root[0], root);
    for name in ["SignatureValue", "X509Certificate"] {
        let (begin, end) = (format!("<ds:{name}>"), format!("</ds:{name}>"));
        let parts: Vec<_> =
            text.split(&begin).map(|part| part.split_once(&end).map_or(part, |(_, rest)| rest)).collect();
        text = parts.join(&format!("{begin}MAA={end}"));
    }
    text.into_bytes()
}

const PRODUCED_AT: &[u8] = b"20251201000000Z";
/// ECDSA with P-384.
const SIGNATURE: usize = 96;
