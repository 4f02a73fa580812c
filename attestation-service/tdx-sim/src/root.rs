// SPDX-License-Identifier: Apache-2.0
//! The one flag that only `*-sim` binaries have: which simulated root they trust.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::PathBuf;

/// Takes `--sim-root FILE`, which must come first, out of a program's arguments. Returns the certificate's bytes and
/// the other arguments with the program's name first; says on standard error that hardware is simulated.
///
/// # Errors
/// [`RootError`].
pub fn take_root(arguments: impl IntoIterator<Item = OsString>) -> Result<(Vec<u8>, Vec<OsString>), RootError> {
    let mut arguments = arguments.into_iter();
    let mut rest: Vec<OsString> = arguments.next().into_iter().collect();
    if arguments.next().is_none_or(|flag| flag != FLAG) {
        return Err(RootError::Missing);
    }
    let path = PathBuf::from(arguments.next().ok_or(RootError::Missing)?);
    let file = |source| RootError::File { path: path.clone(), source };
    let mut root = Vec::new();
    std::fs::File::open(&path).map_err(file)?.take(LARGEST_ROOT + 1).read_to_end(&mut root).map_err(file)?;
    let label = crate::pki::ROOT_LABEL.as_bytes();
    if root.len() as u64 > LARGEST_ROOT || !root.windows(label.len()).any(|window| window == label) {
        return Err(RootError::NotSimulated(path));
    }
    eprintln!("{}: quotes are believed under {}", crate::SIMULATED, path.display());
    rest.extend(arguments);
    Ok((root, rest))
}

/// Why a `*-sim` binary has no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The flag is not there, or not first.
    #[error("the first arguments must be {FLAG} FILE (root.der of `tdx-sim init`)")]
    Missing,
    /// The file could not be read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate does not have the simulated root's name.
    #[error("{0} is not a simulated root: it lacks the name {label:?}", label = crate::pki::ROOT_LABEL)]
    NotSimulated(PathBuf),
}

impl RootError {
    /// Says why on standard error; the exit code: 64 for wrong usage, else 1.
    #[must_use]
    pub fn report(&self) -> std::process::ExitCode {
        eprintln!("{}: {self}", crate::SIMULATED);
        std::process::ExitCode::from(if matches!(self, Self::Missing) { 64 } else { 1 })
    }
}

const FLAG: &str = "--sim-root";
const LARGEST_ROOT: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_comes_first_and_names_a_simulated_root() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        let root = crate::SimulatedPlatform::generate(1_800_000_000).unwrap().root_der().to_vec();
        std::fs::write(&good, &root).unwrap();
        std::fs::write(&bad, b"another certificate").unwrap();
        let take = |arguments: &[&str]| take_root(arguments.iter().map(OsString::from));
        let good = good.to_str().unwrap();
        let (bytes, rest) = take(&["p", "--sim-root", good, "--json", "serve"]).unwrap();
        assert_eq!((bytes, rest), (root, vec!["p".into(), "--json".into(), "serve".into()]));
        assert!(matches!(take(&["p", "--sim-root", bad.to_str().unwrap()]), Err(RootError::NotSimulated(_))));
        assert!(matches!(take(&["p", "--sim-root", "/nonexistent"]), Err(RootError::File { .. })));
        for arguments in [&["p"][..], &["p", "--sim-root"], &["p", "serve", "--sim-root", good], &[]] {
            assert!(matches!(take(arguments), Err(RootError::Missing)), "{arguments:?}");
        }
    }
}
