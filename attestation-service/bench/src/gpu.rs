// SPDX-License-Identifier: Apache-2.0
//! What the evidence of one GPU costs: a real H100's report with its certificates, and both manifests from their XML.

use std::path::Path;

use anyhow::Context as _;
use gpu_verify::{DeviceEvidence, GpuAnchors, GpuAppraisal, GpuPolicy, Requirement, Rim};

use crate::{
    appraisal::processor_seconds,
    figure::{Figure, quantile},
};

/// Nothing where the recorded evidence is not at hand: it is NVIDIA's, and no part of this repository.
pub(crate) fn measure(vectors: &Path, rounds: u16) -> anyhow::Result<Vec<Figure>> {
    let dir = vectors.join("nvidia");
    if !dir.is_dir() {
        eprintln!("SKIPPED: a GPU's evidence ({} is absent)", dir.display());
        return Ok(Vec::new());
    }
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| name.to_owned());
    let report = hex::decode(read("h100_545.00_report.txt")?.trim_ascii())?;
    let chain = read("h100_545.00_chain.txt")?;
    let manifests = [read("h100_545.00_driver_rim.swidtag")?, read("h100_545.00_vbios_rim.swidtag")?];
    let anchors = GpuAnchors::nvidia();
    let mut seconds = Vec::new();
    for round in 0..=rounds {
        let start = processor_seconds();
        let rims = manifests.each_ref().map(|xml| Rim::verify(xml, &anchors, &[], Requirement::Optional, VALID));
        let verdict = GpuAppraisal {
            gpus: &[DeviceEvidence { report: &report, chain: &chain }],
            switches: &[],
            rims: &rims,
            ocsp: &[],
            nonce: None,
            driver_state: None,
            policy: &GpuPolicy::files_only(),
            anchors: &anchors,
            now: VALID,
        }
        .appraise();
        let took = processor_seconds() - start;
        anyhow::ensure!(verdict.is_accepted(), "the recorded evidence is not accepted");
        // The first round only warms up.
        if round > 0 {
            seconds.push(took);
        }
    }
    let milliseconds = quantile(&mut seconds, 0.5) * 1000.0;
    Ok(vec![Figure::at_most("a GPU's report, its certificates and two manifests", milliseconds, "ms", 10.0)])
}

/// 2024-12-01: the manifests' certificates ended in June 2025.
const VALID: u64 = 1_733_011_200;
