// SPDX-License-Identifier: Apache-2.0
//! What a transit service answered: bytes in, what they prove out. Fields that Vault adds (leases, warnings, the mount's
//! type) are its own business and are not read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use types::Sha256Digest;
use zeroize::{Zeroize as _, Zeroizing};

use crate::WrapError;

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: String,
}

/// The ciphertext of an answer to `encrypt`, 1 to [`MAX_WRAPPED`] bytes. What is in it only `decrypt` can show.
///
/// # Errors
/// [`WrapError::Unavailable`].
pub fn encrypted(body: &[u8]) -> Result<Vec<u8>, WrapError> {
    let Encrypted { ciphertext } = read(body)?;
    if ciphertext.is_empty() || ciphertext.len() > MAX_WRAPPED {
        return Err(WrapError::Unavailable("the transit service: its ciphertext has a wrong size".to_owned()));
    }
    Ok(ciphertext.into_bytes())
}

/// The secret of an answer to `decrypt`: what was bound to `context` when it was wrapped, and nothing else.
///
/// # Errors
/// [`WrapError::Open`] for anything that [`bound`] did not make, [`WrapError::Unavailable`] for another form.
pub fn decrypted(body: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
    let Decrypted { plaintext } = read(body)?;
    let text = Zeroizing::new(plaintext);
    let mut secret = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| WrapError::Open)?);
    let (kept, found) = secret.split_last_chunk::<32>().ok_or(WrapError::Open)?;
    if !bool::from(binding(kept, context).ct_eq(found)) {
        return Err(WrapError::Open);
    }
    let length = kept.len();
    if let Some(digest) = secret.get_mut(length..) {
        digest.zeroize();
    }
    secret.truncate(length);
    Ok(secret)
}

/// What is given to the service: the secret, and a digest over context and secret.
#[must_use]
pub fn bound(secret: &[u8], context: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([secret, binding(secret, context).as_slice()].concat())
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, WrapError> {
    let malformed = || WrapError::Unavailable("the transit service: its answer is malformed".to_owned());
    // Looked at as a whole: the reader passes over fields that it does not know, whatever bytes they have.
    let text = core::str::from_utf8(body).map_err(|_| malformed())?;
    let answer: Result<Answer<T>, _> = serde_json::from_str(text);
    answer.map(|answer| answer.data).map_err(|_| malformed())
}

/// Shows that a plaintext is the one of this context, whatever the service did with the associated data.
fn binding(secret: &[u8], context: &[u8]) -> [u8; 32] {
    let length = u64::try_from(context.len()).unwrap_or(u64::MAX).to_be_bytes();
    *Sha256Digest::of_parts(&[b"chrysalis/kek-binding/v1", &length, context, secret]).as_bytes()
}

/// Most bytes of a wrapped secret.
pub const MAX_WRAPPED: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_text_as_a_whole() {
        let plaintext = STANDARD.encode(bound(b"secret", b"context").as_slice());
        let body = |lease: &[u8]| {
            let head = format!(r#"{{"data":{{"plaintext":"{plaintext}"}},"lease_id":""#);
            [head.as_bytes(), lease, b"\"}"].concat()
        };
        assert_eq!(decrypted(&body(b"lease"), b"context").unwrap().as_slice(), b"secret");
        // No UTF-8, in a field that is passed over.
        assert!(matches!(decrypted(&body(b"\xf7\xf7"), b"context"), Err(WrapError::Unavailable(_))));
    }
}
