// SPDX-License-Identifier: Apache-2.0
//! The key that signs results.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use types::Hex32;
use zeroize::Zeroizing;

use crate::{
    AttestationResult,
    token::{Header, TokenError},
};

/// An Ed25519 key that signs results and nothing else. Zeroized when dropped.
///
/// It is derived from the service's identity, so that it needs no place of its own and all replicas have the same; whoever
/// has it learns nothing of the identity. What it signs can be taken for nothing that the identity signs.
pub struct ResultKey(SigningKey);

impl core::fmt::Debug for ResultKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ResultKey({})", self.public())
    }
}

impl ResultKey {
    /// HKDF-SHA256 of the identity's private key, info [`INFO`].
    #[must_use]
    pub fn derive(identity: &[u8; 32]) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        // One block is never too long for HKDF.
        let _ = Hkdf::<Sha256>::new(None, identity).expand(INFO, seed.as_mut_slice());
        Self(SigningKey::from_bytes(&seed))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Hex32 {
        Hex32::new(self.0.verifying_key().to_bytes())
    }

    /// Signs a result as a JWT in compact form.
    ///
    /// # Errors
    /// [`TokenError::TooLarge`].
    pub fn sign(&self, result: &AttestationResult) -> Result<String, TokenError> {
        let header = Header::new(key_id(&self.public()));
        let encode = |value: Result<Vec<u8>, serde_json::Error>| {
            value.map(|bytes| URL_SAFE_NO_PAD.encode(bytes)).map_err(|error| TokenError::Claims(error.to_string()))
        };
        let signed = format!("{}.{}", encode(serde_json::to_vec(&header))?, encode(serde_json::to_vec(result))?);
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()).to_bytes());
        let token = format!("{signed}.{signature}");
        if token.len() > crate::MAX_TOKEN { Err(TokenError::TooLarge(token.len())) } else { Ok(token) }
    }
}

/// Name of a key: its thumbprint (RFC 7638).
pub(crate) fn key_id(key: &Hex32) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.as_bytes());
    let members = format!("{{\"crv\":\"Ed25519\",\"kty\":\"OKP\",\"x\":\"{x}\"}}");
    URL_SAFE_NO_PAD.encode(Sha256::digest(members.as_bytes()))
}

const INFO: &[u8] = b"chrysalis/ear-key/v1";

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, appendix A.3.
    #[test]
    fn the_name_is_the_thumbprint() {
        let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        let key = Hex32::new(x.try_into().unwrap());
        assert_eq!(key_id(&key), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn it_is_neither_the_identity_nor_another_services() {
        let key = ResultKey::derive(&[1; 32]);
        assert_eq!(key.public(), ResultKey::derive(&[1; 32]).public());
        assert_ne!(key.public(), ResultKey::derive(&[2; 32]).public());
        assert_ne!(key.public().as_bytes(), SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes());
    }
}
