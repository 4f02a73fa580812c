// SPDX-License-Identifier: Apache-2.0
//! `host-agent`, as it is released; with `--sim-root FILE` first it judges this host's TCB under a simulated root.

use std::process::ExitCode;

use tdx_verify::TrustAnchors;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_none_or(|first| first != "--sim-root") {
        return host_agent::run(&TrustAnchors::intel(), std::env::args_os());
    }
    match tdx_sim::take_root(std::env::args_os()) {
        Ok((root, args)) => host_agent::run(&TrustAnchors::custom(root), args),
        Err(error) => error.report(),
    }
}
