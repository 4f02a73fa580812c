// SPDX-License-Identifier: Apache-2.0
//! Further releases of the image: the same files with one more word on the kernel's command line, which is measured.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384};

use super::rig::Declared;
use crate::demo::programs::Programs;
use crate::demo::publisher::Publisher;
use crate::demo::scene::{Machine, Scene};

/// The first release, that of the scene.
pub(super) fn first(scene: &Scene) -> Declared {
    Declared { bundle: scene.directory().join("release.sigstore.json"), image: scene.image.clone() }
}

/// Publishes a release whose image has `soak=NAME` on its command line. A word that begins with `chrysalis.` would
/// have to be one that the image's init knows.
pub(super) fn publish(programs: &Programs, scene: &Scene, name: &str) -> anyhow::Result<Declared> {
    let image = variant(scene, name).with_context(|| format!("image {name}"))?;
    let publisher = Publisher { programs, directory: scene.directory(), machines: &[Machine::DEMO] };
    Ok(Declared { bundle: publisher.publish(name, &image)?, image })
}

fn variant(scene: &Scene, name: &str) -> anyhow::Result<PathBuf> {
    let directory = scene.directory().join(format!("image-{name}"));
    std::fs::create_dir(&directory)?;
    for entry in std::fs::read_dir(&scene.image)? {
        let entry = entry?;
        std::fs::copy(entry.path(), directory.join(entry.file_name()))?;
    }
    let path = directory.join("image.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let line = std::fs::read_to_string(directory.join("cmdline"))?;
    let line = format!("{line} soak={name}");
    replace(&directory.join("cmdline"), line.as_bytes())?;
    describe(&mut manifest, &line).context("image.json is not of the known form")?;
    replace(&path, manifest.to_string().as_bytes())?;
    Ok(directory)
}

/// Puts the command line into the image's description.
fn describe(manifest: &mut Value, line: &str) -> Option<()> {
    *manifest.get_mut("command_line")? = line.into();
    for file in manifest.get_mut("files")?.as_array_mut()? {
        if file.get("name").and_then(Value::as_str) == Some("cmdline") {
            *file.get_mut("size")? = line.len().into();
            *file.get_mut("sha256")? = hex(&Sha256::digest(line)).into();
            *file.get_mut("sha384")? = hex(&Sha384::digest(line)).into();
        }
    }
    Some(())
}

/// Images' files may be write-protected.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::remove_file(path)?;
    std::fs::write(path, bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_description_names_the_new_command_line() {
        let file = |name| json!({ "name": name, "size": 1, "sha256": "0", "sha384": "0" });
        let mut manifest = json!({ "command_line": "a", "files": [file("vmlinuz"), file("cmdline")] });
        describe(&mut manifest, "a b").unwrap();
        assert_eq!(manifest["command_line"], "a b");
        assert_eq!(manifest["files"][0]["size"], 1);
        assert_eq!(manifest["files"][1]["size"], 3);
        assert_eq!(manifest["files"][1]["sha256"], hex(&Sha256::digest("a b")));
        assert!(describe(&mut json!({}), "a b").is_none());
    }
}
