// SPDX-License-Identifier: Apache-2.0
//! Signed notes (C2SP signed-note) with Ed25519 log keys (type 0x01) and witness keys (type 0x04, tlog-cosignature).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use types::Sha256Digest;

/// Most bytes of a note.
pub const MAX_NOTE: usize = 16 * 1024;
/// Most signatures on a note.
pub const MAX_SIGNATURES: usize = 32;

/// Why a note or a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// More than [`MAX_NOTE`] bytes or [`MAX_SIGNATURES`] signatures.
    #[error("a note has at most {MAX_NOTE} bytes and {MAX_SIGNATURES} signatures")]
    TooLarge,
    /// Not a text, a blank line and signature lines.
    #[error("not a signed note: {0}")]
    Form(&'static str),
    /// A key's text is not `name+id+base64`, or its id is not the key's.
    #[error("not a verifier key name+id+key: {0}")]
    Key(&'static str),
    /// A name is empty, longer than 128 bytes, or has spaces, `+` or control characters.
    #[error("a key name has 1 to 128 bytes without spaces, plus signs and control characters")]
    Name,
    /// No signature by this key.
    #[error("the note carries no signature by {0}")]
    NotSigned(String),
    /// A signature that claims to be by this key does not verify.
    #[error("the signature by {0} does not verify")]
    Signature(String),
}

/// The public key of a log, named by the log's origin. Text form: `origin+id+key` of C2SP signed-note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKey(NamedKey);

/// The public key of a witness. Text form as [`LogKey`], with the type byte of cosignatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessKey(NamedKey);

/// The private key of a log.
pub struct LogSigner {
    key: SigningKey,
    public: LogKey,
}

/// The private key of a witness.
pub struct WitnessSigner {
    key: SigningKey,
    public: WitnessKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedKey {
    name: String,
    key: VerifyingKey,
    kind: u8,
}

impl LogKey {
    /// The log's origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.0.name
    }

    /// SHA-256(name ‖ 0x0A ‖ 0x01 ‖ key): the log's id; its first four bytes are the key id in notes.
    #[must_use]
    pub fn log_id(&self) -> Sha256Digest {
        self.0.id()
    }

    /// The Ed25519 public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        self.0.key.as_bytes()
    }

    /// Checks that `note` is signed by this key.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] or [`NoteError::Signature`].
    pub fn verify(&self, note: &Note<'_>) -> Result<(), NoteError> {
        self.0.verify(note, |text, signature| {
            let signature = <[u8; 64]>::try_from(signature).ok()?;
            self.0.key.verify_strict(text.as_bytes(), &Signature::from_bytes(&signature)).ok()
        })
    }
}

impl WitnessKey {
    /// The witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The Ed25519 public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        self.0.key.as_bytes()
    }

    /// Checks that `note` is cosigned by this key and gives the time of the cosignature in unix seconds.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] or [`NoteError::Signature`].
    pub fn verify(&self, note: &Note<'_>) -> Result<u64, NoteError> {
        self.0.verify(note, |text, stamped| {
            let (time, signature) = stamped.split_first_chunk::<8>()?;
            let (time, signature) = (u64::from_be_bytes(*time), <[u8; 64]>::try_from(signature).ok()?);
            let message = cosigned_message(time, text);
            self.0.key.verify_strict(message.as_bytes(), &Signature::from_bytes(&signature)).ok()?;
            Some(time)
        })
    }
}

impl LogSigner {
    /// Makes a log's key from its origin and a secret seed.
    ///
    /// # Errors
    /// [`NoteError::Name`].
    pub fn new(origin: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let key = SigningKey::from_bytes(seed);
        let public = LogKey(NamedKey::new(origin, key.verifying_key(), KIND_LOG)?);
        Ok(Self { key, public })
    }

    /// The public key.
    #[must_use]
    pub const fn public(&self) -> &LogKey {
        &self.public
    }

    /// A signed note with `text`, which must end in a newline.
    ///
    /// # Errors
    /// [`NoteError::Form`] when the text can't stand in a note.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        check_text(text)?;
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        Ok(format!("{text}\n{}", self.public.0.signature_line(&signature)))
    }
}

impl WitnessSigner {
    /// Makes a witness's key from its name and a secret seed.
    ///
    /// # Errors
    /// [`NoteError::Name`].
    pub fn new(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let key = SigningKey::from_bytes(seed);
        let public = WitnessKey(NamedKey::new(name, key.verifying_key(), KIND_COSIGNATURE)?);
        Ok(Self { key, public })
    }

    /// The public key.
    #[must_use]
    pub const fn public(&self) -> &WitnessKey {
        &self.public
    }

    /// The cosignature line for a checkpoint's text. [`super::cosign`] decides whether there may be one.
    pub(super) fn line(&self, text: &str, time: u64) -> String {
        let signature = self.key.sign(cosigned_message(time, text).as_bytes()).to_bytes();
        let mut stamped = time.to_be_bytes().to_vec();
        stamped.extend_from_slice(&signature);
        self.public.0.signature_line(&stamped)
    }
}

/// A note taken apart; its signatures are not verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note<'a> {
    text: &'a str,
    signatures: Vec<NoteSignature<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NoteSignature<'a> {
    name: &'a str,
    key_id: [u8; 4],
    signature: Vec<u8>,
}

impl<'a> Note<'a> {
    /// Takes a note apart.
    ///
    /// # Errors
    /// [`NoteError::TooLarge`] or [`NoteError::Form`].
    pub fn parse(note: &'a str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::TooLarge);
        }
        let at = note.rfind("\n\n").ok_or(NoteError::Form("no blank line before the signatures"))?;
        let (text, rest) = note.split_at_checked(at + 1).ok_or(NoteError::Form("text"))?;
        check_text(text)?;
        let lines = rest.strip_prefix('\n').and_then(|r| r.strip_suffix('\n'));
        let lines = lines.ok_or(NoteError::Form("the last line does not end in a newline"))?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(NoteError::TooLarge);
            }
            signatures.push(NoteSignature::parse(line)?);
        }
        Ok(Self { text, signatures })
    }

    /// The signed text, newline included.
    #[must_use]
    pub const fn text(&self) -> &'a str {
        self.text
    }
}

/// How many different keys of `witnesses` cosigned `note`.
#[must_use]
pub fn count_cosignatures(note: &Note<'_>, witnesses: &[WitnessKey]) -> usize {
    let cosigned = witnesses.iter().filter(|witness| witness.verify(note).is_ok());
    let mut keys: Vec<_> = cosigned.map(WitnessKey::public_key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.len()
}

impl<'a> NoteSignature<'a> {
    fn parse(line: &'a str) -> Result<Self, NoteError> {
        const FORM: NoteError = NoteError::Form("a signature line is an em dash, a name and base64");
        let (name, encoded) = line.strip_prefix("\u{2014} ").and_then(|r| r.split_once(' ')).ok_or(FORM)?;
        check_name(name)?;
        let decoded = STANDARD.decode(encoded).map_err(|_| FORM)?;
        let (key_id, signature) = decoded.split_first_chunk::<4>().ok_or(FORM)?;
        Ok(Self { name, key_id: *key_id, signature: signature.to_vec() })
    }
}

impl NamedKey {
    fn new(name: &str, key: VerifyingKey, kind: u8) -> Result<Self, NoteError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key, kind })
    }

    fn id(&self) -> Sha256Digest {
        Sha256Digest::of_parts(&[self.name.as_bytes(), b"\n", &[self.kind], self.key.as_bytes()])
    }

    fn key_id(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = *self.id().as_bytes();
        [a, b, c, d]
    }

    fn signature_line(&self, signature: &[u8]) -> String {
        let mut bytes = self.key_id().to_vec();
        bytes.extend_from_slice(signature);
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(bytes))
    }

    /// Ids have four bytes and may collide: one good signature suffices, a bad one is an error only without it.
    fn verify<T>(&self, note: &Note<'_>, check: impl Fn(&str, &[u8]) -> Option<T>) -> Result<T, NoteError> {
        let mut error = NoteError::NotSigned(self.name.clone());
        for candidate in &note.signatures {
            if candidate.name == self.name && candidate.key_id == self.key_id() {
                if let Some(found) = check(note.text, &candidate.signature) {
                    return Ok(found);
                }
                error = NoteError::Signature(self.name.clone());
            }
        }
        Err(error)
    }

    fn to_text(&self) -> String {
        let mut bytes = vec![self.kind];
        bytes.extend_from_slice(self.key.as_bytes());
        let [a, b, c, d] = self.key_id();
        format!("{}+{a:02x}{b:02x}{c:02x}{d:02x}+{}", self.name, STANDARD.encode(bytes))
    }

    fn parse(text: &str, kind: u8) -> Result<Self, NoteError> {
        let (name, rest) = text.split_once('+').ok_or(NoteError::Key("form"))?;
        let (_, encoded) = rest.split_once('+').ok_or(NoteError::Key("form"))?;
        let bytes = STANDARD.decode(encoded).map_err(|_| NoteError::Key("not base64"))?;
        let (found, key) = bytes.split_first().ok_or(NoteError::Key("empty"))?;
        if *found != kind {
            return Err(NoteError::Key("another type of key"));
        }
        let key = <[u8; 32]>::try_from(key).map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| NoteError::Key("not a point of the curve"))?;
        if key.is_weak() {
            return Err(NoteError::Key("a weak key"));
        }
        let parsed = Self::new(name, key, kind)?;
        // Covers the id, too.
        if parsed.to_text() == text { Ok(parsed) } else { Err(NoteError::Key("the id is not the key's")) }
    }
}

macro_rules! text_form {
    ($name:ident, $kind:expr) => {
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(&self.0.to_text())
            }
        }

        impl core::str::FromStr for $name {
            type Err = NoteError;

            fn from_str(text: &str) -> Result<Self, NoteError> {
                NamedKey::parse(text, $kind).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0.to_text())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

text_form!(LogKey, KIND_LOG);
text_form!(WitnessKey, KIND_COSIGNATURE);

fn cosigned_message(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if !text.ends_with('\n') {
        return Err(NoteError::Form("the text does not end in a newline"));
    }
    if text.bytes().any(|b| b < b' ' && b != b'\n') {
        return Err(NoteError::Form("the text has control characters"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let ok = (1..=128).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if ok { Ok(()) } else { Err(NoteError::Name) }
}

/// C2SP signed-note, signature types.
const KIND_LOG: u8 = 0x01;
const KIND_COSIGNATURE: u8 = 0x04;

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and note of the documentation of Go's `golang.org/x/mod/sumdb/note`.
    const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const GO_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_note_made_elsewhere_verifies() {
        let key: LogKey = GO_KEY.parse().unwrap();
        assert_eq!(key.to_string(), GO_KEY);
        assert_eq!(key.verify(&Note::parse(GO_NOTE).unwrap()), Ok(()));
        let changed = GO_NOTE.replace("answer", "Answer");
        let error = key.verify(&Note::parse(&changed).unwrap()).unwrap_err();
        assert_eq!(error, NoteError::Signature("PeterNeumann".into()));
    }

    #[test]
    fn malformed_keys_and_notes_are_refused() {
        for bad in [GO_KEY.replace("c74f", "c74e"), GO_KEY.replace("+AR", "+BR"), GO_KEY.replace('P', " ")] {
            assert!(bad.parse::<LogKey>().is_err(), "{bad}");
        }
        assert!(GO_KEY.parse::<WitnessKey>().is_err());
        for bad in [
            "text\n",
            "text\n\n",
            "te\tx\n\n\u{2014} a AAAAAAAA\n",
            "text\n\n\u{2014} a AAAAAAAA",
            "text\n\n\u{2014}  AAAAAAAA\n",
            "text\n\n\u{2014} a AAA\n",
            "text\n\n- a AAAAAAAA\n",
            "text\n\n\u{2014} a AAAAAAAA\n\n",
        ] {
            assert!(Note::parse(bad).is_err(), "{bad:?}");
        }
        let many = format!("t\n\n{}", "\u{2014} a AAAAAAAA\n".repeat(MAX_SIGNATURES + 1));
        assert_eq!(Note::parse(&many), Err(NoteError::TooLarge));
    }

    #[test]
    fn a_log_signature_is_no_cosignature() {
        let (log, witness) = (LogSigner::new("o", &[1; 32]).unwrap(), WitnessSigner::new("o", &[1; 32]).unwrap());
        let note = log.sign("text\n").unwrap();
        assert_eq!(log.public().verify(&Note::parse(&note).unwrap()), Ok(()));
        assert!(witness.public().verify(&Note::parse(&note).unwrap()).is_err());
        let both = format!("{note}{}", witness.line("text\n", 7));
        assert_eq!(witness.public().verify(&Note::parse(&both).unwrap()), Ok(7));
        let witness_alone = format!("text\n\n{}", witness.line("text\n", 7));
        assert!(log.public().verify(&Note::parse(&witness_alone).unwrap()).is_err());
    }
}
