// SPDX-License-Identifier: Apache-2.0
//! Canonical bytes written straight from a value, for the values that documents have. What is unusual (fractions, keys
//! that are not plain ASCII, a key twice, …) is left to the general way, which also finds the words for what is refused.

use core::fmt;

use serde::{Serialize, Serializer, ser};

use super::MAX_INTEGER;

/// The canonical bytes of `value`; `None` where the general way must decide.
pub(super) fn write<T: Serialize + ?Sized>(value: &T) -> Option<Vec<u8>> {
    sized(value, 1024)
}

fn sized<T: Serialize + ?Sized>(value: &T, capacity: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(capacity);
    value.serialize(Writer(&mut out)).ok().map(|()| out)
}

/// Left to the general way.
#[derive(Debug)]
struct Unusual;

struct Writer<'a>(&'a mut Vec<u8>);

/// An array.
struct Items<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

/// An object: fields as they come, put in order at its end.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    /// Where the object begins.
    start: usize,
    fields: Vec<Field>,
}

/// Where a field stands, from its key's quotation mark on, and where its key's letters end.
#[derive(Debug, Clone, Copy)]
struct Field {
    start: usize,
    key_end: usize,
    end: usize,
}

impl<'a> Items<'a> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        if !core::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        value.serialize(Writer(self.out))
    }

    fn finish(self) -> Result<(), Unusual> {
        self.out.push(b']');
        Ok(())
    }

    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'[');
        Self { out, first: true }
    }
}

impl<'a> Fields<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.push(b'{');
        Self { out, start, fields: Vec::with_capacity(8) }
    }

    /// Plain ASCII alone, whose order in UTF-16 (RFC 8785 section 3.2.3) is that of the bytes.
    fn key(&mut self, key: &str) -> Result<(), Unusual> {
        if !key.bytes().all(|byte| byte.is_ascii() && !must_escape(byte)) {
            return Err(Unusual);
        }
        if !self.fields.is_empty() {
            self.out.push(b',');
        }
        let start = self.out.len();
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        let key_end = self.out.len();
        self.out.extend_from_slice(b"\":");
        self.fields.push(Field { start, key_end, end: key_end });
        Ok(())
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        value.serialize(Writer(self.out))?;
        self.fields.last_mut().ok_or(Unusual)?.end = self.out.len();
        Ok(())
    }

    fn finish(mut self) -> Result<(), Unusual> {
        let out = &*self.out;
        let key = |field: &Field| out.get(field.start..field.key_end);
        if !self.fields.is_sorted_by(|one, next| key(one) < key(next)) {
            self.fields.sort_by(|one, next| key(one).cmp(&key(next)));
            if self.fields.iter().zip(self.fields.iter().skip(1)).any(|(one, next)| key(one) == key(next)) {
                return Err(Unusual);
            }
            let mut sorted = Vec::with_capacity(out.len().saturating_sub(self.start));
            for field in &self.fields {
                sorted.push(if sorted.is_empty() { b'{' } else { b',' });
                sorted.extend_from_slice(out.get(field.start..field.end).ok_or(Unusual)?);
            }
            self.out.truncate(self.start);
            self.out.extend_from_slice(&sorted);
        }
        self.out.push(b'}');
        Ok(())
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(place) = rest.iter().position(|byte| must_escape(*byte)) {
        let (plain, escaped) = rest.split_at(place);
        out.extend_from_slice(plain);
        let Some((byte, after)) = escaped.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Of all characters those alone (RFC 8785 section 3.2.2.2).
const fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Unusual;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = ser::Impossible<(), Unusual>;
    type SerializeMap = Fields<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = ser::Impossible<(), Unusual>;

    fn serialize_bool(self, value: bool) -> Result<(), Unusual> {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Unusual> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Unusual> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Unusual> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Unusual> {
        if value < 0 {
            self.0.push(b'-');
        }
        self.serialize_u64(value.unsigned_abs())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Unusual> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Unusual> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Unusual> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Unusual> {
        if value > MAX_INTEGER {
            return Err(Unusual);
        }
        self.0.extend_from_slice(value.to_string().as_bytes());
        Ok(())
    }

    fn serialize_f32(self, _: f32) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_f64(self, _: f64) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_char(self, value: char) -> Result<(), Unusual> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Unusual> {
        text(self.0, value);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_none(self) -> Result<(), Unusual> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unusual> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unusual> {
        self.0.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unusual> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Unusual> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Unusual> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Unusual> {
        let mut fields = Fields::begin(self.0);
        fields.key(variant)?;
        fields.value(value)?;
        fields.finish()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, Unusual> {
        Ok(Items::begin(self.0))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, Unusual> {
        Ok(Items::begin(self.0))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, Unusual> {
        Ok(Items::begin(self.0))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Unusual> {
        Err(Unusual)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Fields<'a>, Unusual> {
        Ok(Fields::begin(self.0))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'a>, Unusual> {
        // What serde_json gives a meaning of its own.
        if name.starts_with('$') { Err(Unusual) } else { Ok(Fields::begin(self.0)) }
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Unusual> {
        Err(Unusual)
    }
}

impl ser::SerializeSeq for Items<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        self.item(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.finish()
    }
}

impl ser::SerializeTuple for Items<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        self.item(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.finish()
    }
}

impl ser::SerializeTupleStruct for Items<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        self.item(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.finish()
    }
}

impl ser::SerializeMap for Fields<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unusual> {
        // Written as a text by itself, whatever its type: a key that is none does not begin with a quotation mark.
        let written = sized(key, 64).ok_or(Unusual)?;
        let inner = written.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).ok_or(Unusual)?;
        self.key(core::str::from_utf8(inner).map_err(|_| Unusual)?)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        self.value(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.finish()
    }
}

impl ser::SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unusual> {
        self.key(key)?;
        self.value(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.finish()
    }
}

impl fmt::Display for Unusual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("left to the general way")
    }
}

impl core::error::Error for Unusual {}

impl ser::Error for Unusual {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests;
