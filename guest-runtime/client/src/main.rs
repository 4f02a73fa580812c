// SPDX-License-Identifier: Apache-2.0
//! `attested-proxy` for real hardware: Intel's root is compiled in.

use std::process::ExitCode;

fn main() -> ExitCode {
    client::run(&tdx_verify::TrustAnchors::intel(), std::env::args_os())
}
