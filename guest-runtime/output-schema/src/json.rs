// SPDX-License-Identifier: Apache-2.0
//! JSON values that keep the order of fields.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap as _, SerializeSeq as _},
};
use serde_json::Number;
use std::{collections::HashSet, fmt};
use thiserror::Error;

/// A JSON value. Its `Debug` shows the kind alone, since it may hold a user's text.
#[derive(Clone, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// Fields in the order of the text, no name twice.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads exactly one value.
    ///
    /// # Errors
    /// No JSON, nested deeper than [`MAX_DEPTH`], a name twice in an object, or something after it.
    pub fn parse(text: &[u8]) -> Result<Self, JsonError> {
        serde_json::from_slice(text).map_err(|error| JsonError { line: error.line(), column: error.column() })
    }

    /// The shortest text of it.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A field of an object.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Self> {
        let Self::Object(fields) = self else { return None };
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_number(&self) -> Option<&Number> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    /// The number, if it is an integer from 0 to 2⁶⁴ − 1.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number().and_then(Number::as_u64)
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

/// Why a text is no JSON value for us. Holds a position only, nothing of the text.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("no JSON that is accepted here: rule broken at line {line}, column {column}")]
pub struct JsonError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bool(_) => f.write_str("Bool"),
            Self::Number(_) => f.write_str("Number"),
            Self::String(text) => write!(f, "String({} bytes)", text.len()),
            Self::Array(items) => write!(f, "Array({} items)", items.len()),
            Self::Object(fields) => write!(f, "Object({} fields)", fields.len()),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| array.serialize_element(item))?;
                array.end()
            }
            Self::Object(fields) => {
                let mut object = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(name, value)| object.serialize_entry(name, value))?;
                object.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reader { depth: MAX_DEPTH }.deserialize(deserializer)
    }
}

/// Reads a value that may nest `depth` levels.
#[derive(Clone, Copy)]
struct Reader {
    depth: usize,
}

impl Reader {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth })
    }
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let (inner, mut items) = (self.inner()?, Vec::new());
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let (inner, mut fields, mut names) = (self.inner()?, Vec::new(), HashSet::new());
        while let Some(name) = access.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a name twice"));
            }
            fields.push((name, access.next_value_seed(inner)?));
        }
        Ok(Json::Object(fields))
    }
}

/// Deepest nesting of arrays and objects.
pub const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_stays_and_duplicates_bombs_and_trailing_text_are_refused() {
        let text = r#"{"b":1,"a":[true,null,"x",-1.5],"c":{}}"#;
        assert_eq!(Json::parse(text.as_bytes()).unwrap().to_text(), text);
        for bad in [r#"{"a":1,"a":1}"#, r#"{"a":{"b":1,"b":2}}"#, "1 2", "", "nul", "[1,]", "\"\u{1}\"", "1e999"] {
            assert!(Json::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(Json::parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(Json::parse("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(Json::parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn debug_output_holds_no_text() {
        let json = Json::parse(br#"{"secret":"secret"}"#).unwrap();
        assert_eq!(format!("{json:?}"), "Object(1 fields)");
    }
}
