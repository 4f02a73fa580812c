// SPDX-License-Identifier: Apache-2.0
//! Canonical JSON (RFC 8785) with the further rules of every Chrysalis document: integers only, no duplicate
//! keys, no unknown fields, and the received bytes equal their own re-serialisation.

use serde::{Serialize, de::DeserializeOwned};

use crate::Sha256Digest;

mod write;

/// A document type: its schema name and the most bytes it may have.
pub trait Document: Serialize + DeserializeOwned {
    /// Value of the field `schema`.
    const SCHEMA: &'static str;
    /// Most bytes of the canonical form.
    const MAX_BYTES: usize;

    /// The value found in the field `schema`.
    fn schema(&self) -> &str;

    /// The canonical bytes.
    ///
    /// # Errors
    /// [`CanonicalError`] when a number is not an integer JSON can carry exactly, or the result is too large.
    fn to_canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        let bytes = to_bytes(self)?;
        if bytes.len() > Self::MAX_BYTES {
            return Err(CanonicalError::TooLarge { max: Self::MAX_BYTES, found: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads a document from exactly its canonical bytes.
    ///
    /// # Errors
    /// [`CanonicalError`] names the first rule that `bytes` break.
    fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        let document: Self = from_bytes(bytes, Self::MAX_BYTES)?;
        if document.schema() != Self::SCHEMA {
            return Err(CanonicalError::Schema { expected: Self::SCHEMA });
        }
        Ok(document)
    }

    /// SHA-256 over the canonical bytes: the document's address.
    ///
    /// # Errors
    /// As [`Document::to_canonical`].
    fn digest(&self) -> Result<Sha256Digest, CanonicalError> {
        Ok(Sha256Digest::of(&self.to_canonical()?))
    }
}

/// Which rule of canonical JSON was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than the document type allows.
    #[error("the document has {found} bytes, at most {max} are allowed")]
    TooLarge {
        /// The cap.
        max: usize,
        /// What was found.
        found: usize,
    },
    /// Not JSON, or not of the document's form (unknown, missing, duplicate or ill-typed fields).
    #[error("the document is malformed: {0}")]
    Malformed(String),
    /// Well formed, but not byte for byte the canonical form.
    #[error("the bytes are not the canonical form (RFC 8785) of the document")]
    NotCanonical,
    /// The field `schema` has another value.
    #[error("the field schema must be \"{expected}\"")]
    Schema {
        /// What it must be.
        expected: &'static str,
    },
    /// A number is a fraction or beyond ±(2^53 − 1).
    #[error("numbers must be integers between -(2^53-1) and 2^53-1")]
    Number,
}

/// Serialises `value` to canonical bytes. Maps and structures come out sorted; numbers must be integers.
///
/// # Errors
/// [`CanonicalError::Number`] or [`CanonicalError::Malformed`].
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    write::write(value).map_or_else(|| general(value), Ok)
}

/// The same by way of a tree, for whatever value: what [`write`] does not write.
fn general<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let tree = serde_json::to_value(value).map_err(|e| CanonicalError::Malformed(e.to_string()))?;
    check_numbers(&tree)?;
    serde_json_canonicalizer::to_vec(&tree).map_err(|e| CanonicalError::Malformed(e.to_string()))
}

/// Reads a value from at most `max` bytes that are exactly its canonical form.
///
/// # Errors
/// [`CanonicalError`] names the rule.
pub fn from_bytes<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CanonicalError> {
    if bytes.len() > max {
        return Err(CanonicalError::TooLarge { max, found: bytes.len() });
    }
    let value: T = serde_json::from_slice(bytes).map_err(|e| CanonicalError::Malformed(position_of(&e)))?;
    if to_bytes(&value)? != bytes {
        return Err(CanonicalError::NotCanonical);
    }
    Ok(value)
}

/// Reads a value from at most `max` bytes of JSON in any form, with the further rules kept: for what people write. Its digest
/// is that of the canonical form, not of these bytes.
///
/// # Errors
/// [`CanonicalError`] names the rule.
pub fn from_any_form<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CanonicalError> {
    if bytes.len() > max {
        return Err(CanonicalError::TooLarge { max, found: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|e| CanonicalError::Malformed(position_of(&e)))
}

/// What serde says, without any of the document's own text beyond field names.
fn position_of(error: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
}

fn check_numbers(value: &serde_json::Value) -> Result<(), CanonicalError> {
    match value {
        serde_json::Value::Number(number) => {
            let fits = number.as_i64().is_some_and(|n| n.unsigned_abs() <= MAX_INTEGER)
                || number.as_u64().is_some_and(|n| n <= MAX_INTEGER);
            if fits { Ok(()) } else { Err(CanonicalError::Number) }
        }
        serde_json::Value::Array(items) => items.iter().try_for_each(check_numbers),
        serde_json::Value::Object(fields) => fields.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}

/// Largest integer that every JSON reader keeps exactly (RFC 8785 section 3.2.2.3, RFC 7493 section 2.2).
const MAX_INTEGER: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        schema: String,
        b: u64,
        a: String,
    }

    impl Document for Sample {
        const SCHEMA: &'static str = "sample/v1";
        const MAX_BYTES: usize = 64;

        fn schema(&self) -> &str {
            &self.schema
        }
    }

    fn sample() -> Sample {
        Sample { schema: "sample/v1".into(), b: 7, a: "é\n".into() }
    }

    #[test]
    fn keys_are_sorted_and_the_form_is_exact() {
        let bytes = sample().to_canonical().unwrap();
        assert_eq!(bytes, "{\"a\":\"é\\n\",\"b\":7,\"schema\":\"sample/v1\"}".as_bytes());
        assert_eq!(Sample::from_canonical(&bytes).unwrap(), sample());
    }

    #[test]
    fn each_broken_rule_is_refused() {
        let refuse = |text: &str| Sample::from_canonical(text.as_bytes()).unwrap_err();
        assert_eq!(refuse("{\"b\":7,\"a\":\"\",\"schema\":\"sample/v1\"}"), CanonicalError::NotCanonical);
        assert_eq!(refuse("{\"a\":\"\",\"b\":7,\"schema\":\"sample/v1\"} "), CanonicalError::NotCanonical);
        assert_eq!(
            refuse("{\"a\":\"\",\"b\":7,\"schema\":\"sample/v2\"}"),
            CanonicalError::Schema { expected: "sample/v1" }
        );
        assert_eq!(refuse("{\"a\":\"\",\"b\":9007199254740993,\"schema\":\"sample/v1\"}"), CanonicalError::Number);
        for malformed in [
            "{\"a\":\"\",\"b\":7,\"b\":7,\"schema\":\"sample/v1\"}",
            "{\"a\":\"\",\"b\":7,\"c\":1,\"schema\":\"sample/v1\"}",
            "{\"a\":\"\",\"b\":7.0,\"schema\":\"sample/v1\"}",
            "{\"a\":\"\",\"b\":7,\"schema\":\"sample/v1\"}x",
        ] {
            assert!(matches!(refuse(malformed), CanonicalError::Malformed(_)), "{malformed}");
        }
        assert!(matches!(refuse(&" ".repeat(65)), CanonicalError::TooLarge { max: 64, found: 65 }));
    }
}
