// SPDX-License-Identifier: Apache-2.0
//! Collects GPU evidence for init: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gpu::run()
}
