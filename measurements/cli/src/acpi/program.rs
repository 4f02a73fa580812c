// SPDX-License-Identifier: Apache-2.0
//! What a QEMU says about itself.

use std::{path::Path, process::Command};

use types::QemuVersion;

use super::AcpiError;

/// A QEMU and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The version.
    pub version: QemuVersion,
    /// The line that names it, with its packager's version.
    pub line: String,
}

impl Program {
    /// Asks a program for its version.
    ///
    /// # Errors
    /// [`AcpiError::Start`], or [`AcpiError::NoVersion`] when it says none.
    pub fn ask(program: &Path) -> Result<Self, AcpiError> {
        let name = || program.display().to_string();
        let output = Command::new(program)
            .arg("--version")
            .output()
            .map_err(|source| AcpiError::Start { program: name(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
        let version = version(&line).ok_or_else(|| AcpiError::NoVersion { program: name() })?;
        Ok(Self { version, line })
    }
}

/// `QEMU emulator version 10.0.13 (…)`: the first two numbers.
fn version(line: &str) -> Option<QemuVersion> {
    let (_, rest) = line.split_once("version ")?;
    let mut numbers = rest.split(['.', ' ']);
    format!("{}.{}", numbers.next()?, numbers.next()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_numbers_are_the_version() {
        let line = "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)";
        assert_eq!(version(line), Some(QemuVersion { major: 10, minor: 0 }));
        assert_eq!(version("QEMU emulator version 9.2"), Some(QemuVersion { major: 9, minor: 2 }));
        assert_eq!(version("QEMU emulator version ten"), None);
        assert_eq!(version("cat (GNU coreutils) 9.1"), None);
    }
}
