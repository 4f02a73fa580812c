// SPDX-License-Identifier: Apache-2.0
//! The kernel's generator is seeded by the processor before any key is made.

use linux_sys::entropy::{EntropyError, seed_kernel};

use crate::boot::{Boot, Failure};
use crate::boot::{Code, Fails as _};

pub(crate) fn run(boot: &mut Boot) -> Result<(), Failure> {
    let source = seed_kernel(boot.allowances.simulated).map_err(|error| {
        let code = match error {
            EntropyError::NoInstruction => Code::EntropyNoInstruction,
            EntropyError::Exhausted => Code::EntropyExhausted,
            EntropyError::Stuck => Code::EntropyStuck,
            EntropyError::Sys(_) => Code::EntropyNotCredited,
        };
        code.because()(error)
    })?;
    boot.console.say(format_args!("entropy from {source:?}"));
    Ok(())
}
