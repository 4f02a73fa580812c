// SPDX-License-Identifier: Apache-2.0
//! The name of a model: `name@revision:identity`.

use serde::{Deserialize, Serialize};

use crate::Blake3Digest;

/// Names a model. `identity` is the BLAKE3 of the canonical manifest in its pack, independent of the key;
/// name and revision are labels that the identity already covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ModelId {
    name: String,
    revision: String,
    identity: Blake3Digest,
}

/// Why a model's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelIdError {
    /// Name or revision is empty, longer than 64 characters, or has a character outside `A-Za-z0-9._-`.
    #[error("the model's {0} must be 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    Label(&'static str),
    /// The text is not `name@revision:identity`.
    #[error("a model is written name@revision:identity")]
    Form,
}

impl ModelId {
    /// Makes a model's name from checked labels.
    ///
    /// # Errors
    /// [`ModelIdError::Label`] names the label.
    pub fn new(name: &str, revision: &str, identity: Blake3Digest) -> Result<Self, ModelIdError> {
        check_label("name", name)?;
        check_label("revision", revision)?;
        Ok(Self { name: name.to_owned(), revision: revision.to_owned(), identity })
    }

    /// The label before `@`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The label between `@` and `:`.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// BLAKE3 of the canonical manifest.
    #[must_use]
    pub const fn identity(&self) -> &Blake3Digest {
        &self.identity
    }
}

impl core::fmt::Display for ModelId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}@{}:{}", self.name, self.revision, self.identity)
    }
}

impl core::str::FromStr for ModelId {
    type Err = ModelIdError;

    fn from_str(text: &str) -> Result<Self, ModelIdError> {
        let (name, rest) = text.split_once('@').ok_or(ModelIdError::Form)?;
        let (revision, identity) = rest.split_once(':').ok_or(ModelIdError::Form)?;
        Self::new(name, revision, identity.parse().map_err(|_| ModelIdError::Form)?)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: String,
    revision: String,
    identity: Blake3Digest,
}

impl TryFrom<Fields> for ModelId {
    type Error = ModelIdError;

    fn try_from(fields: Fields) -> Result<Self, ModelIdError> {
        Self::new(&fields.name, &fields.revision, fields.identity)
    }
}

impl From<ModelId> for Fields {
    fn from(id: ModelId) -> Self {
        Self { name: id.name, revision: id.revision, identity: id.identity }
    }
}

fn check_label(which: &'static str, text: &str) -> Result<(), ModelIdError> {
    let ok = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if ok { Ok(()) } else { Err(ModelIdError::Label(which)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_tricks_are_refused() {
        let id = ModelId::new("SmolLM2", "q4_1", Blake3Digest::of(b"m")).unwrap();
        assert_eq!(id.to_string().parse::<ModelId>(), Ok(id));
        for name in ["", "a/b", "a b", "a@b", "a:b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(ModelId::new(name, "r", Blake3Digest::ZERO), Err(ModelIdError::Label("name")), "{name:?}");
        }
    }
}
