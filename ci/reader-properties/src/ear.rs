// SPDX-License-Identifier: Apache-2.0
//! Attestation results (EAR) and the key sets that verify them.

use std::sync::OnceLock;

use attestation_result::{AttestationResult, Jwk, KeySet, MAX_SECONDS, Tier, verify};
use attested_channel::ed25519_spki_sha256;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use types::Hex32;

use crate::seeds::{self, EAR_AUDIENCE, NOW};

/// `t` and a token, `c` and claims that are then signed, `h` and a header that is, `k` and a key set.
pub fn ear(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b't', token)) => core::str::from_utf8(token).is_ok_and(as_sent),
        Some((b'c', claims)) => signed_claims(claims),
        Some((b'h', header)) => signed_header(header),
        Some((b'k', set)) => key_set(set),
        _ => false,
    }
}

/// No token is accepted but the one that the key signed, for nobody but its audience, at no other time.
fn as_sent(token: &str) -> bool {
    let Ok(result) = verify(token, &[key()], Some(EAR_AUDIENCE), NOW) else { return false };
    assert_eq!(token, genuine(), "a token that the key did not sign");
    assert!(verify(token, &[key()], None, NOW).is_err(), "it is for an audience");
    assert!(verify(token, &[key()], Some(EAR_AUDIENCE), result.exp).is_err(), "it ended");
    assert!(verify(token, &[Hex32::new([0; 32])], Some(EAR_AUDIENCE), NOW).is_err(), "it is another key's");
    true
}

fn genuine() -> &'static str {
    static TOKEN: OnceLock<String> = OnceLock::new();
    TOKEN.get_or_init(seeds::ear_token)
}

/// What the key signed is still held against the rules.
fn signed_claims(claims: &[u8]) -> bool {
    let Ok(result) = verify(&sign(&header(), claims), &[key()], Some(EAR_AUDIENCE), NOW) else { return false };
    assert!(NOW < result.exp && result.iat <= NOW + 60, "it counts now");
    assert!(result.iat < result.exp && result.exp - result.iat <= MAX_SECONDS, "it lasts as long as a token may");
    assert!(!result.submods.is_empty(), "it is about something");
    for submodule in result.submods.values() {
        assert!(submodule.ear_status <= result.ear_status, "the whole is better than a part");
        let vector = submodule.ear_trustworthiness_vector.map_or(Tier::None, |vector| vector.tier());
        assert!(vector <= submodule.ear_status, "a part is better than its vector");
    }
    let written = serde_json::to_vec(&result).expect("a result is JSON");
    let again: AttestationResult = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(again, result, "a result written again is another");
    true
}

/// One algorithm, one type, this key, nothing else.
fn signed_header(header: &[u8]) -> bool {
    let claims = serde_json::to_vec(&seeds::ear_result()).expect("a result is JSON");
    if verify(&sign(header, &claims), &[key()], Some(EAR_AUDIENCE), NOW).is_err() {
        return false;
    }
    let found: Value = serde_json::from_slice(header).expect("a header is JSON");
    assert_eq!(found, json!({"alg": "EdDSA", "typ": "JWT", "kid": Jwk::of(&key()).kid}), "another header");
    true
}

/// No keys of a service but those that it signed; whoever signs with another key is another service.
fn key_set(set: &[u8]) -> bool {
    let pin = ed25519_spki_sha256(&Hex32::new(seeds::ear_service().verifying_key().to_bytes()));
    let own = KeySet::verified(set, Some(&pin));
    let any = KeySet::verified(set, None);
    if let Ok(keys) = &own {
        assert_eq!(*keys, [key()], "keys that the service did not sign");
        assert_eq!(any.as_ref(), Ok(keys));
    }
    any.is_ok()
}

fn sign(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = seeds::ear_key().sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

fn header() -> Vec<u8> {
    seeds::ear_header().to_string().into_bytes()
}

fn key() -> Hex32 {
    public(seeds::ear_key())
}

fn public(key: &SigningKey) -> Hex32 {
    Hex32::new(key.verifying_key().to_bytes())
}
