// SPDX-License-Identifier: Apache-2.0
//! Tokens and key sets: what is accepted, and everything near it that is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use attestation_result::{
    AttestationResult, Issue, Jwk, KeySet, KeySetError, MAX_TOKEN, ResultKey, Tier, TokenError, verify,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use types::{Hex32, Refusal, Sha256Digest};

const NOW: u64 = 1_800_000_000;

fn key() -> ResultKey {
    ResultKey::derive(&[1; 32])
}

fn result(now: u64, audience: Option<&str>) -> AttestationResult {
    let reasons =
        [Refusal::new("tcb_out_of_date", "tcb.status", "d", "f"), Refusal::new("gpu_count_mismatch", "g", "d", "f")];
    let policies = [Sha256Digest::of(b"policy")];
    let issue = Issue { policies: &policies, build: "test 1", challenge: None, audience, now, until: u64::MAX };
    AttestationResult::refused(&reasons, &issue)
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token with another header and other claims, signed by the right key all the same.
fn signed(header: &Value, claims: &Value) -> String {
    // The key that `key` derives, by the RFC's own formula for one block.
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = result_signing_key().sign(signed.as_bytes()).to_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn result_signing_key() -> SigningKey {
    let mut seed = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::new(None, &[1; 32]).expand(b"chrysalis/ear-key/v1", &mut seed).unwrap();
    let found = SigningKey::from_bytes(&seed);
    assert_eq!(Hex32::new(found.verifying_key().to_bytes()), key().public(), "label and formula are fixed");
    found
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "typ": "JWT", "kid": Jwk::of(&key().public()).kid })
}

#[test]
fn a_result_is_read_back_and_says_why() {
    let made = result(NOW, None);
    let token = key().sign(&made).unwrap();
    let read = verify(&token, &[ResultKey::derive(&[2; 32]).public(), key().public()], None, NOW).unwrap();
    assert_eq!(read, made);
    assert_eq!((read.ear_status, read.exp), (Tier::Contraindicated, NOW + 600));
    let tdx = &read.submods["tdx"];
    assert_eq!(tdx.ear_verifier_claims.as_ref().unwrap().reasons, ["tcb_out_of_date"]);
    assert_eq!(tdx.ear_trustworthiness_vector.unwrap().hardware, Some(96));
    assert_eq!(tdx.ear_appraisal_policy_ids, [format!("sha256:{}", Sha256Digest::of(b"policy"))]);
    assert_eq!(read.submods["gpu"].ear_verifier_claims.as_ref().unwrap().reasons, ["gpu_count_mismatch"]);
}

#[test]
fn every_bit_counts() {
    let token = key().sign(&result(NOW, None)).unwrap();
    let keys = [key().public()];
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(verify(&changed, &keys, None, NOW).is_err(), "byte {at}");
    }
    for text in ["", ".", "..", "a.b", &format!("{token}."), &format!("{token}="), &format!(" {token}")] {
        assert!(verify(text, &keys, None, NOW).is_err(), "{text:?}");
    }
    assert_eq!(verify(&"a".repeat(MAX_TOKEN + 1), &keys, None, NOW), Err(TokenError::TooLarge(MAX_TOKEN + 1)));
}

#[test]
fn other_keys_and_algorithms() {
    let made = result(NOW, None);
    let token = key().sign(&made).unwrap();
    assert_eq!(verify(&token, &[ResultKey::derive(&[2; 32]).public()], None, NOW), Err(TokenError::Key));
    assert_eq!(verify(&token, &[], None, NOW), Err(TokenError::Key));
    let claims = serde_json::to_value(&made).unwrap();
    let keys = [key().public()];
    assert!(verify(&signed(&header(), &claims), &keys, None, NOW).is_ok(), "the test's own way of signing is right");
    for algorithm in ["none", "None", "HS256", "ES256", "eddsa", "Ed25519", ""] {
        let mut header = header();
        header["alg"] = json!(algorithm);
        assert_eq!(verify(&signed(&header, &claims), &keys, None, NOW), Err(TokenError::Algorithm), "{algorithm}");
        let unsigned = format!("{}.{}.", part(&header), part(&claims));
        assert_eq!(verify(&unsigned, &keys, None, NOW), Err(TokenError::Algorithm), "{algorithm}, unsigned");
    }
    let unsigned = format!("{}.{}.", part(&header()), part(&claims));
    assert_eq!(verify(&unsigned, &keys, None, NOW), Err(TokenError::Signature));
    for (field, value) in [("crit", json!(["exp"])), ("jwk", json!({})), ("typ", json!("JOSE")), ("kid", json!(1))] {
        let mut header = header();
        header[field] = value;
        assert_eq!(verify(&signed(&header, &claims), &keys, None, NOW), Err(TokenError::Header), "{field}");
    }
    // Another key's signature under this key's name.
    let mut other = ResultKey::derive(&[2; 32]).sign(&made).unwrap();
    let body = other.split_once('.').unwrap().1.to_owned();
    other = format!("{}.{body}", part(&header()));
    assert_eq!(verify(&other, &keys, None, NOW), Err(TokenError::Signature));
}

#[test]
fn times_and_audiences() {
    let keys = [key().public()];
    let token = key().sign(&result(NOW, None)).unwrap();
    assert!(verify(&token, &keys, None, NOW + 599).is_ok());
    assert_eq!(verify(&token, &keys, None, NOW + 600), Err(TokenError::Expired(NOW + 600)));
    assert!(verify(&token, &keys, None, NOW - 60).is_ok());
    assert_eq!(verify(&token, &keys, None, NOW - 61), Err(TokenError::NotYet(NOW)));
    assert_eq!(verify(&token, &keys, Some("a"), NOW), Err(TokenError::Audience));
    let token = key().sign(&result(NOW, Some("a"))).unwrap();
    assert!(verify(&token, &keys, Some("a"), NOW).is_ok());
    assert_eq!(verify(&token, &keys, Some("b"), NOW), Err(TokenError::Audience));
    assert_eq!(verify(&token, &keys, None, NOW), Err(TokenError::Audience));
}

/// Signed by the right key, and still refused: a program that signs nonsense is not believed.
#[test]
fn claims_that_contradict_themselves() {
    let keys = [key().public()];
    for (pointer, value) in [
        ("/eat_profile", json!("tag:github.com,2023:veraison/ear")),
        ("/exp", json!(NOW + 601)),
        ("/exp", json!(NOW)),
        ("/ear_status", json!("affirming")),
        ("/ear_status", json!("warning")),
        ("/submods/tdx/ear_status", json!("warning")),
        ("/submods", json!({})),
        ("/iat", json!(-1)),
        ("/admin", json!(true)),
        ("/submods/tdx/ear_trustworthiness_vector/hardware", json!(128)),
    ] {
        let mut claims = serde_json::to_value(result(NOW, None)).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        claims.pointer_mut(parent).unwrap()[name] = value;
        let found = verify(&signed(&header(), &claims), &keys, None, NOW);
        assert!(matches!(found, Err(TokenError::Claims(_))), "{pointer}: {found:?}");
    }
}

#[test]
fn keys_are_the_services_own() {
    let identity = SigningKey::from_bytes(&[1; 32]);
    let service = Hex32::new(identity.verifying_key().to_bytes());
    let pin = attested_channel::ed25519_spki_sha256(&service);
    let set = KeySet::of(&key().public(), service, |bytes| identity.sign(bytes).to_bytes());
    let bytes = |set: &KeySet| serde_json::to_vec(set).unwrap();
    assert_eq!(KeySet::verified(&bytes(&set), Some(&pin)), Ok(vec![key().public()]));
    assert_eq!(KeySet::verified(&bytes(&set), None), Ok(vec![key().public()]));
    let other = Sha256Digest::of(b"other");
    assert_eq!(KeySet::verified(&bytes(&set), Some(&other)), Err(KeySetError::Pin { expected: other, found: pin }));
    // A key that the service did not sign; a signature over the keys without the label; another's name.
    let mut changed = set.clone();
    changed.keys.push(Jwk::of(&Hex32::new([3; 32])));
    assert_eq!(KeySet::verified(&bytes(&changed), Some(&pin)), Err(KeySetError::Signature));
    let unlabelled = KeySet::of(&key().public(), service, |_| identity.sign(key().public().as_bytes()).to_bytes());
    assert_eq!(KeySet::verified(&bytes(&unlabelled), Some(&pin)), Err(KeySetError::Signature));
    let mut changed = set.clone();
    changed.chrysalis.service_key = key().public();
    assert_eq!(KeySet::verified(&bytes(&changed), None), Err(KeySetError::Signature));
    for (pointer, value) in [
        ("/keys/0/alg", json!("none")),
        ("/keys/0/kty", json!("EC")),
        ("/keys/0/use", json!("enc")),
        ("/keys/0/kid", json!("x")),
        ("/keys/0/x", json!("AA")),
        ("/keys/0/d", json!("AA")),
        ("/keys", json!([])),
        ("/chrysalis/schema", json!("chrysalis/time/v1")),
    ] {
        let mut json = serde_json::to_value(&set).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[name] = value;
        let found = KeySet::verified(json.to_string().as_bytes(), Some(&pin));
        assert!(matches!(found, Err(KeySetError::Form(_))), "{pointer}: {found:?}");
    }
}
