// SPDX-License-Identifier: Apache-2.0
//! The model: decrypted from the host's disk into memory, used only after all of it was verified.

use std::path::{Path, PathBuf};

use linux_sys::block::open_by_serial;
use model::{Key, PackError, disk::Disk, unpack};
use types::GuestConfig;

use super::mounts::MODEL;
use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// What the files of a model are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Weights {
    /// The file of a model that continues texts.
    Answers(PathBuf),
    /// The directory of a model that makes vectors of texts.
    Vectors(PathBuf),
}

/// Gives where the weights are. The key is destroyed.
pub(crate) fn run(config: &GuestConfig, key: Key) -> Result<Weights, Failure> {
    let disk = open_by_serial(SERIAL).map_err(Code::ModelDiskMissing.because())?;
    let disk = Disk::open(disk).map_err(failure)?;
    let opened = unpack(&disk, &key, &config.model.0, Path::new(MODEL), limit(config), &|_| {}).map_err(failure)?;
    drop(key);
    weights(Path::new(MODEL), opened.files())
}

/// Three quarters of the memory that the configuration names; the machine cannot lie about it unseen (RTMR0).
fn limit(config: &GuestConfig) -> u64 {
    u64::from(config.shape.0.facts().memory_mib) * (1 << 20) / 4 * 3
}

/// The files say what a model is for, and their names are part of its identity: the only GGUF file is the engine's, one
/// `model.safetensors` is the embedder's, with the files beside it. Both together are refused. Others, such as a licence,
/// are left alone.
fn weights(root: &Path, files: &[PathBuf]) -> Result<Weights, Failure> {
    let is_weights = |path: &&PathBuf| path.extension().is_some_and(|end| end == "gguf" || end == "safetensors");
    let mut found = files.iter().filter(is_weights);
    let (Some(one), None) = (found.next(), found.next()) else { return Err(Code::ModelNoWeights.alone()) };
    if one.extension().is_some_and(|end| end == "gguf") {
        return Ok(Weights::Answers(root.join(one)));
    }
    let is_named = one.file_name().is_some_and(|name| name == "model.safetensors");
    let directory = one.parent().filter(|_| is_named).ok_or_else(|| Code::ModelNoWeights.alone())?;
    Ok(Weights::Vectors(root.join(directory)))
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
        let of = |names: &[&str]| weights(Path::new("/model"), &names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["LICENSE", "m.gguf"]).unwrap(), Weights::Answers("/model/m.gguf".into()));
        let vectors = of(&["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(vectors.unwrap(), Weights::Vectors("/model/".into()));
        assert_eq!(of(&["m/model.safetensors"]).unwrap(), Weights::Vectors("/model/m".into()));
        for names in [
            &["LICENSE"][..],
            &["a.gguf", "b.gguf"],
            &[],
            &["gguf"],
            &["m.gguf", "model.safetensors"],
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["other.safetensors"],
        ] {
            assert_eq!(of(names).unwrap_err().code, Code::ModelNoWeights, "{names:?}");
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
