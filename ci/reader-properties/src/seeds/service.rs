// SPDX-License-Identifier: Apache-2.0
//! What the attestation service keeps, answers and signs.

use std::sync::OnceLock;

use attestation_result::{AttestationResult, Issue, Jwk, KeySet};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ed25519_dalek::{Signer as _, SigningKey};
use hpke::rand_core::{TryCryptoRng, TryRng};
use key_release::{ChallengeAnswer, KeyReleaseAnswer, ReleaseKeyPair, SealContext, TokenKey, Work};
use key_wrap::transit_answer;
use release_client::{OwnerAnswer, key_release_protocol::seal};
use serde_json::{Value, json};
use store::{AuditEntry, OperatorAct, OperatorEntry, OwnerEntry};
use types::{
    Base64, Document as _, Hex32, Refusal, Sha256Digest, canonical, evidence::AttestedTime, refusal::Refusals,
};
use zeroize::Zeroizing;

use super::{NOW, Seed, TOKEN_KEY, cosigned, key_release_entry, model, two_entries};
use crate::{archive, wrapping};

pub(super) fn all() -> Vec<Seed> {
    [answers(), audit(), archives(), ears(), rules(), wrappings()].into_iter().flatten().collect()
}

/// The nonce that the signed time answers.
pub(crate) const TIME_NONCE: Hex32 = Hex32::new([13; 32]);
/// Each byte of the challenge that the released key answers.
pub(crate) const CHALLENGE: u8 = 14;
/// Each byte of the released key.
pub(crate) const MODEL_KEY: u8 = 15;
/// For whom the attestation result is.
pub(crate) const EAR_AUDIENCE: &str = "auditor.example";

/// The service's key.
pub(crate) fn time_key() -> SigningKey {
    SigningKey::from_bytes(&[12; 32])
}

/// The guest's key of the release, always the same.
pub(crate) fn release_key_pair() -> ReleaseKeyPair {
    ReleaseKeyPair::generate(&mut Same(0))
}

/// The key that signs attestation results.
pub(crate) fn ear_key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_bytes(&[16; 32]))
}

/// The service whose key set it is in.
pub(crate) fn ear_service() -> SigningKey {
    SigningKey::from_bytes(&[17; 32])
}

/// What the token says.
pub(crate) fn ear_result() -> AttestationResult {
    let reasons = [Refusal::new("tcb_out_of_date", "tcb.status", "detail", "fix")];
    let policies = [Sha256Digest::of(b"policy")];
    AttestationResult::refused(
        &reasons,
        &Issue {
            policies: &policies,
            build: "attestation-service 0",
            challenge: Some(Sha256Digest::of(b"challenge")),
            audience: Some(EAR_AUDIENCE),
            now: NOW,
            until: NOW + 60,
        },
    )
}

/// Its header.
pub(crate) fn ear_header() -> Value {
    json!({ "alg": "EdDSA", "kid": Jwk::of(&public(ear_key())).kid, "typ": "JWT" })
}

/// The one token.
pub(crate) fn ear_token() -> String {
    let claims = serde_json::to_vec(&ear_result()).expect("a result is JSON");
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", encode(ear_header().to_string().as_bytes()), encode(&claims));
    format!("{signed}.{}", encode(&ear_key().sign(signed.as_bytes()).to_bytes()))
}

fn public(key: &SigningKey) -> Hex32 {
    Hex32::new(key.verifying_key().to_bytes())
}

fn answers() -> Vec<Seed> {
    let seed = |name, kind: u8, body: Vec<u8>| Seed { target: "answers", name, bytes: [vec![kind], body].concat() };
    let signature = time_key().sign(&AttestedTime::signed_bytes(&TIME_NONCE, NOW)).to_bytes();
    let time = AttestedTime {
        unix: NOW,
        nonce: TIME_NONCE,
        service_key: public(&time_key()),
        signature: Base64::new(signature.to_vec()).expect("64 bytes"),
    };
    let token = TokenKey::new(TOKEN_KEY).mint_asking(NOW + 60, 14, [6; 16]);
    let challenge = ChallengeAnswer { expires: NOW + 60, token, work: Some(Work { bits: 14 }) };
    let command = OwnerAnswer { model: model(), sequence: 1, audit_index: 1 };
    let refusals = Refusals { reasons: vec![Refusal::new("challenge_replayed", "challenge", "detail", "fix")] };
    let bytes = |value: Result<Vec<u8>, types::CanonicalError>| value.expect("a small document");
    vec![
        seed("time", b't', bytes(canonical::to_bytes(&time))),
        seed("challenge", b'c', bytes(canonical::to_bytes(&challenge))),
        seed("released", b'r', bytes(released().to_canonical())),
        seed("command", b'o', bytes(canonical::to_bytes(&command))),
        seed("refused", b'x', bytes(canonical::to_bytes(&refusals))),
    ]
}

fn released() -> KeyReleaseAnswer {
    let (head, mut audit) = two_entries(b"second");
    audit.checkpoint = cosigned(&head).note().to_owned();
    let (model, evidence) = (model(), Sha256Digest::of(b"evidence"));
    let context = SealContext {
        challenge: &[CHALLENGE; 32],
        model: &model,
        key_version: 1,
        evidence: &evidence,
        audit_leaf: &audit.leaf,
    };
    let key = Zeroizing::new([MODEL_KEY; 32]);
    let (enc, ciphertext) =
        seal(&key, None, release_key_pair().public(), &context, &mut Same(1)).expect("a good point");
    KeyReleaseAnswer { schema: KeyReleaseAnswer::SCHEMA.to_owned(), model, key_version: 1, enc, ciphertext, audit }
}

fn audit() -> Vec<Seed> {
    let owner = OwnerEntry {
        schema: OwnerEntry::SCHEMA.to_owned(),
        unix: NOW,
        model: model(),
        sequence: 1,
        command: Sha256Digest::of(b"command"),
    };
    let operator = OperatorEntry {
        schema: OperatorEntry::SCHEMA.to_owned(),
        unix: NOW,
        number: 1,
        act: OperatorAct::ReleaseRevoked,
        subject: Sha256Digest::of(b"release").to_string(),
        content: None,
    };
    let entries = [
        ("key-release.json", AuditEntry::KeyRelease(key_release_entry())),
        ("refusal.json", AuditEntry::Refusal(archive::refusal())),
        ("refusals.json", AuditEntry::Refusals(archive::refusals())),
        ("owner.json", AuditEntry::Owner(owner)),
        ("operator.json", AuditEntry::Operator(operator)),
    ];
    let seed = |(name, entry): (_, AuditEntry)| Seed { target: "audit", name, bytes: entry.to_bytes().expect("good") };
    entries.map(seed).into()
}

/// Changes as the target reads them.
fn archives() -> Vec<Seed> {
    let seed = |name, bytes: &[u8]| Seed { target: "archive", name, bytes: bytes.to_vec() };
    vec![
        seed("archive", b"r"),
        seed("members", b"m"),
        seed("export", b"x"),
        // A byte, and back.
        seed("restored", b"r\0\0\0\0x\0\0\0\0f"),
        seed("member-restored", b"m\0\0\0\0x\0\0\0\0{"),
    ]
}

fn ears() -> Vec<Seed> {
    let seed = |name, kind: u8, body: &[u8]| Seed { target: "ear", name, bytes: [&[kind], body].concat() };
    let claims = serde_json::to_vec(&ear_result()).expect("a result is JSON");
    let service = ear_service();
    let set = KeySet::of(&public(ear_key()), public(&service), |bytes| service.sign(bytes).to_bytes());
    vec![
        seed("token", b't', ear_token().as_bytes()),
        seed("claims", b'c', &claims),
        seed("header", b'h', ear_header().to_string().as_bytes()),
        seed("keys", b'k', &serde_json::to_vec(&set).expect("a key set is JSON")),
    ]
}

fn rules() -> Vec<Seed> {
    let seed = |name, text: &str| Seed { target: "rules", name, bytes: text.as_bytes().to_vec() };
    vec![
        seed("all.cedar", "permit(principal, action, resource);"),
        seed(
            "some.cedar",
            "@id(\"a\") permit(principal, action == Action::\"key-release\", resource) when { context.bound };\n\
             @reason(\"old\") forbid(principal, action, resource) unless { context.now > 1700000000 && \
             [\"UpToDate\"].contains(context.platform.tcb_status) }; // end",
        ),
        seed("none.cedar", "forbid(principal, action, resource) when { !context.bound || context has gpu };"),
    ]
}

fn wrappings() -> Vec<Seed> {
    let seed = |name, kind: u8, body: String| Seed {
        target: "wrapping",
        name,
        bytes: format!("{}{body}", char::from(kind)).into_bytes(),
    };
    let bound = STANDARD.encode(transit_answer::bound(&[18; 32], wrapping::CONTEXT).as_slice());
    vec![
        seed("encrypted", b'e', json!({"data": {"ciphertext": "vault:v1:AAAA", "key_version": 1}}).to_string()),
        seed("decrypted", b'd', json!({"data": {"plaintext": bound}, "lease_id": ""}).to_string()),
        seed("file", b's', "file:/etc/kek".to_owned()),
        seed("token", b's', "pkcs11:token=a%20b;object=kek?module-path=/m.so&pin-source=file:/pin".to_owned()),
        seed(
            "transit",
            b's',
            "transit:https://vault.example:8200/a/b/kek?token-file=/t&ca-file=/c&namespace=n".to_owned(),
        ),
    ]
}

/// The same bytes at every run: seeds must be, keys must not.
struct Same(u64);

impl TryRng for Same {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.try_next_u64().map(|number| u32::try_from(number >> 32).unwrap_or_default())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Ok(self.0 ^ self.0 >> 29)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            let number = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Same {}
