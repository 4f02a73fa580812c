// SPDX-License-Identifier: Apache-2.0
//! A release's registers as a Concise Reference Integrity Manifest (draft-ietf-rats-corim, text of August 2026).
//!
//! One CoMID tag holds one reference triple for each acceptable state of each listed shape: "different reference states
//! MUST be expressed using separate" records (section "Reference Values Triple"), so registers of different
//! shapes or generations can't be mixed. [`PROFILE`] names these conventions:
//!
//! - `corim-map.id` and the CoMID's `tag-id`: `sha256:` and the release's digest; `rim-validity`: the release's;
//! - the environment is a class: `class-id` the canonical JSON of the machine's shape (tagged bytes, 560), `vendor`
//!   [`VENDOR`], `model` the image's profile, with ` (hardware simulated)` behind it where that is so;
//! - each measurement's key is the register's name as text (`mr_td`, `rtmr_0`, `rtmr_1`, `rtmr_2`), its value one digest
//!   of algorithm 7 (SHA-384 in IANA's Named Information registry);
//! - the encoding is deterministic (RFC 8949, section 4.2.1); there are no key triples: quotes are verified by Intel's
//!   collateral.

use types::{Sha384Digest, canonical};

use super::cbor::Value;
use super::{ExportError, named};
use crate::key::ReleaseKey;
use crate::statement::{Hardware, ReferenceValues, ShapeRegisters, Validity};

/// Identifier of the conventions. `.invalid` never resolves (RFC 2606).
pub const PROFILE: &str = "https://chrysalis.invalid/corim/tdx-registers/v1";
/// `vendor` of the environments.
pub const VENDOR: &str = "Chrysalis";
/// Most states of one manifest.
pub const MAX_STATES: usize = 4096;

/// The unsigned manifest, tag 501. It has no more authority than whoever hands it over.
///
/// # Errors
/// [`ExportError`].
pub fn unsigned(values: &ReferenceValues, release: &types::Sha256Digest) -> Result<Vec<u8>, ExportError> {
    let id = Value::text(format!("sha256:{release}"));
    let mut triples = Vec::new();
    for registers in &values.registers {
        let environment = environment(values, registers)?;
        for state in states(registers) {
            if triples.len() == MAX_STATES {
                return Err(ExportError::TooManyStates { max: MAX_STATES });
            }
            triples.push(Value::Array(vec![environment.clone(), Value::Array(state?)]));
        }
    }
    let tag_identity = Value::map([(0, id.clone())]);
    let comid = Value::map([(1, tag_identity), (4, Value::map([(0, Value::Array(triples))]))]);
    let tag = Value::tagged(TAG_COMID, Value::Bytes(comid.encode()));
    let Validity { not_before, not_after } = values.validity;
    let corim = Value::map([
        (0, id),
        (1, Value::Array(vec![tag])),
        (3, Value::tagged(TAG_URI, Value::text(PROFILE))),
        (4, validity(not_before, not_after)),
    ]);
    Ok(Value::tagged(TAG_CORIM, corim).encode())
}

/// The manifest signed by a release key: `COSE_Sign1` (RFC 9052, tag 18) with ES256. The protected header names the key
/// (`kid`: SHA-256 of its DER form; `iss` of the CWT claims and `signer-name` of `corim-meta` the same in base64) and the
/// validity.
///
/// The signature covers the manifest, not the release's place in a log: that is in the bundle.
///
/// # Errors
/// [`ExportError`].
pub fn signed(
    values: &ReferenceValues,
    release: &types::Sha256Digest,
    key: &ReleaseKey,
) -> Result<Vec<u8>, ExportError> {
    let payload = unsigned(values, release)?;
    let public = key.public();
    let kid = types::Sha256Digest::of(&public.to_der()?);
    let Validity { not_before, not_after } = values.validity;
    let signer = Value::text(format!("chrysalis release key {}", public.hint()?));
    // The older form of the claims, which must say the same: readers before 2026 know only this one.
    let meta = Value::map([(0, Value::map([(0, signer.clone())])), (1, validity(not_before, not_after))]);
    let claims = Value::map([
        (1, signer),
        (2, Value::text(format!("sha256:{release}"))),
        (4, Value::Unsigned(not_after)),
        (5, Value::Unsigned(not_before)),
    ]);
    let protected = Value::map([
        (1, Value::Negative(ES256)),
        (3, Value::text("application/rim+cbor")),
        (4, Value::Bytes(kid.as_bytes().to_vec())),
        (8, Value::Bytes(meta.encode())),
        (15, claims),
    ])
    .encode();
    let to_sign = Value::Array(vec![
        Value::text("Signature1"),
        Value::Bytes(protected.clone()),
        Value::Bytes(Vec::new()),
        Value::Bytes(payload.clone()),
    ]);
    let signature = key.sign_fixed(&to_sign.encode());
    let message = Value::Array(vec![
        Value::Bytes(protected),
        Value::Map(Vec::new()),
        Value::Bytes(payload),
        Value::Bytes(signature.to_vec()),
    ]);
    Ok(Value::tagged(TAG_COSE_SIGN1, message).encode())
}

/// A `validity-map`.
fn validity(not_before: u64, not_after: u64) -> Value {
    let time = |seconds| Value::tagged(TAG_TIME, Value::Unsigned(seconds));
    Value::map([(0, time(not_before)), (1, time(not_after))])
}

fn environment(values: &ReferenceValues, registers: &ShapeRegisters) -> Result<Value, ExportError> {
    let shape = canonical::to_bytes(&registers.shape)?;
    let model = match values.hardware {
        Hardware::Tdx => values.profile.clone(),
        Hardware::Simulated => format!("{} (hardware simulated)", values.profile),
    };
    let class_id = Value::tagged(TAG_BYTES, Value::Bytes(shape));
    let class = Value::map([(0, class_id), (1, Value::text(VENDOR)), (2, Value::text(model))]);
    Ok(Value::map([(0, class)]))
}

/// Every combination of the allowed values: the measurements of one state each.
fn states(registers: &ShapeRegisters) -> impl Iterator<Item = Result<Vec<Value>, ExportError>> {
    let lists = named(registers);
    let count = lists.iter().try_fold(1_usize, |count, (_, values)| count.checked_mul(values.len()));
    let count = count.filter(|count| *count <= MAX_STATES).ok_or(ExportError::TooManyStates { max: MAX_STATES });
    let (numbers, error) = match count {
        Ok(count) => (0..count, None),
        Err(error) => (0..0, Some(Err(error))),
    };
    numbers.map(move |number| Ok(state(&lists, number))).chain(error)
}

/// State number `number`: the last register varies fastest.
fn state(lists: &[(&'static str, &Vec<Sha384Digest>)], mut number: usize) -> Vec<Value> {
    let mut measurements = Vec::new();
    for (name, values) in lists.iter().rev() {
        let length = values.len().max(1);
        let digest = values.get(number % length);
        number /= length;
        measurements.extend(digest.map(|digest| measurement(name, digest)));
    }
    measurements.reverse();
    measurements
}

fn measurement(name: &str, digest: &Sha384Digest) -> Value {
    let digest = Value::Array(vec![Value::Unsigned(SHA_384), Value::Bytes(digest.as_bytes().to_vec())]);
    Value::map([(0, Value::text(name)), (1, Value::map([(2, Value::Array(vec![digest]))]))])
}

const TAG_TIME: u64 = 1;
const TAG_COSE_SIGN1: u64 = 18;
const TAG_URI: u64 = 32;
const TAG_CORIM: u64 = 501;
const TAG_COMID: u64 = 506;
const TAG_BYTES: u64 = 560;
/// -7, as -1 minus this.
const ES256: u64 = 6;
const SHA_384: u64 = 7;
