// SPDX-License-Identifier: Apache-2.0
//! Receipts: what the guest signs about one answer. They form a hash chain whose head stands in later evidence.
//!
//! A receipt proves that the holder of the instance key says so. That this key lives in an accepted guest is
//! proven by evidence, and that request and answer are the reader's own by the salt, which only the client has.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use types::{CanonicalError, Document, Hex32, ModelId, Refusal, Sha256Digest, canonical};

/// The signed content (`chrysalis/receipt/v2`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// `chrysalis/receipt/v2`.
    pub schema: String,
    /// How many receipts this guest signed before: 0 for the first.
    pub sequence: u64,
    /// [`Receipt::digest`](Document::digest) of the receipt before, zero for the first.
    pub previous: Sha256Digest,
    /// [`salted`] hash of the request's body.
    pub request: Sha256Digest,
    /// [`salted`] hash of the answer: [`response_bytes`].
    pub response: Sha256Digest,
    /// The model that answered.
    pub model: ModelId,
    /// What was launched: [`launch_digest`](crate::launch_digest) of the guest's MRTD and RTMR0 to RTMR2. The guest
    /// cannot know the digest of the release that it was built from: that digest covers these registers. Which release
    /// explains them is for a verifier to find.
    pub launch: Sha256Digest,
    /// Tokens of the rendered conversation.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// In what is paid.
    pub price_unit: Unset,
    /// The payment channel, which is no connection.
    pub payment_channel: Unset,
    /// What is owed on the payment channel up to and with this answer.
    pub cumulative_amount: Unset,
    /// SHA-256 of the exporter binding of the connection's newest proof.
    pub channel: Sha256Digest,
    /// Address of the guest's evidence document.
    pub evidence: Sha256Digest,
    /// The Ed25519 key that signs.
    pub instance_key: Hex32,
}

impl Document for Receipt {
    const SCHEMA: &'static str = "chrysalis/receipt/v2";
    const MAX_BYTES: usize = 4 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

/// A field of settlement, which does not exist yet: it is `null`, and nothing else is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unset;

/// A receipt and its signature, as `GET /v1/receipts/{id}` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// What is signed.
    pub receipt: Receipt,
    /// Ed25519 over [`signed_bytes`].
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

/// A receipt as the client gets it with the answer. The salt is for the client alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeliveredReceipt {
    /// What is signed.
    pub receipt: Receipt,
    /// Makes the hashes of request and answer meaningless to everybody else.
    pub salt: Hex32,
    /// Ed25519 over [`signed_bytes`].
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl SignedReceipt {
    /// Signs a receipt.
    ///
    /// # Errors
    /// [`CanonicalError`] when a number in it is too large.
    pub fn sign(receipt: Receipt, key: &SigningKey) -> Result<Self, CanonicalError> {
        let signature = key.sign(&signed_bytes(&receipt)?).to_bytes();
        Ok(Self { receipt, signature })
    }

    /// Checks the signature by the instance key that the receipt names. That this key belongs to an accepted guest
    /// is for the caller to check.
    ///
    /// # Errors
    /// [`ReceiptError`] names the rule.
    pub fn verify_signature(&self) -> Result<(), ReceiptError> {
        if self.receipt.schema != Receipt::SCHEMA {
            return Err(ReceiptError::Malformed(CanonicalError::Schema { expected: Receipt::SCHEMA }));
        }
        let key = VerifyingKey::from_bytes(self.receipt.instance_key.as_bytes())
            .map_err(|_| ReceiptError::InstanceKey { rule: "not a point of Ed25519" })?;
        let message = signed_bytes(&self.receipt)?;
        key.verify_strict(&message, &Signature::from_bytes(&self.signature)).map_err(|_| ReceiptError::Signature)
    }

    /// Checks that this receipt follows directly after `earlier`. Both signatures must have been verified.
    ///
    /// # Errors
    /// [`ReceiptError::Chain`].
    pub fn verify_follows(&self, earlier: &Receipt) -> Result<(), ReceiptError> {
        let next = earlier.sequence.checked_add(1).ok_or(ReceiptError::Chain)?;
        let linked = self.receipt.sequence == next
            && self.receipt.previous == earlier.digest()?
            && self.receipt.instance_key == earlier.instance_key;
        if linked { Ok(()) } else { Err(ReceiptError::Chain) }
    }

    /// The canonical bytes.
    ///
    /// # Errors
    /// [`CanonicalError`] when a number in it is too large.
    pub fn to_canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::to_bytes(self)
    }

    /// Reads a receipt from exactly its canonical bytes.
    ///
    /// # Errors
    /// [`ReceiptError::Malformed`].
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, ReceiptError> {
        Ok(canonical::from_bytes(bytes, MAX_RECEIPT)?)
    }
}

impl DeliveredReceipt {
    /// Adds the salt for the client.
    #[must_use]
    pub fn new(signed: SignedReceipt, salt: Hex32) -> Self {
        let SignedReceipt { receipt, signature } = signed;
        Self { receipt, salt, signature }
    }

    /// The receipt without the salt.
    #[must_use]
    pub fn signed(&self) -> SignedReceipt {
        SignedReceipt { receipt: self.receipt.clone(), signature: self.signature }
    }

    /// Checks that the receipt speaks of exactly this request and this answer: its text where it is one text, else its
    /// [`response_bytes`].
    ///
    /// # Errors
    /// [`ReceiptError::Request`] or [`ReceiptError::Response`].
    pub fn verify_content(&self, request_body: &[u8], response: impl AsRef<[u8]>) -> Result<(), ReceiptError> {
        if salted(&self.salt, request_body) != self.receipt.request {
            return Err(ReceiptError::Request);
        }
        if salted(&self.salt, response.as_ref()) != self.receipt.response {
            return Err(ReceiptError::Response);
        }
        Ok(())
    }

    /// The canonical bytes.
    ///
    /// # Errors
    /// [`CanonicalError`] when a number in it is too large.
    pub fn to_canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::to_bytes(self)
    }

    /// Reads a receipt from exactly its canonical bytes.
    ///
    /// # Errors
    /// [`ReceiptError::Malformed`].
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, ReceiptError> {
        Ok(canonical::from_bytes(bytes, MAX_RECEIPT)?)
    }
}

/// One of the choices of an answer, as the client sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidChoice {
    /// The text. None where there are calls alone.
    pub content: Option<String>,
    /// Why it ended, in OpenAI's words.
    pub finish_reason: String,
    /// Tools to call.
    pub tool_calls: Vec<SaidCall>,
}

/// A call of a tool.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidCall {
    /// JSON, as a text.
    pub arguments: String,
    /// Names the call.
    pub id: String,
    /// Names the tool.
    pub name: String,
}

impl std::fmt::Debug for SaidChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.content.as_ref().map_or(0, String::len);
        write!(f, "SaidChoice({bytes} bytes, {} calls)", self.tool_calls.len())
    }
}

impl std::fmt::Debug for SaidCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SaidCall")
    }
}

/// What the hash of vectors covers: the byte 0xFE, which stands in no UTF-8 text and begins no other answer, how many
/// vectors there are and how many values each has (u32, big endian), then the values in order (32-bit IEEE 754, little
/// endian). `None` where there are none, or they differ in length.
pub fn embedding_bytes(vectors: &[impl AsRef<[f32]>]) -> Option<Vec<u8>> {
    let length = vectors.first()?.as_ref().len();
    let head = [u32::try_from(vectors.len()).ok()?, u32::try_from(length).ok()?];
    let mut bytes = vec![0xFE];
    bytes.extend(head.iter().flat_map(|number| number.to_be_bytes()));
    for vector in vectors {
        let values = vector.as_ref();
        if values.len() != length || values.is_empty() {
            return None;
        }
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    Some(bytes)
}

/// What the hash of an answer covers. One choice that calls no tool: its text in UTF-8. Everything else: the byte 0xFF,
/// which no text has, and the canonical JSON `{"choices":[…]}` of all choices in the order of their index. So no text
/// that a model can write is taken for several choices or for a call.
///
/// # Errors
/// [`CanonicalError`] when it has no canonical form.
pub fn response_bytes(choices: &[SaidChoice]) -> Result<Vec<u8>, CanonicalError> {
    #[derive(Serialize)]
    struct All<'a> {
        choices: &'a [SaidChoice],
    }
    match choices {
        [SaidChoice { content, tool_calls, .. }] if tool_calls.is_empty() => {
            Ok(content.as_deref().unwrap_or_default().as_bytes().to_vec())
        }
        _ => Ok([&[SEVERAL][..], &canonical::to_bytes(&All { choices })?].concat()),
    }
}

/// SHA-256(salt ‖ content).
#[must_use]
pub fn salted(salt: &Hex32, content: &[u8]) -> Sha256Digest {
    Sha256Digest::of_parts(&[salt.as_bytes(), content])
}

/// What the instance key signs: "chrysalis/receipt/v2" ‖ canonical receipt.
///
/// # Errors
/// [`CanonicalError`] when a number in it is too large.
pub fn signed_bytes(receipt: &Receipt) -> Result<Vec<u8>, CanonicalError> {
    Ok([SIGNATURE_LABEL, &receipt.to_canonical()?].concat())
}

/// What a receipt names of the connection: SHA-256 of the exporter binding.
#[must_use]
pub fn channel_id(binding: &[u8; 32]) -> Sha256Digest {
    Sha256Digest::of(binding)
}

/// Why a receipt was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not the canonical form of a receipt.
    #[error("the receipt is malformed: {0}")]
    Malformed(#[from] CanonicalError),
    /// The instance key is no usable key.
    #[error("the receipt's instance key is {rule}")]
    InstanceKey {
        /// What is wrong.
        rule: &'static str,
    },
    /// The signature is not by the instance key over this receipt.
    #[error("the signature is not by the receipt's instance key over this receipt")]
    Signature,
    /// Speaks of another request.
    #[error("the receipt's request hash is not that of this request")]
    Request,
    /// Speaks of another answer.
    #[error("the receipt's response hash is not that of this answer")]
    Response,
    /// Does not follow after the receipt before.
    #[error("the receipt does not follow directly after the receipt before")]
    Chain,
}

impl ReceiptError {
    /// The refusal that a user sees.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Malformed(_) => ("receipt_malformed", "receipt", "use the receipt's bytes as they were delivered"),
            Self::InstanceKey { .. } => ("receipt_instance_key", "receipt.instance_key", NO_FIX),
            Self::Signature => ("receipt_signature", "signature", NO_FIX),
            Self::Request => ("receipt_request_mismatch", "receipt.request", NO_FIX),
            Self::Response => ("receipt_response_mismatch", "receipt.response", NO_FIX),
            Self::Chain => ("receipt_chain_broken", "receipt.previous", "ask the guest for the missing receipts"),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

/// Most bytes of a receipt with salt and signature.
pub const MAX_RECEIPT: usize = 6 * 1024;

const SIGNATURE_LABEL: &[u8] = b"chrysalis/receipt/v2";
/// Stands before what is more than a text.
const SEVERAL: u8 = 0xff;
const NO_FIX: &str = "do not rely on this receipt: ask again and keep both";

#[cfg(test)]
mod tests {
    use types::Blake3Digest;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn salt() -> Hex32 {
        Hex32::new([5; 32])
    }

    fn receipt(sequence: u64, previous: Sha256Digest) -> SignedReceipt {
        let receipt = Receipt {
            schema: Receipt::SCHEMA.into(),
            sequence,
            previous,
            request: salted(&salt(), b"{}"),
            response: salted(&salt(), b"answer"),
            model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
            launch: Sha256Digest::of(b"launch"),
            prompt_tokens: 3,
            completion_tokens: 4,
            price_unit: Unset,
            payment_channel: Unset,
            cumulative_amount: Unset,
            channel: channel_id(&[1; 32]),
            evidence: Sha256Digest::of(b"evidence"),
            instance_key: Hex32::new(key().verifying_key().to_bytes()),
        };
        SignedReceipt::sign(receipt, &key()).unwrap()
    }

    #[test]
    fn a_receipt_survives_its_wire_form_and_verifies() {
        let delivered = DeliveredReceipt::new(receipt(0, Sha256Digest::ZERO), salt());
        let read = DeliveredReceipt::from_canonical(&delivered.to_canonical().unwrap()).unwrap();
        assert_eq!(read, delivered);
        assert_eq!(read.signed().verify_signature(), Ok(()));
        assert_eq!(read.verify_content(b"{}", "answer"), Ok(()));
        assert_eq!(read.verify_content(b"{} ", "answer"), Err(ReceiptError::Request));
        assert_eq!(read.verify_content(b"{}", "answers"), Err(ReceiptError::Response));
    }

    #[test]
    fn a_text_is_covered_as_it_is_and_cannot_look_like_more() {
        let said = |content: Option<&str>, calls: Vec<SaidCall>| SaidChoice {
            content: content.map(str::to_owned),
            finish_reason: "stop".into(),
            tool_calls: calls,
        };
        assert_eq!(response_bytes(&[said(Some("answer"), vec![])]).unwrap(), b"answer");
        assert_eq!(response_bytes(&[said(None, vec![])]).unwrap(), b"");
        let two = response_bytes(&[said(Some("a"), vec![]), said(Some("b"), vec![])]).unwrap();
        assert_eq!(
            two,
            [
                b"\xff".as_slice(),
                br#"{"choices":[{"content":"a","finish_reason":"stop","tool_calls":[]},{"content":"b","finish_reason":"stop","tool_calls":[]}]}"#
            ]
            .concat()
        );
        assert!(std::str::from_utf8(&two).is_err());
        let call = SaidCall { arguments: "{}".into(), id: "call_1".into(), name: "f".into() };
        let calls = response_bytes(&[said(None, vec![call])]).unwrap();
        assert!(calls.ends_with(
            br#"{"choices":[{"content":null,"finish_reason":"stop","tool_calls":[{"arguments":"{}","id":"call_1","name":"f"}]}]}"#
        ));
    }

    #[test]
    fn every_changed_field_breaks_the_signature() {
        let changes: [fn(&mut Receipt); 11] = [
            |r| r.sequence = 1,
            |r| r.previous = Sha256Digest::of(b"x"),
            |r| r.request = Sha256Digest::ZERO,
            |r| r.response = Sha256Digest::ZERO,
            |r| r.model = ModelId::new("m", "2", Blake3Digest::of(b"m")).unwrap(),
            |r| r.launch = Sha256Digest::ZERO,
            |r| r.prompt_tokens = 0,
            |r| r.completion_tokens = 0,
            |r| r.channel = Sha256Digest::ZERO,
            |r| r.evidence = Sha256Digest::ZERO,
            |r| r.instance_key = Hex32::new(SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes()),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut tampered = receipt(0, Sha256Digest::ZERO);
            change(&mut tampered.receipt);
            assert_eq!(tampered.verify_signature(), Err(ReceiptError::Signature), "change {index}");
        }
        let mut schema = receipt(0, Sha256Digest::ZERO);
        schema.receipt.schema.push('2');
        assert!(matches!(schema.verify_signature(), Err(ReceiptError::Malformed(_))));
    }

    /// What no settlement gives a meaning is not read, and not left out either.
    #[test]
    fn fields_of_settlement_are_null() {
        let text = String::from_utf8(receipt(0, Sha256Digest::ZERO).to_canonical().unwrap()).unwrap();
        for field in ["cumulative_amount", "payment_channel", "price_unit"] {
            let null = format!("\"{field}\":null,");
            assert!(text.contains(&null), "{text}");
            let zero = format!("\"{field}\":0,");
            for changed in [text.replace(&null, &zero), text.replace(&null, "")] {
                let read = SignedReceipt::from_canonical(changed.as_bytes());
                assert!(matches!(read, Err(ReceiptError::Malformed(_))), "{changed}");
            }
        }
    }

    #[test]
    fn the_chain_has_no_gaps_and_no_other_signer() {
        let first = receipt(0, Sha256Digest::ZERO);
        let digest = first.receipt.digest().unwrap();
        assert_eq!(receipt(1, digest).verify_follows(&first.receipt), Ok(()));
        for other in [receipt(2, digest), receipt(1, Sha256Digest::ZERO), receipt(0, digest)] {
            assert_eq!(other.verify_follows(&first.receipt), Err(ReceiptError::Chain));
        }
        let mut foreign = receipt(1, digest);
        foreign.receipt.instance_key = Hex32::default();
        assert_eq!(foreign.verify_follows(&first.receipt), Err(ReceiptError::Chain));
    }
}
