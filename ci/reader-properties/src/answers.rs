// SPDX-License-Identifier: Apache-2.0
//! What a guest, an owner or an operator reads from the attestation service.

use attested_channel::ed25519_spki_sha256;
use release_client::key_release_protocol::{MAX_WORK_BITS, Search};
use release_client::{ClientError, answer};
use serde_json::Value;
use types::{Hex32, Sha256Digest};

use crate::seeds::{self, NOW};

/// `t` and a signed time, `c` a challenge, `r` a released key, `o` what an owner's command came to, `x` reasons.
pub fn answers(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b't', body)) => time(body),
        Some((b'c', body)) => challenge(body),
        Some((b'r', body)) => released(body),
        Some((b'o', body)) => answer::command(body).is_ok() && one_spelling(body),
        Some((b'x', body)) => refusal(body),
        _ => false,
    }
}

/// A challenge in one spelling; work is done within bounds only.
fn challenge(body: &[u8]) -> bool {
    let Ok(challenge) = answer::challenge(body) else { return false };
    if let Some(work) = challenge.work {
        assert_eq!(Search::new(challenge.token, work).is_some(), work.bits <= MAX_WORK_BITS, "unbounded work");
    }
    assert!(body.len() <= 4096, "an answer that is too large was accepted");
    one_spelling(body)
}

/// No time but the one that the pinned key signed for this nonce, and none before the floor.
fn time(body: &[u8]) -> bool {
    let pin = ed25519_spki_sha256(&Hex32::new(seeds::time_key().verifying_key().to_bytes()));
    let Ok(time) = answer::time(body, &seeds::TIME_NONCE, &pin, NOW) else { return false };
    assert_eq!(time.unix, NOW, "a time that the key did not sign");
    assert!(answer::time(body, &seeds::TIME_NONCE, &pin, NOW + 1).is_err(), "it is before the floor");
    assert!(answer::time(body, &Hex32::new([0; 32]), &pin, NOW).is_err(), "it is for another nonce");
    assert!(answer::time(body, &seeds::TIME_NONCE, &Sha256Digest::of(b"x"), NOW).is_err(), "it is another service's");
    one_spelling(body)
}

/// No key opens but the one that was sealed for this challenge, model, evidence and entry.
fn released(body: &[u8]) -> bool {
    let (model, evidence) = (seeds::model(), Sha256Digest::of(b"evidence"));
    let open = |challenge: u8| answer::released(body, &[challenge; 32], &model, &evidence, seeds::release_key_pair());
    let Ok(released) = open(seeds::CHALLENGE) else { return false };
    assert_eq!((*released.key, released.key_version), ([seeds::MODEL_KEY; 32], 1), "another key");
    assert!(open(seeds::CHALLENGE + 1).is_err(), "it is for another challenge");
    assert!(released.audit.verify_path_only().is_ok(), "its entry is in a log");
    one_spelling(body)
}

/// Whatever comes with a status other than 200 is a refusal; with reasons it has the code of the first.
fn refusal(body: &[u8]) -> bool {
    match answer::refusal("GET /", 403, body) {
        ClientError::Refused(reasons) => {
            let written: Value = serde_json::from_slice(body).expect("reasons are JSON");
            assert_eq!(written["reasons"].as_array().map(Vec::len), Some(reasons.len()), "a reason is lost");
            assert_eq!(written["reasons"][0]["code"].as_str(), reasons.first().map(|reason| reason.code.as_str()));
            true
        }
        _ => false,
    }
}

/// Canonical bytes: written again they are the same.
fn one_spelling(body: &[u8]) -> bool {
    let value: Value = serde_json::from_slice(body).expect("an answer is JSON");
    assert_eq!(types::canonical::to_bytes(&value).as_deref(), Ok(body), "an answer has one spelling");
    true
}
