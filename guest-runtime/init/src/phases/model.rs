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
    /// The directory of a model that continues texts, for another inference server.
    Served(PathBuf),
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

/// The files say what a model is for, and their names are part of its identity: the only GGUF file is the engine's. Weights in
/// safetensors are another server's where `generation_config.json` lies beside them, which says how a model's next token is
/// chosen: one `model.safetensors`, or several files with their index. Without it, one `model.safetensors` is the embedder's.
/// Weights of both formats, or in several directories, are refused. Other files, such as a licence, are left alone.
fn weights(root: &Path, files: &[PathBuf]) -> Result<Weights, Failure> {
    let is = |path: &Path, format: &str| path.extension().is_some_and(|end| end == format);
    let found: Vec<&PathBuf> = files.iter().filter(|path| is(path, "gguf") || is(path, "safetensors")).collect();
    let none = || Code::ModelNoWeights.alone();
    let (first, others) = found.split_first().ok_or_else(none)?;
    if is(first, "gguf") {
        return if others.is_empty() { Ok(Weights::Answers(root.join(first))) } else { Err(none()) };
    }
    let directory = first.parent().ok_or_else(none)?;
    if others.iter().any(|path| is(path, "gguf") || path.parent() != Some(directory)) {
        return Err(none());
    }
    let has = |name: &str| files.contains(&directory.join(name));
    let is_one = others.is_empty() && has("model.safetensors");
    if has("generation_config.json") && (is_one || has("model.safetensors.index.json")) {
        Ok(Weights::Served(root.join(directory)))
    } else if is_one {
        Ok(Weights::Vectors(root.join(directory)))
    } else {
        Err(none())
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
        let of = |names: &[&str]| weights(Path::new("/model"), &names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["LICENSE", "m.gguf"]).unwrap(), Weights::Answers("/model/m.gguf".into()));
        let vectors = of(&["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(vectors.unwrap(), Weights::Vectors("/model/".into()));
        assert_eq!(of(&["m/model.safetensors"]).unwrap(), Weights::Vectors("/model/m".into()));
        let (one, two) = ("m/model-00001-of-00002.safetensors", "m/model-00002-of-00002.safetensors");
        let (says_how, index) = ("m/generation_config.json", "m/model.safetensors.index.json");
        let served = Weights::Served("/model/m".into());
        assert_eq!(of(&[says_how, "m/model.safetensors"]).unwrap(), served);
        assert_eq!(of(&[says_how, one, two, index]).unwrap(), served);
        // What says how must lie beside the weights.
        assert_eq!(
            of(&["generation_config.json", "m/model.safetensors"]).unwrap(),
            Weights::Vectors("/model/m".into())
        );
        for names in [
            &["LICENSE"][..],
            &["a.gguf", "b.gguf"],
            &[],
            &["gguf"],
            &["m.gguf", "model.safetensors"],
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["other.safetensors"],
            &[says_how, one, two],
            &[one, two, index],
            &[says_how, index, one, "model-00002-of-00002.safetensors"],
            &[says_how, "m/model.safetensors", "m.gguf"],
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
