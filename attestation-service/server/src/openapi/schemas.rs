// SPDX-License-Identifier: Apache-2.0
//! JSON Schemas of what goes over the wire. The test below holds them against what the types really write.

use key_release::{KeyReleaseAnswer, MAX_COSIGNATURES, MAX_EVIDENCE, MAX_WORK_BITS, OwnerCommand, Sealed, Token};
use serde_json::{Value, json};

use super::reference;

/// All schemas by name.
pub(super) fn all() -> Value {
    json!({
        "AttestedTime": object(json!({
            "unix": seconds(),
            "nonce": reference("Hex32"),
            "service_key": reference("Hex32"),
            "signature": base64(64),
        }), &[]),
        "ChallengeAnswer": object(json!({
            "expires": seconds(),
            "token": reference("Token"),
            "work": reference("Work"),
        }), &["work"]),
        "Work": object(json!({
            "bits": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_WORK_BITS,
                "description": "Leading zero bits that SHA-256(\"chrysalis/work/v1\" ‖ token ‖ work u64) must have",
            },
        }), &[]),
        "KeyReleaseRequest": object(json!({
            "schema": { "const": "chrysalis/key-release-request/v1" },
            "token": reference("Token"),
            "model": reference("ModelId"),
            "evidence": base64(MAX_EVIDENCE),
            "work": integer(),
        }), &["work"]),
        "KeyReleaseAnswer": object(json!({
            "schema": {
                "enum": [<KeyReleaseAnswer as types::Document>::SCHEMA, KeyReleaseAnswer::WITH_TENANTS],
                "description": "v2 where the document of the model's tenants is sealed with its key",
            },
            "model": reference("ModelId"),
            "key_version": { "type": "integer", "minimum": 1, "maximum": u32::MAX },
            "enc": reference("Hex32"),
            "ciphertext": {
                "type": "string",
                "pattern": "^(?:[0-9a-f]{2})*$",
                "minLength": 2 * Sealed::LEAST,
                "maxLength": 2 * Sealed::MOST,
                "description": "The key, the document of tenants in v2, and the tag",
            },
            "audit": reference("EntryProof"),
        }), &[]),
        "EntryProof": object(json!({
            "index": integer(),
            "leaf": reference("Sha256Digest"),
            "tree_size": integer(),
            "path": { "type": "array", "maxItems": 64, "items": reference("Sha256Digest") },
            "checkpoint": reference("Checkpoint"),
        }), &[]),
        "SignedOwnerCommand": object(json!({
            "schema": { "const": "chrysalis/signed-owner-command/v1" },
            "command": base64(<OwnerCommand as types::Document>::MAX_BYTES),
            "signature": hex(64),
            "cosignatures": { "type": "array", "minItems": 1, "maxItems": MAX_COSIGNATURES, "items": hex(64) },
        }), &["cosignatures"]),
        "ServiceKeys": object(json!({
            "schema": { "const": "chrysalis/service-keys/v1" },
            "service_key": reference("Hex32"),
            "import_key": reference("Hex32"),
            "signature": base64(64),
        }), &[]),
        "OwnerAnswer": object(json!({
            "model": reference("ModelId"),
            "sequence": integer(),
            "audit_index": integer(),
        }), &[]),
        "ResultKeys": object(json!({
            "keys": { "type": "array", "minItems": 1, "items": reference("Jwk") },
            "chrysalis": reference("KeyBinding"),
        }), &[]),
        "Jwk": object(json!({
            "kty": { "const": "OKP" },
            "crv": { "const": "Ed25519" },
            "alg": { "const": "EdDSA" },
            "use": { "const": "sig" },
            "kid": { "type": "string", "description": "Thumbprint of the key (RFC 7638)" },
            "x": { "type": "string", "description": "The key, base64url" },
        }), &[]),
        "KeyBinding": object(json!({
            "schema": { "const": "chrysalis/ear-keys/v1" },
            "service_key": reference("Hex32"),
            "signature": hex(64),
        }), &[]),
        "ModelId": object(json!({
            "name": label(),
            "revision": label(),
            "identity": { "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "BLAKE3 of the manifest" },
        }), &[]),
        "Refusals": object(json!({
            "reasons": { "type": "array", "minItems": 1, "items": reference("Refusal") },
        }), &[]),
        "Refusal": object(json!({
            "code": reference("Code"),
            "field": { "type": "string", "description": "The field or register that broke the rule" },
            "detail": { "type": "string", "description": "The rule, what was expected and found" },
            "fix": { "type": "string", "description": "What would make it pass" },
        }), &[]),
        "Code": {
            "type": "string",
            "pattern": "^[a-z0-9_]{1,64}$",
            "description": "Stable. Others may be added.",
            "examples": super::all_codes(),
        },
        "Hex32": hex(32),
        "Sha256Digest": hex(32),
        "Token": hex(Token::LEN),
        "Bundle": { "type": "object", "description": "Sigstore bundle v0.3" },
        "OpenApi": { "type": "object" },
        "Checkpoint": { "type": "string", "minLength": 1 },
        // OpenAPI 3.1 describes binary content by a schema without a type.
        "Bytes": {},
        "TilePath": { "type": "string", "pattern": TILE_PATH },
    })
}

/// An object whose fields are all required but `optional`, and that has no others.
fn object(properties: Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flat_map(serde_json::Map::keys);
    let required: Vec<_> = names.filter(|name| !optional.contains(&name.as_str())).collect();
    json!({ "type": "object", "required": required, "additionalProperties": false, "properties": properties })
}

fn integer() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": MAX_INTEGER })
}

fn seconds() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": MAX_INTEGER, "description": "Seconds since 1970" })
}

fn hex(bytes: usize) -> Value {
    json!({ "type": "string", "pattern": format!("^[0-9a-f]{{{}}}$", bytes.saturating_mul(2)) })
}

/// Canonical base64: padded, and no bits are lost.
fn base64(max: usize) -> Value {
    let most = max.div_ceil(3).saturating_mul(4);
    json!({ "type": "string", "contentEncoding": "base64", "maxLength": most, "pattern": BASE64 })
}

fn label() -> Value {
    json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" })
}

/// Largest integer that every JSON reader keeps exactly.
const MAX_INTEGER: u64 = (1 << 53) - 1;
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
const TILE_PATH: &str = "^tile/(?:[0-9]|[1-5][0-9]|6[0-3]|entries)/(?:x[0-9]{3}/)*[0-9]{3}(?:\\.p/[1-9][0-9]{0,2})?$";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use attestation_result::KeySet;
    use key_release::{ChallengeAnswer, KeyReleaseRequest, OwnerSignature, SignedOwnerCommand, Work};
    use release::log::EntryProof;
    use types::{
        Base64, Blake3Digest, Document as _, Hex32, ModelId, Refusal, Sha256Digest, evidence::AttestedTime,
        refusal::Refusals,
    };

    use super::*;

    fn names(value: Option<&Value>) -> BTreeSet<String> {
        value.and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    /// Holds `value` against `schema`: fields, required ones, types, lengths of hexadecimal text, constants.
    fn hold(schemas: &Value, schema: &Value, value: &Value, at: &str) {
        if let Some(reference) = schema["$ref"].as_str() {
            return hold(schemas, &schemas[reference.rsplit('/').next().unwrap()], value, at);
        }
        if let Some(constant) = schema.get("const") {
            assert_eq!(value, constant, "{at}");
        }
        if let Some(one_of) = schema["enum"].as_array() {
            assert!(one_of.contains(value), "{at}");
        }
        match schema["type"].as_str() {
            Some("object") if schema.get("properties").is_some() => {
                let (known, found) = (names(schema.get("properties")), names(Some(value)));
                assert!(found.is_subset(&known), "{at}: {found:?} beyond {known:?}");
                let required = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                assert!(required.clone().all(|name| found.contains(name)), "{at}: {found:?}");
                for (name, field) in value.as_object().unwrap() {
                    hold(schemas, &schema["properties"][name], field, &format!("{at}.{name}"));
                }
            }
            Some("array") => {
                value.as_array().unwrap().iter().for_each(|item| hold(schemas, &schema["items"], item, at));
            }
            Some("integer") => assert!(value.is_u64(), "{at}"),
            Some("string") => {
                let text = value.as_str().expect(at);
                if let Some(digits) = schema["pattern"].as_str().and_then(|p| p.strip_prefix("^[0-9a-f]{")) {
                    assert_eq!(text.len().to_string(), digits.trim_end_matches("}$"), "{at}");
                }
            }
            _ => {}
        }
    }

    /// Whole documents of every type, with every field set.
    #[test]
    fn schemas_fit_what_the_types_write() {
        let (hex, digest, token) = (Hex32::new([1; 32]), Sha256Digest::of(b"x"), Token::from_bytes([7; 56]));
        let model = ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap();
        let proof =
            EntryProof { index: 1, leaf: digest, tree_size: 2, path: vec![digest], checkpoint: "note".to_owned() };
        let some = |bytes: &[u8]| bytes.to_vec();
        let values = [
            ("AttestedTime", {
                let signature = Base64::new(some(&[2; 64])).unwrap();
                json!(AttestedTime { unix: 1, nonce: hex, service_key: hex, signature })
            }),
            ("ChallengeAnswer", json!(ChallengeAnswer { expires: 1, token, work: Some(Work { bits: 14 }) })),
            (
                "KeyReleaseRequest",
                json!(KeyReleaseRequest {
                    schema: KeyReleaseRequest::SCHEMA.to_owned(),
                    token,
                    model: model.clone(),
                    evidence: Base64::new(some(b"{}")).unwrap(),
                    work: Some(1),
                }),
            ),
            (
                "KeyReleaseAnswer",
                json!(KeyReleaseAnswer {
                    schema: KeyReleaseAnswer::SCHEMA.to_owned(),
                    model: model.clone(),
                    key_version: 1,
                    enc: hex,
                    ciphertext: Sealed::new(vec![0; 48]).unwrap(),
                    audit: proof,
                }),
            ),
            (
                "SignedOwnerCommand",
                json!(SignedOwnerCommand {
                    schema: SignedOwnerCommand::SCHEMA.to_owned(),
                    command: Base64::new(some(b"{}")).unwrap(),
                    signature: [0; 64],
                    cosignatures: vec![OwnerSignature([0; 64])],
                }),
            ),
            ("ServiceKeys", json!(crate::Identity::generate().unwrap().service_keys())),
            ("ResultKeys", json!(KeySet::of(&hex, hex, |_| [3; 64]))),
            ("OwnerAnswer", json!(crate::service::OwnerAnswer::sample(model))),
            ("Refusals", json!(Refusals { reasons: vec![Refusal::new("code", "field", "detail", "fix")] })),
        ];
        let schemas = all();
        for (name, value) in values {
            hold(&schemas, &schemas[name], &value, name);
        }
    }

    #[test]
    fn the_smallest_and_largest_sizes_are_the_types_own() {
        let schemas = all();
        let most = |name: &str, field: &str| schemas[name]["properties"][field]["maxLength"].as_u64().unwrap();
        assert_eq!(most("KeyReleaseRequest", "evidence"), 2_796_204);
        assert!(most("KeyReleaseRequest", "evidence") < KeyReleaseRequest::MAX_BYTES as u64);
        assert!(most("SignedOwnerCommand", "command") < SignedOwnerCommand::MAX_BYTES as u64);
        assert!(most("KeyReleaseAnswer", "ciphertext") < KeyReleaseAnswer::MAX_BYTES as u64);
    }
}
