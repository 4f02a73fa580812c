// SPDX-License-Identifier: Apache-2.0
//! Commands of a model's owner: signed by the key that was set when the model was registered, for one service, in order.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use types::{Base64, CanonicalError, Document, Hex32, ModelId, Refusal, Sha256Digest};

/// What the owner of a model demands (`chrysalis/owner-command/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerCommand {
    /// `chrysalis/owner-command/v1`.
    pub schema: String,
    /// The service that it is for, by the pin of its key: another service refuses it.
    pub service: Sha256Digest,
    /// The model.
    pub model: ModelId,
    /// Higher than in every command before, so that none can be sent again.
    pub sequence: u64,
    /// What to do.
    pub action: OwnerAction,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OwnerAction {
    /// Only guests that this policy (`chrysalis/appraisal-policy/v1`) accepts, too, get the model's key from now on.
    SetPolicy(Base64<{ appraise::MAX_POLICY_LEN }>),
    /// Nobody gets the model's key any more, for good.
    Revoke(Revoke),
}

/// Has no fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {}

/// A command as it is sent (`chrysalis/signed-owner-command/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOwnerCommand {
    /// `chrysalis/signed-owner-command/v1`.
    pub schema: String,
    /// The command's canonical bytes.
    pub command: Base64<{ OwnerCommand::MAX_BYTES }>,
    /// Ed25519 by the owner's key over "chrysalis/owner-command/v1" ‖ the command's bytes.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl Document for OwnerCommand {
    const SCHEMA: &'static str = "chrysalis/owner-command/v1";
    const MAX_BYTES: usize = 2 * appraise::MAX_POLICY_LEN;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Document for SignedOwnerCommand {
    const SCHEMA: &'static str = "chrysalis/signed-owner-command/v1";
    const MAX_BYTES: usize = 2 * OwnerCommand::MAX_BYTES;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl OwnerCommand {
    /// Signs it with the 32 bytes of the owner's private key.
    ///
    /// # Errors
    /// [`CanonicalError`] when it is too large.
    pub fn sign(&self, key: &[u8; 32]) -> Result<SignedOwnerCommand, CanonicalError> {
        let bytes = self.to_canonical()?;
        let signature = SigningKey::from_bytes(key).sign(&signed_bytes(&bytes)).to_bytes();
        let found = bytes.len();
        let command = Base64::new(bytes).ok_or(CanonicalError::TooLarge { max: Self::MAX_BYTES, found })?;
        Ok(SignedOwnerCommand { schema: SignedOwnerCommand::SCHEMA.to_owned(), command, signature })
    }
}

impl SignedOwnerCommand {
    /// The command as somebody wrote it: **nothing is verified**. To find out whose key it has to be.
    ///
    /// # Errors
    /// [`CanonicalError`].
    pub fn unverified(&self) -> Result<OwnerCommand, CanonicalError> {
        OwnerCommand::from_canonical(self.command.as_slice())
    }

    /// The command, if `owner` signed it for the service with this pin. Its sequence is still to be compared.
    ///
    /// # Errors
    /// The refusal.
    pub fn verified(&self, owner: &Hex32, service: &Sha256Digest) -> Result<OwnerCommand, Refusal> {
        let signature = Signature::from_bytes(&self.signature);
        let signed = VerifyingKey::from_bytes(owner.as_bytes())
            .is_ok_and(|key| key.verify_strict(&signed_bytes(self.command.as_slice()), &signature).is_ok());
        if !signed {
            let fix = "sign it with the key that was set when the model was registered";
            return Err(Refusal::new("owner_signature", "signature", "it is not the owner's signature", fix));
        }
        let malformed = |e: CanonicalError| {
            Refusal::new("request_malformed", "command", e.to_string(), "send what the protocol's page says")
        };
        let command = self.unverified().map_err(malformed)?;
        if command.service != *service {
            let detail = format!("it is for the service {}, this is {service}", command.service);
            return Err(Refusal::new("owner_service", "command.service", detail, "sign it for this service"));
        }
        Ok(command)
    }
}

fn signed_bytes(command: &[u8]) -> Vec<u8> {
    [OwnerCommand::SCHEMA.as_bytes(), command].concat()
}

/// The public half of an owner's private key.
#[must_use]
pub fn owner_public_key(key: &[u8; 32]) -> Hex32 {
    Hex32::new(SigningKey::from_bytes(key).verifying_key().to_bytes())
}

#[cfg(test)]
mod tests {
    use types::Blake3Digest;

    use super::*;

    fn command() -> OwnerCommand {
        OwnerCommand {
            schema: OwnerCommand::SCHEMA.into(),
            service: Sha256Digest::of(b"service"),
            model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
            sequence: 1,
            action: OwnerAction::Revoke(Revoke {}),
        }
    }

    #[test]
    fn only_the_owner_commands_and_only_this_service() {
        let (key, service) = ([1; 32], Sha256Digest::of(b"service"));
        let owner = owner_public_key(&key);
        let signed = command().sign(&key).unwrap();
        assert_eq!(signed.verified(&owner, &service).unwrap(), command());
        let code = |signed: &SignedOwnerCommand, owner: &Hex32, service: &Sha256Digest| {
            signed.verified(owner, service).unwrap_err().code
        };
        assert_eq!(code(&signed, &owner_public_key(&[2; 32]), &service), "owner_signature");
        assert_eq!(code(&signed, &Hex32::new([0; 32]), &service), "owner_signature");
        assert_eq!(code(&signed, &owner, &Sha256Digest::of(b"other")), "owner_service");
        // Every byte of the command is signed, and every bit of the signature counts.
        for at in 0..signed.command.as_slice().len() {
            let mut bytes = signed.command.as_slice().to_vec();
            bytes[at] ^= 1;
            let changed = SignedOwnerCommand { command: Base64::new(bytes).unwrap(), ..signed.clone() };
            assert_eq!(code(&changed, &owner, &service), "owner_signature");
        }
        for bit in 0..512 {
            let mut changed = signed.clone();
            changed.signature[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(&changed, &owner, &service), "owner_signature", "bit {bit}");
        }
    }

    /// A signature over the bytes alone, as for another purpose, is none over a command.
    #[test]
    fn the_label_is_signed() {
        let key = [1; 32];
        let mut signed = command().sign(&key).unwrap();
        signed.signature = SigningKey::from_bytes(&key).sign(signed.command.as_slice()).to_bytes();
        let refused = signed.verified(&owner_public_key(&key), &Sha256Digest::of(b"service")).unwrap_err();
        assert_eq!(refused.code, "owner_signature");
    }

    #[test]
    fn documents_are_strict() {
        let bytes = command().to_canonical().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(r#""action":{"revoke":{}}"#), "{text}");
        for changed in [
            text.replace("{\"revoke\":{}}", "{\"revoke\":{\"x\":1}}"),
            text.replace("revoke", "release"),
            text.replacen('{', "{\"a\":1,", 1),
        ] {
            assert!(changed != text && OwnerCommand::from_canonical(changed.as_bytes()).is_err(), "{changed}");
        }
    }
}
