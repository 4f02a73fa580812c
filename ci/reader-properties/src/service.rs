// SPDX-License-Identifier: Apache-2.0
//! What the attestation service reads from its peers, and they from it.

use key_release::{
    ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, OwnerCommand, SignedOwnerCommand, TokenKey, owner_public_key,
};
use release::log::LogSigner;
use types::{Document, KeyReleaseEntry, Sha256Digest, canonical};

use crate::{
    document::{canonical_form, read},
    seeds,
};

/// Requests and answers of a key release, and owners' commands: the bytes as they are, and their
/// canonical form.
pub fn service(bytes: &[u8]) -> bool {
    let accepted = any(bytes);
    canonical_form(bytes).map_or(accepted, |canonical| accepted | any(&canonical))
}

fn any(bytes: &[u8]) -> bool {
    request(bytes)
        | challenge(bytes)
        | answer(bytes)
        | read::<OwnerCommand>(bytes)
        | read::<KeyReleaseEntry>(bytes)
        | command(bytes)
}

fn request(bytes: &[u8]) -> bool {
    if !read::<KeyReleaseRequest>(bytes) {
        return false;
    }
    let Ok(request) = KeyReleaseRequest::from_canonical(bytes) else { return false };
    // Tokens are of one key and one time; the seed's alone is.
    let key = TokenKey::new(seeds::TOKEN_KEY);
    let made = key.mint(request.token.expires(), request.token.parts().1);
    let good = made == request.token && seeds::NOW < request.token.expires();
    assert_eq!(key.check(&request.token, seeds::NOW).is_ok(), good, "a token that the key did not make");
    true
}

fn challenge(bytes: &[u8]) -> bool {
    let Ok(answer) = canonical::from_bytes::<ChallengeAnswer>(bytes, 4096) else { return false };
    assert_eq!(canonical::to_bytes(&answer).as_deref(), Ok(bytes), "one spelling");
    true
}

fn answer(bytes: &[u8]) -> bool {
    if !read::<KeyReleaseAnswer>(bytes) {
        return false;
    }
    let Ok(answer) = KeyReleaseAnswer::from_canonical(bytes) else { return false };
    let other = LogSigner::new("example.invalid/other", &[9; 32]).expect("a good name");
    assert!(answer.audit.verify(other.public()).is_err(), "a proof of a log that signed nothing");
    true
}

fn command(bytes: &[u8]) -> bool {
    if !read::<SignedOwnerCommand>(bytes) {
        return false;
    }
    let Ok(signed) = SignedOwnerCommand::from_canonical(bytes) else { return false };
    let (owner, service) = (owner_public_key(&seeds::OWNER_KEY), Sha256Digest::of(b"service"));
    if let Ok(command) = signed.verified(&[owner], 1, &service) {
        assert_eq!(command, seeds::owner_command(), "a command that its owner did not sign");
    }
    true
}
