// SPDX-License-Identifier: Apache-2.0
//! `appraise-gpu`: judges evidence of GPUs and NVSwitches from files, without a network.

use std::path::{Path, PathBuf};

use clap::Args;
use gpu_verify::{
    DeviceEvidence, DriverState, GpuAnchors, GpuAppraisal, GpuPolicy, GpuVerdict, MAX_ANSWER_LEN, MAX_CHAIN_LEN,
    MAX_GPU_POLICY_LEN, MAX_REPORT_LEN, MAX_XML_LEN, Requirement, Rim, RimRefused,
};
use types::Refusal;

use crate::{input, outcome::Outcome};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AppraiseGpuArgs {
    /// Report of a GPU (SPDM 1.1 request and response): raw, hexadecimal or base64. Once for each GPU.
    #[arg(long, value_name = "FILE", required = true)]
    report: Vec<PathBuf>,
    /// Certificates of a GPU in PEM, from its own to the root. Once for each report, in the same order.
    #[arg(long, value_name = "FILE", required = true)]
    chain: Vec<PathBuf>,
    /// Report of an NVSwitch. Once for each switch.
    #[arg(long, value_name = "FILE", requires = "switch_chain")]
    switch_report: Vec<PathBuf>,
    /// Certificates of an NVSwitch. Once for each of its reports, in the same order.
    #[arg(long, value_name = "FILE", requires = "switch_report")]
    switch_chain: Vec<PathBuf>,
    /// Reference manifests (XML) of driver, VBIOS and switch firmware.
    #[arg(long, value_name = "FILE")]
    rim: Vec<PathBuf>,
    /// OCSP answers (DER) about the certificates of devices and manifests.
    #[arg(long, value_name = "FILE")]
    ocsp: Vec<PathBuf>,
    /// When to judge.
    #[arg(long, value_name = "RFC3339", value_parser = input::parse_time)]
    at: u64,
    /// The nonce that the devices were asked with: 64 hexadecimal digits. Not compared when it is not given.
    #[arg(long, value_name = "HEX", value_parser = parse_nonce)]
    nonce: Option<Nonce>,
    /// What the driver tells in the guest: {"confidential": true, "dev_tools": false, "protected_pcie": false}.
    #[arg(long, value_name = "FILE")]
    driver_state: Option<PathBuf>,
    /// The policy (`chrysalis/gpu-policy/v1`); what files alone can show when it is not given.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// A nonce on the command line.
#[derive(Debug, Clone, Copy)]
struct Nonce([u8; 32]);

pub(super) fn appraise_gpu(args: &AppraiseGpuArgs, anchors: &GpuAnchors) -> anyhow::Result<Outcome> {
    if args.report.len() != args.chain.len() || args.switch_report.len() != args.switch_chain.len() {
        let detail = format!(
            "{} reports and {} chains of GPUs, {} and {} of switches",
            args.report.len(),
            args.chain.len(),
            args.switch_report.len(),
            args.switch_chain.len()
        );
        return Ok(refused("gpu_evidence_incomplete", "report", detail, "give one chain for each report"));
    }
    let policy = match &args.policy {
        None => GpuPolicy::files_only(),
        Some(path) => match GpuPolicy::from_json(&input::read(path, MAX_GPU_POLICY_LEN)?) {
            Ok(policy) => policy,
            Err(error) => {
                return Ok(refused("gpu_policy_malformed", "policy", error.to_string(), "correct the policy"));
            }
        },
    };
    let driver_state: Option<DriverState> = match &args.driver_state {
        None => None,
        Some(path) => match serde_json::from_slice(&input::read(path, MAX_DRIVER_STATE)?) {
            Ok(state) => Some(state),
            Err(error) => {
                let fix = "write the three fields that --help shows";
                return Ok(refused("gpu_driver_state_malformed", "driver_state", error.to_string(), fix));
            }
        },
    };
    let ocsp = read_all(&args.ocsp, MAX_ANSWER_LEN)?;
    let rims = read_rims(&args.rim, anchors, &ocsp, policy.revocation, args.at)?;
    let gpus = read_devices(&args.report, &args.chain)?;
    let switches = read_devices(&args.switch_report, &args.switch_chain)?;
    let verdict = GpuAppraisal {
        gpus: &evidence(&gpus),
        switches: &evidence(&switches),
        rims: &rims,
        ocsp: &ocsp,
        nonce: args.nonce.as_ref().map(|nonce| &nonce.0),
        driver_state: driver_state.as_ref(),
        policy: &policy,
        anchors,
        now: args.at,
    }
    .appraise();
    let document = serde_json::to_value(&verdict)?;
    Ok(Outcome::judged(describe(&document, &verdict), document, verdict.reasons()))
}

fn read_rims(
    paths: &[PathBuf],
    anchors: &GpuAnchors,
    ocsp: &[Vec<u8>],
    revocation: Requirement,
    now: u64,
) -> anyhow::Result<Vec<Result<Rim, RimRefused>>> {
    let files = read_all(paths, MAX_XML_LEN)?;
    Ok(files.iter().map(|bytes| Rim::verify(bytes, anchors, ocsp, revocation, now)).collect())
}

fn read_devices(reports: &[PathBuf], chains: &[PathBuf]) -> anyhow::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let read = |(report, chain): (&PathBuf, &PathBuf)| -> anyhow::Result<_> {
        Ok((input::read_binary(report, MAX_REPORT_LEN)?, input::read(chain, MAX_CHAIN_LEN)?))
    };
    reports.iter().zip(chains).map(read).collect()
}

fn read_all(paths: &[PathBuf], max: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    paths.iter().map(|path: &PathBuf| input::read(Path::new(path), max)).collect()
}

fn evidence(devices: &[(Vec<u8>, Vec<u8>)]) -> Vec<DeviceEvidence<'_>> {
    devices.iter().map(|(report, chain)| DeviceEvidence { report, chain }).collect()
}

/// What was not looked at comes first: an acceptance says no more than its inputs allow.
fn describe(document: &serde_json::Value, verdict: &GpuVerdict) -> Vec<String> {
    let word = |name: &str| document.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let mut lines = vec![
        format!("hardware: {}", word("hardware")),
        format!("nonce: {}", word("nonce")),
        format!("revocation: {}", word("revocation")),
        format!("driver state: {}", word("driver_state")),
    ];
    let passed = verdict.checks().iter().filter(|check| check.passed);
    lines.extend(passed.map(|check| format!("ok: {} ({})", check.field, check.found)));
    lines
}

fn refused(code: &str, field: &str, detail: String, fix: &str) -> Outcome {
    Outcome::refused(vec![Refusal::new(code, field, detail, fix)])
}

fn parse_nonce(text: &str) -> Result<Nonce, String> {
    let mut nonce = [0; 32];
    let text = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(text, &mut nonce).map_err(|_| "a nonce has 64 hexadecimal digits".to_owned())?;
    Ok(Nonce(nonce))
}

const MAX_DRIVER_STATE: usize = 1024;
const EXAMPLES: &str = "Examples:
  attestation-service appraise-gpu --report gpu.hex --chain gpu.pem --rim driver.xml --rim vbios.xml --at 2026-03-20T00:00:00Z --json
  attestation-service appraise-gpu --report a.bin --chain a.pem --report b.bin --chain b.pem --rim driver.xml --rim vbios.xml \\
    --nonce HEX --driver-state state.json --ocsp a.der --ocsp b.der --policy policy.json --at 2026-03-20T00:00:00Z

Exit codes: 0 accepted, 2 refused (with reasons), 64 wrong usage, 1 anything else.";
