// SPDX-License-Identifier: Apache-2.0
//! `host-agent`, as it is released; with `CHRYSALIS_FAKE_KERNEL` in the environment it binds devices in a tree of files, with `--sim-root FILE` first it judges this host's TCB under a simulated root.

use std::process::ExitCode;

use host_agent::Surroundings;
use tdx_verify::TrustAnchors;

fn main() -> ExitCode {
    let mut surroundings = Surroundings::real();
    if std::env::var_os("CHRYSALIS_FAKE_KERNEL").is_some() {
        surroundings.sysfs = agent_tests::fake_kernel;
    }
    if std::env::args_os().nth(1).is_none_or(|first| first != "--sim-root") {
        return host_agent::run(&surroundings, std::env::args_os());
    }
    match tdx_sim::take_root(std::env::args_os()) {
        Ok((root, args)) => {
            surroundings.anchors = TrustAnchors::custom(root);
            host_agent::run(&surroundings, args)
        }
        Err(error) => error.report(),
    }
}
