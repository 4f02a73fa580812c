// SPDX-License-Identifier: Apache-2.0
//! Commands of a model's owner: signed by the key that was set when the model was registered, for one service, in order.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use types::{Base64, CanonicalError, Document, Hex32, ModelId, Refusal, Sha256Digest, Tenants};

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
    /// The owner's policy accepts this release where it lists its predecessor.
    AdmitSuccessor(AdmitSuccessor),
    /// A new version of the model's key.
    ImportKey(ImportKey),
    /// Who may ask the model, from each guest's next start on.
    SetTenants(SetTenants),
}

/// The tenants of the model: guests get them with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTenants {
    /// Canonical `chrysalis/tenants/v1` for the command's model; with `null` the model has no tenants, and guests answer
    /// whoever has proven them to himself. It must be said: a command that was not finished opens no model.
    #[serde(deserialize_with = "Option::deserialize")]
    pub document: Option<Base64<{ Tenants::MAX_BYTES }>>,
}

/// A release that follows one that the owner's policy lists. Its own statement must name the same predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmitSuccessor {
    /// Listed in the owner's policy in force, or admitted to it before.
    pub predecessor: Sha256Digest,
    /// Counts as listed from now on.
    pub successor: Sha256Digest,
}

/// A version of the model's key, sealed to the service ([`ImportContext`](crate::ImportContext)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportKey {
    /// 1 or more. The newest version is the one that guests get.
    pub version: u32,
    /// HPKE's encapsulated key.
    pub enc: Hex32,
    /// The sealed key: 32 bytes and the tag.
    #[serde(with = "hex::serde")]
    pub ciphertext: [u8; 48],
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
    /// The same by further keys of the owner, at most [`MAX_COSIGNATURES`], where more than one must sign.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cosignatures: Vec<OwnerSignature>,
}

/// An Ed25519 signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSignature(
    /// Its bytes.
    #[serde(with = "hex::serde")]
    pub [u8; 64],
);

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
        let schema = SignedOwnerCommand::SCHEMA.to_owned();
        Ok(SignedOwnerCommand { schema, command, signature, cosignatures: Vec::new() })
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

    /// Adds the signature of another key of the owner.
    pub fn cosign(&mut self, key: &[u8; 32]) {
        let signature = SigningKey::from_bytes(key).sign(&signed_bytes(self.command.as_slice()));
        self.cosignatures.push(OwnerSignature(signature.to_bytes()));
    }

    /// The command, if `threshold` of `keys` signed it for the service with this pin. Each signature must be one of
    /// these keys', and no key counts twice. Its sequence is still to be compared.
    ///
    /// # Errors
    /// The refusal.
    pub fn verified(&self, keys: &[Hex32], threshold: u32, service: &Sha256Digest) -> Result<OwnerCommand, Refusal> {
        let cosignatures = self.cosignatures.iter().take(MAX_COSIGNATURES).map(|cosignature| &cosignature.0);
        let message = signed_bytes(self.command.as_slice());
        let mut unused: Vec<_> = keys.iter().filter_map(|key| VerifyingKey::from_bytes(key.as_bytes()).ok()).collect();
        let mut signed = 0_u32;
        for bytes in core::iter::once(&self.signature).chain(cosignatures) {
            let signature = Signature::from_bytes(bytes);
            let Some(place) = unused.iter().position(|key| key.verify_strict(&message, &signature).is_ok()) else {
                let fix = "sign it with the keys that were set when the model was registered, once with each";
                let detail = "it is not a signature of the owner, or its key signed twice";
                return Err(Refusal::new("owner_signature", "signature", detail, fix));
            };
            unused.swap_remove(place);
            signed = signed.saturating_add(1);
        }
        if signed < threshold.max(1) || self.cosignatures.len() > MAX_COSIGNATURES {
            let detail = format!("{threshold} keys of the owner must sign, {signed} did");
            let fix = "have another of the owner's keys sign it: `owner cosign`";
            return Err(Refusal::new("owner_quorum", "cosignatures", detail, fix));
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

/// Most signatures beside the first.
pub const MAX_COSIGNATURES: usize = 7;

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
        assert_eq!(signed.verified(&[owner], 1, &service).unwrap(), command());
        let code = |signed: &SignedOwnerCommand, owner: &Hex32, service: &Sha256Digest| {
            signed.verified(&[*owner], 1, service).unwrap_err().code
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
        let refused = signed.verified(&[owner_public_key(&key)], 1, &Sha256Digest::of(b"service")).unwrap_err();
        assert_eq!(refused.code, "owner_signature");
    }

    /// Two of three: each of distinct keys, none of a stranger, none twice.
    #[test]
    fn a_quorum_is_of_distinct_keys_of_the_owner() {
        let service = Sha256Digest::of(b"service");
        let keys: Vec<_> = (1..=3).map(|key| owner_public_key(&[key; 32])).collect();
        let signed = |by: &[u8]| {
            let mut signed = command().sign(&[by[0]; 32]).unwrap();
            by[1..].iter().for_each(|key| signed.cosign(&[*key; 32]));
            // As it goes over the wire.
            let bytes = signed.to_canonical().unwrap();
            let signed = SignedOwnerCommand::from_canonical(&bytes).unwrap();
            signed.verified(&keys, 2, &service).map(drop).map_err(|refusal| refusal.code)
        };
        for by in [[1, 2].as_slice(), &[3, 1], &[2, 3], &[3, 2, 1]] {
            assert_eq!(signed(by), Ok(()), "{by:?}");
        }
        for (by, code) in [
            ([1].as_slice(), "owner_quorum"),
            (&[1, 1], "owner_signature"),
            (&[1, 4], "owner_signature"),
            (&[4, 1, 2], "owner_signature"),
            (&[1, 2, 3, 3], "owner_signature"),
            (&[4], "owner_signature"),
        ] {
            assert_eq!(signed(by), Err(code.to_owned()), "{by:?}");
        }
        // A threshold of zero is none.
        let none = SignedOwnerCommand { signature: [0; 64], ..command().sign(&[1; 32]).unwrap() };
        assert_eq!(none.verified(&[], 0, &service).unwrap_err().code, "owner_signature");
    }

    #[test]
    fn documents_are_strict() {
        let bytes = command().to_canonical().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(r#""action":{"revoke":{}}"#), "{text}");
        for changed in [
            text.replace("{\"revoke\":{}}", "{\"revoke\":{\"x\":1}}"),
            text.replace("revoke", "release"),
            text.replace("{\"revoke\":{}}", "{\"set_tenants\":{\"tenants\":[]}}"),
            text.replace("{\"revoke\":{}}", "{\"set_tenants\":{}}"),
            text.replacen('{', "{\"a\":1,", 1),
        ] {
            assert!(changed != text && OwnerCommand::from_canonical(changed.as_bytes()).is_err(), "{changed}");
        }
    }

    #[test]
    fn that_a_model_has_no_tenants_is_said() {
        let none = OwnerCommand { action: OwnerAction::SetTenants(SetTenants { document: None }), ..command() };
        let bytes = none.to_canonical().unwrap();
        assert!(String::from_utf8(bytes.clone()).unwrap().contains("{\"set_tenants\":{\"document\":null}}"));
        assert_eq!(OwnerCommand::from_canonical(&bytes), Ok(none));
    }

    /// The largest documents fit into the messages that hold them.
    #[test]
    fn the_largest_document_of_tenants_can_be_commanded() {
        let document = Base64::new(vec![b' '; Tenants::MAX_BYTES]);
        let largest = OwnerCommand { action: OwnerAction::SetTenants(SetTenants { document }), ..command() };
        let signed = largest.sign(&[1; 32]).unwrap();
        assert!(SignedOwnerCommand::from_canonical(&signed.to_canonical().unwrap()).is_ok());
        assert_eq!(signed.unverified(), Ok(largest));
    }
}
