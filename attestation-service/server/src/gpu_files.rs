// SPDX-License-Identifier: Apache-2.0
//! Files that evidence of GPUs is judged by: NVIDIA's manifests, and OCSP answers. They were fetched before; nothing of them is
//! believed but by its signature.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use appraise::GpuGrounds;
use clap::Args;
use gpu_verify::{GpuAnchors, MAX_ANSWER_LEN, MAX_ANSWERS, MAX_LIBRARY, MAX_XML_LEN, RimLibrary};

use crate::input;

/// Where they lie.
#[derive(Debug, Clone, Default, Args)]
pub struct GpuFileArgs {
    /// Manifests of GPU drivers, VBIOSes and switches (RIM, SWID tags), or directories of them.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub rim: Vec<PathBuf>,
    /// OCSP answers (DER) about certificates of GPUs and manifests, or directories of them.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub ocsp: Vec<PathBuf>,
}

/// What was read.
#[derive(Debug)]
pub struct GpuFiles {
    rims: RimLibrary,
    ocsp: Vec<Vec<u8>>,
    anchors: GpuAnchors,
}

impl Default for GpuFiles {
    fn default() -> Self {
        Self { rims: RimLibrary::default(), ocsp: Vec::new(), anchors: GpuAnchors::nvidia() }
    }
}

impl GpuFiles {
    /// Reads all files.
    ///
    /// # Errors
    /// A file that cannot be read, is too large or no manifest, and too many of them; the message names it.
    pub fn read(args: &GpuFileArgs) -> anyhow::Result<Self> {
        let GpuFileArgs { rim, ocsp } = args;
        let paths = files(rim, MAX_LIBRARY).context("--rim")?;
        let bytes = paths.iter().map(|path| input::read(path, MAX_XML_LEN)).collect::<Result<_, _>>()?;
        let rims = RimLibrary::new(bytes).map_err(|error| match &error {
            gpu_verify::LibraryError::Malformed { index, fault } => {
                let path = paths.get(*index).map(|path| path.display().to_string()).unwrap_or_default();
                anyhow::anyhow!("{path}: {fault}")
            }
            gpu_verify::LibraryError::TooMany(_) => anyhow::anyhow!("--rim: {error}"),
        })?;
        let ocsp = files(ocsp, MAX_ANSWERS).context("--ocsp")?;
        let ocsp = ocsp.iter().map(|path| input::read(path, MAX_ANSWER_LEN)).collect::<Result<_, _>>()?;
        Ok(Self { rims, ocsp, ..Self::default() })
    }

    /// The same files, judged under other roots than NVIDIA's: of no use to a program that is released, which has
    /// NVIDIA's alone.
    #[must_use]
    pub fn under(self, anchors: GpuAnchors) -> Self {
        Self { anchors, ..self }
    }

    /// As an appraisal takes them.
    #[must_use]
    pub const fn grounds(&self) -> GpuGrounds<'_> {
        GpuGrounds { anchors: &self.anchors, rims: &self.rims, ocsp: self.ocsp.as_slice() }
    }
}

/// Files as named, and those of directories by name; no directory below them.
fn files(paths: &[PathBuf], most: usize) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(in_directory(path)?);
        } else {
            found.push(path.clone());
        }
        anyhow::ensure!(found.len() <= most, "at most {most} files, found {}", found.len());
    }
    Ok(found)
}

fn in_directory(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("could not read {}", path.display());
    let entries = fs::read_dir(path).with_context(reading)?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths: Vec<_> = paths.with_context(reading)?.into_iter().filter(|path| path.is_file()).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_give_their_files_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.xml", "a.xml"] {
            fs::write(directory.path().join(name), "<a/>").unwrap();
        }
        fs::create_dir(directory.path().join("old")).unwrap();
        let path = directory.path().to_owned();
        let found = files(&[path.clone(), path.join("b.xml")], 9).unwrap();
        assert_eq!(found, ["a.xml", "b.xml", "b.xml"].map(|name| path.join(name)));
        assert!(files(std::slice::from_ref(&path), 1).is_err());
        assert!(files(&[path.join("none")], 9).is_ok_and(|found| found.len() == 1));
        // What is no manifest is named.
        let error = GpuFiles::read(&GpuFileArgs { rim: vec![path], ocsp: Vec::new() }).unwrap_err();
        assert!(error.to_string().contains("a.xml"), "{error}");
        assert!(GpuFiles::read(&GpuFileArgs::default()).unwrap().grounds().rims.is_empty());
    }
}
