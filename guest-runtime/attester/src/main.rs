// SPDX-License-Identifier: Apache-2.0
//! The attester of real guests: TDX or nothing. Started by init alone, with two inherited sockets and no arguments.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tee::tdx::Tdx::open() {
        Ok(device) => attester::run(device),
        Err(error) => {
            eprintln!("attester: {error}");
            ExitCode::FAILURE
        }
    }
}
