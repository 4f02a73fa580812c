// SPDX-License-Identifier: Apache-2.0
//! The attestation service over simulated hardware, for development only.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tdx_sim::take_root(std::env::args_os()) {
        Ok((root, args)) => attestation_service::run(&tdx_verify::TrustAnchors::custom(root), args),
        Err(error) => error.report(),
    }
}
