// SPDX-License-Identifier: Apache-2.0
//! The attestation service, with Intel's root compiled in.

use std::process::ExitCode;

fn main() -> ExitCode {
    attestation_service::run(&tdx_verify::TrustAnchors::intel(), std::env::args_os())
}
