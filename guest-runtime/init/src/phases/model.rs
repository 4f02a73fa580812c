// SPDX-License-Identifier: Apache-2.0
//! The model: decrypted from the host's disk into memory, used only after all of it was verified.

use std::path::{Path, PathBuf};

use linux_sys::block::open_by_serial;
use model::{Key, PackError, disk::Disk, unpack};
use types::GuestConfig;

use super::mounts::MODEL;
use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// Gives the path of the weights. The key is destroyed.
pub(crate) fn run(config: &GuestConfig, key: Key) -> Result<PathBuf, Failure> {
    let disk = open_by_serial(SERIAL).map_err(Code::ModelDiskMissing.because())?;
    let disk = Disk::open(disk).map_err(failure)?;
    let opened = unpack(&disk, &key, &config.model.0, Path::new(MODEL), limit(config), &|_| {}).map_err(failure)?;
    drop(key);
    Ok(Path::new(MODEL).join(weights(opened.files())?))
}

/// Three quarters of the memory that the configuration names; the machine cannot lie about it unseen (RTMR0).
fn limit(config: &GuestConfig) -> u64 {
    u64::from(config.shape.0.facts().memory_mib) * (1 << 20) / 4 * 3
}

/// The only GGUF file. Others, such as a licence, are left alone.
fn weights(files: &[PathBuf]) -> Result<&PathBuf, Failure> {
    let mut found = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(Code::ModelNoWeights.alone()),
    }
}

fn failure(error: PackError) -> Failure {
    let code = match error {
        PackError::Malformed { .. } | PackError::Manifest { .. } => Code::ModelMalformed,
        PackError::Truncated { .. } => Code::ModelTruncated,
        PackError::Identity { .. } => Code::ModelIdentity,
        PackError::KeyCommitment { .. } => Code::ModelKeyCommitment,
        PackError::ObjectDigest { .. } => Code::ModelObjectDigest,
        PackError::ObjectDecrypt { .. } => Code::ModelObjectDecrypt,
        PackError::FileDigest { .. } => Code::ModelFileDigest,
        PackError::TooLarge { .. } => Code::ModelTooLarge,
        PackError::Io { .. } | PackError::TargetNotEmpty => Code::ModelIo,
    };
    code.because()(error)
}

const SERIAL: &str = "chrysalis-model";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_file_of_weights() {
        let files = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(weights(&files(&["LICENSE", "m.gguf"])).unwrap(), &PathBuf::from("m.gguf"));
        for names in [&["LICENSE"][..], &["a.gguf", "b.gguf"], &[], &["gguf"]] {
            assert_eq!(weights(&files(names)).unwrap_err().code, Code::ModelNoWeights);
        }
    }

    #[test]
    fn codes_have_the_names_that_the_model_tool_prints() {
        let errors = [
            PackError::Truncated { field: "x".into() },
            PackError::ObjectDecrypt { object: 1 },
            PackError::FileDigest { path: "x".into() },
            PackError::TooLarge { needed: 2, limit: 1 },
        ];
        for error in errors {
            let name = error.code();
            assert_eq!(failure(error).code.name(), name);
        }
    }
}
