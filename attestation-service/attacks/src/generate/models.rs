// SPDX-License-Identifier: Apache-2.0
//! A small encrypted model pack, and its ciphertext changed on the way to the guest.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use model::{Key, KeyName, Labels, Limits};
use types::Blake3Digest;

use super::Made;
use crate::case::Run;

/// Writes the cases under `out`; gives their number.
///
/// # Errors
/// A file can't be written.
pub fn models(out: &Path) -> Result<usize> {
    let pack = Pack::new()?;
    let common = out.join("common");
    std::fs::create_dir_all(&common).with_context(|| common.display().to_string())?;
    std::fs::write(common.join("model.key"), KEY)?;
    std::fs::write(common.join("pack.json"), &pack.index)?;
    for (number, object) in &pack.objects {
        std::fs::write(common.join(format!("object-{number}.bin")), object)?;
    }
    let cases = pack.cases()?;
    for case in &cases {
        case.write(out)?;
    }
    Ok(cases.len())
}

struct Pack {
    model: String,
    index: Vec<u8>,
    objects: BTreeMap<usize, Vec<u8>>,
}

impl Pack {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (input, output) = (dir.path().join("in"), dir.path().join("pack"));
        std::fs::create_dir(&input)?;
        let weights: Vec<u8> =
            (0..2500_u16).map(|i| u8::try_from(u32::from(i) * 31 % 251).unwrap_or_default()).collect();
        std::fs::write(input.join("model.gguf"), weights)?;
        let labels = Labels { name: "model", revision: "1", key: KeyName { id: "key".to_owned(), version: 1 } };
        let limits = Limits { object_size: 1000, segment_size: 256 };
        let created = model::create(&labels, &input, &Key::new(&KEY), &output, limits, &|_| ())?;
        let index = std::fs::read(output.join("pack.json"))?;
        let parsed: serde_json::Value = serde_json::from_slice(&index)?;
        let count = parsed.get("objects").and_then(serde_json::Value::as_array).context("objects")?.len();
        let mut objects = BTreeMap::new();
        for number in 0..count {
            let path = output.join("objects").join(crate::case::object_name(number));
            objects.insert(number, std::fs::read(&path).with_context(|| path.display().to_string())?);
        }
        Ok(Self { model: created.model.to_string(), index, objects })
    }

    fn cases(&self) -> Result<Vec<Made>> {
        let flipped = |number: usize, place: usize| -> Result<Vec<u8>> {
            let mut bytes = self.objects.get(&number).context("object")?.clone();
            *bytes.get_mut(place).context("place")? ^= 1;
            Ok(bytes)
        };
        let digest = |number: usize| (format!("objects[{number}]"), "model_object_digest_mismatch");
        let decrypt = |number: usize| (format!("objects[{number}]"), "model_object_decrypt_failed");
        let mut short = self.objects.get(&1).context("object")?.clone();
        short.pop();
        let (first, second) = (self.objects.get(&1).context("object")?, self.objects.get(&2).context("object")?);
        Ok(vec![
            self.case("00-model-pack", "a pack as its owner made it", None, &[], None)?,
            self.case("56-flipped", "one bit of the weights", Some(digest(1)), &[(1, flipped(1, 500)?)], None)?,
            self.case(
                "56-flipped-last",
                "the last object's last bit",
                Some(digest(3)),
                &[(3, flipped(3, 100)?)],
                None,
            )?,
            self.case(
                "56-flipped-manifest",
                "one bit of the manifest",
                Some(digest(0)),
                &[(0, flipped(0, 60)?)],
                None,
            )?,
            self.case(
                "56-flipped-with-digest",
                "one bit of the weights, and the digest that anybody can compute",
                Some(decrypt(1)),
                &[(1, flipped(1, 500)?)],
                Some(self.index_with(&[(1, &flipped(1, 500)?)])?),
            )?,
            self.case(
                "56-exchanged",
                "two objects exchanged, with their digests",
                Some(decrypt(1)),
                &[(1, second.clone()), (2, first.clone())],
                Some(self.index_with(&[(1, second), (2, first)])?),
            )?,
            self.case(
                "56-shortened",
                "an object without its last byte",
                Some(("objects/000001".to_owned(), "model_pack_truncated")),
                &[(1, short)],
                None,
            )?,
        ])
    }

    fn case(
        &self,
        name: &str,
        title: &str,
        expected: Option<(String, &str)>,
        own: &[(usize, Vec<u8>)],
        index: Option<Vec<u8>>,
    ) -> Result<Made> {
        let expected: Vec<_> = expected.iter().map(|(field, code)| (*code, field.as_str())).collect();
        let origin = "made by the library `model`, with a key that everybody knows";
        let mut made = Made::new(Run::Model, name, title, origin, &expected)?.common("key", "model.key");
        made.case.at = None;
        made.case.arguments = vec!["--model".to_owned(), self.model.clone()];
        made = match index {
            Some(index) => made.own("index", "pack.json", index),
            None => made.common("index", "pack.json"),
        };
        for number in self.objects.keys() {
            let file = format!("object-{number}.bin");
            made = match own.iter().find(|(own, _)| own == number) {
                Some((_, bytes)) => made.own("object", &file, bytes.clone()),
                None => made.common("object", &file),
            };
        }
        Ok(made)
    }

    /// The public index with the digests of other objects.
    fn index_with(&self, objects: &[(usize, &Vec<u8>)]) -> Result<Vec<u8>> {
        let mut index: serde_json::Value = serde_json::from_slice(&self.index)?;
        for (number, bytes) in objects {
            let object = index.pointer_mut(&format!("/objects/{number}")).and_then(serde_json::Value::as_object_mut);
            let object = object.context("an object of the index")?;
            let field = object.keys().find(|key| key.contains("blake3")).context("a digest")?.clone();
            object.insert(field, Blake3Digest::of(bytes).to_string().into());
        }
        Ok(types::canonical::to_bytes(&index)?)
    }
}

/// Of test data, known to everybody.
const KEY: [u8; 32] = [3; 32];
