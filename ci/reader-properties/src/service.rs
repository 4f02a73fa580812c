// SPDX-License-Identifier: Apache-2.0
//! What the attestation service reads from its peers, and they from it.

use key_release::{
    ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, OwnerCommand, ServiceKeys, SignedOwnerCommand, Token,
    TokenKey, owner_public_key,
};
use release::log::LogSigner;
use release_client::key_release_protocol::is_solution;
use types::{Document, Hex32, KeyReleaseEntry, Sha256Digest, Tenants, canonical};

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
        | service_keys(bytes)
        | tenants(bytes)
        | token(bytes)
}

/// What is read holds to the rules, and is its own canonical form.
fn tenants(bytes: &[u8]) -> bool {
    let model = seeds::model();
    let Ok(read) = Tenants::read(bytes, &model) else { return false };
    assert_eq!(Tenants::canonical_of(bytes, &model).as_deref(), Ok(bytes), "one spelling");
    let keys: Vec<_> = read.tenants.iter().flat_map(|tenant| &tenant.keys).collect();
    let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(keys.len(), distinct.len(), "a key of two tenants");
    true
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

/// The 56 bytes of a token, as a peer may send them: no key but its own makes it, and none after its end.
fn token(bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; Token::LEN]>::try_from(bytes) else { return false };
    let (token, key) = (Token::from_bytes(bytes), TokenKey::new(seeds::TOKEN_KEY));
    let (expires, nonce, _) = token.parts();
    let made = key.mint_asking(expires, token.work_bits(), nonce);
    assert_eq!(key.check(&token, 0).is_ok(), made == token && expires > 0, "a token that the key did not make");
    assert!(key.check(&token, expires).is_err(), "it ended");
    assert!(TokenKey::new([0; 32]).check(&token, 0).is_err(), "it is another key's");
    // A solution is counted bit by bit here.
    let number = u64::from_be_bytes(*bytes.first_chunk().expect("a token has more"));
    let parts = [b"chrysalis/work/v1".as_slice(), &bytes, &number.to_be_bytes()];
    let hash = Sha256Digest::of_parts(&parts);
    let zeros = (0..256).take_while(|bit| hash.as_bytes()[bit / 8] >> (7 - bit % 8) & 1 == 0).count();
    for bits in [0, 1, 2, 8, 255] {
        assert_eq!(is_solution(&token, bits, number), zeros >= usize::from(bits), "{zeros} zeros, {bits} asked for");
    }
    true
}

/// Keys that the pinned one signed are those of the seed.
fn service_keys(bytes: &[u8]) -> bool {
    if !read::<ServiceKeys>(bytes) {
        return false;
    }
    let Ok(keys) = ServiceKeys::from_canonical(bytes) else { return false };
    let (known, pin_of) = (seeds::service_keys(), |key: &Hex32| Sha256Digest::of(key.as_bytes()));
    if keys.are_of(&pin_of(&known.service_key), pin_of) {
        assert_eq!(keys, known, "keys that the service did not sign");
    }
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
