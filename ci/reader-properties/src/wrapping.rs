// SPDX-License-Identifier: Apache-2.0
//! What a transit service answers, and the texts that name key-wrapping keys.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use key_wrap::{KekSource, transit_answer as answer};
use serde_json::Value;

/// `e` and an answer to encrypt, `d` one to decrypt, `s` and the name of a key.
pub fn wrapping(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'e', body)) => encrypted(body),
        Some((b'd', body)) => decrypted(body),
        Some((b's', text)) => core::str::from_utf8(text).is_ok_and(source),
        _ => false,
    }
}

fn encrypted(body: &[u8]) -> bool {
    let Ok(wrapped) = answer::encrypted(body) else { return false };
    assert!((1..=answer::MAX_WRAPPED).contains(&wrapped.len()), "a ciphertext of another size");
    if let Some(written) = written(body) {
        let text = written["data"]["ciphertext"].as_str().map(str::as_bytes);
        assert_eq!(text, Some(wrapped.as_slice()), "another text");
    }
    true
}

/// A secret comes out only with the digest that binds it to the context, and in no other context.
fn decrypted(body: &[u8]) -> bool {
    let Ok(secret) = answer::decrypted(body, CONTEXT) else { return false };
    assert!(answer::decrypted(body, b"another context").is_err(), "it opens in another context");
    let bound = STANDARD.encode(answer::bound(&secret, CONTEXT).as_slice());
    if let Some(written) = written(body) {
        assert_eq!(written["data"]["plaintext"].as_str(), Some(bound.as_str()), "a secret that is not bound");
    }
    true
}

/// An answer as a tree. Numbers beyond a double and nesting beyond the tree's depth, in fields that are passed over, are
/// JSON, too.
fn written(body: &[u8]) -> Option<Value> {
    let text = core::str::from_utf8(body).expect("an answer is text");
    serde_json::from_str(text).ok()
}

/// Names of keys send nothing in the clear over a network, and carry no secret.
fn source(text: &str) -> bool {
    let Ok(source) = text.parse::<KekSource>() else { return false };
    match source {
        KekSource::File(path) => assert!(!path.as_os_str().is_empty() && text.starts_with("file:")),
        KekSource::Pkcs11(_) => {
            assert!(text.starts_with("pkcs11:") && text.contains("module-path=") && !text.contains("pin-value="));
        }
        KekSource::Transit(_) => {
            let rest = text.strip_prefix("transit:").expect("the kind stands first");
            let local = rest.starts_with("http://127.0.0.1:") || rest.starts_with("http://[::1]:");
            assert!(local || rest.starts_with("https://"), "a token would go over the network in the clear");
            let address = rest.split('?').next().unwrap_or_default();
            assert!(!address.contains(['@', '%', ' ']) && !address.contains("/../"), "an address with more in it");
        }
    }
    true
}

/// Under which the seed was bound.
pub(crate) const CONTEXT: &[u8] = b"chrysalis/fuzz/v1";
