// SPDX-License-Identifier: Apache-2.0
//! Attack 70: no release program knows the simulator's root. Its label must stand in the programs that trust it, and in
//! no other.

use std::path::Path;

use anyhow::Context as _;

use crate::programs;

/// The subject of the simulator's root, in any encoding of the dash.
const LABEL: &[u8] = b"Chrysalis simulated TDX root";
const RELEASE: &[&str] =
    &["attestation-service", "attested-proxy", "host-agent", "measure", "model", "image", "attester", "init", "serve"];
const SIMULATOR: &[&str] = &["attestation-service-sim", "attested-proxy-sim", "tdx-sim"];

/// Builds all programs and looks for the label.
pub(crate) fn run() -> anyhow::Result<()> {
    let directory = programs::build(&[])?;
    for name in SIMULATOR {
        anyhow::ensure!(
            has_label(&directory.join(name))?,
            "labels: {name} lacks the simulator's label: the search is blind"
        );
    }
    for name in RELEASE {
        anyhow::ensure!(
            !has_label(&directory.join(name))?,
            "labels: the release program {name} knows the simulator's root"
        );
    }
    eprintln!("labels: {} release programs do not know the simulator's root", RELEASE.len());
    Ok(())
}

fn has_label(program: &Path) -> anyhow::Result<bool> {
    let bytes = std::fs::read(program).with_context(|| program.display().to_string())?;
    Ok(contains(&bytes, LABEL))
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(bytes, text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_found_wherever_it_stands() {
        let program = [b"\x7fELF".as_slice(), LABEL, b"\0"].concat();
        assert!(contains(&program, LABEL));
        assert!(!contains(program.get(..program.len() - 2).unwrap(), LABEL));
    }
}
