// SPDX-License-Identifier: Apache-2.0
//! Development only: the attester over the simulated quote device. Hardware simulated.

use std::process::ExitCode;

fn main() -> ExitCode {
    match linux_sys::vsock::to_host(attester_sim::PORT, None) {
        Ok(stream) => attester::run(attester_sim::Simulated::new(stream)),
        Err(error) => {
            eprintln!("attester-sim (hardware simulated): {error}");
            ExitCode::FAILURE
        }
    }
}
