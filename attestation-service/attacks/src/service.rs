// SPDX-License-Identifier: Apache-2.0
//! The attestation service over simulated hardware, for development only. `--sim-gpu-roots DEVICE RIM`, right after
//! `--sim-root FILE`, are SHA-256 of the roots of GPUs that were made for tests; without them NVIDIA's count.

use std::ffi::OsString;
use std::process::ExitCode;

use gpu_verify::GpuAnchors;
use tdx_verify::TrustAnchors;

fn main() -> ExitCode {
    let (root, mut args) = match tdx_sim::take_root(std::env::args_os()) {
        Ok(taken) => taken,
        Err(error) => return error.report(),
    };
    let gpu = if args.get(1).is_some_and(|flag| flag == "--sim-gpu-roots") {
        let roots: Vec<_> = args.drain(1..args.len().min(4)).skip(1).filter_map(digest).collect();
        let [device, rim] = roots.as_slice() else {
            eprintln!("{}: --sim-gpu-roots takes two SHA-256 digests", tdx_sim::SIMULATED);
            return ExitCode::from(64);
        };
        GpuAnchors::custom(*device, *rim)
    } else {
        GpuAnchors::nvidia()
    };
    attestation_service::run_with(&TrustAnchors::custom(root), &gpu, args)
}

fn digest(text: OsString) -> Option<types::Sha256Digest> {
    text.to_str()?.parse().ok()
}
