// SPDX-License-Identifier: Apache-2.0
//! What the attester answers once the guest serves.

use std::sync::{Arc, Mutex, PoisonError};

use attested_channel::{Leaf, Quoted, Receipt, ReportDataInputs, SignedReceipt, receipt::Unset};
use attester_protocol::{Failure, Identity, ServingAnswer, ServingRequest, serving::TLS_SCHEME};
use types::{Base64, Document as _, FreshnessKind, Hex32, ModelId, Role, Sha256Digest};

use crate::{
    Keys,
    batch::{Batches, Deliver, Queue},
    certificate,
    facts::Facts,
    keys::is_certificate_verify,
};

/// Keys, identity and the chain of receipts of a guest that serves. The quote device is not here: see [`Batches`].
pub(crate) struct Serving {
    keys: Keys,
    facts: Facts,
    certificate: Vec<u8>,
    evidence: Vec<u8>,
    evidence_digest: Sha256Digest,
    /// What this guest was launched as. A host that changes the quote on its way makes receipts that no verifier takes.
    launch: Sha256Digest,
    receipts: Arc<Receipts>,
    queue: Arc<Queue>,
}

impl Serving {
    /// `evidence` is the canonical document that holds `quote`.
    pub(crate) fn new<D>(
        device: D,
        keys: Keys,
        facts: Facts,
        inputs: ReportDataInputs,
        evidence: Vec<u8>,
        quote: Vec<u8>,
    ) -> Result<(Self, Batches<D>), Failure> {
        let evidence_digest = Sha256Digest::of(&evidence);
        let launch = Quoted::read(&quote).map_err(|_| Failure::Device)?.launch;
        let certificate = certificate::build(&keys, evidence_digest, quote)?;
        let (queue, receipts) = (Arc::new(Queue::default()), Arc::new(Receipts::default()));
        let batches = Batches {
            device,
            queue: Arc::clone(&queue),
            receipts: Arc::clone(&receipts),
            inputs,
            evidence: evidence_digest,
        };
        Ok((Self { keys, facts, certificate, evidence, evidence_digest, launch, receipts, queue }, batches))
    }

    /// Gives the answer to `deliver`: at once, or for a proof when its quote is made, by another thread.
    pub(crate) fn answer(
        &self,
        request: ServingRequest,
        deliver: impl FnOnce(Result<ServingAnswer, Failure>) + Send + 'static,
    ) {
        match request {
            ServingRequest::Identity {} => deliver(self.identity()),
            ServingRequest::SignTls { scheme, message } => deliver(self.sign_tls(scheme, message.as_slice())),
            ServingRequest::SignReceipt { request, response, prompt_tokens, completion_tokens, channel } => {
                let answer = ReceiptFields { request, response, prompt_tokens, completion_tokens, channel };
                deliver(self.sign_receipt(answer));
            }
            ServingRequest::Prove { kind, challenge, binding } => {
                let deliver: Deliver = Box::new(move |proof| {
                    deliver(proof.map(|proof| ServingAnswer::Proof { proof: Box::new(proof) }));
                });
                self.prove(kind, &challenge, &binding, deliver);
            }
        }
    }

    fn identity(&self) -> Result<ServingAnswer, Failure> {
        Ok(ServingAnswer::Identity(Box::new(Identity {
            certificates: vec![Base64::new(self.certificate.clone()).ok_or(Failure::TooLarge)?],
            evidence: Base64::new(self.evidence.clone()).ok_or(Failure::TooLarge)?,
            spki_sha256: self.keys.spki_sha256(),
            instance_key: self.keys.instance_key(),
            unix: self.facts.unix(),
        })))
    }

    fn sign_tls(&self, scheme: u16, message: &[u8]) -> Result<ServingAnswer, Failure> {
        if scheme != TLS_SCHEME {
            return Err(Failure::Scheme);
        }
        if !is_certificate_verify(message) {
            return Err(Failure::NotCertificateVerify);
        }
        let signature = Base64::new(self.keys.sign_tls(message).to_vec()).ok_or(Failure::Internal)?;
        Ok(ServingAnswer::TlsSignature { signature })
    }

    fn prove(&self, kind: FreshnessKind, challenge: &Hex32, binding: &Hex32, deliver: Deliver) {
        // `none` proves nothing, and a key release is not serve's to ask for (attack 67).
        if !matches!(kind, FreshnessKind::Tls | FreshnessKind::Hpke) {
            deliver(Err(Failure::Kind));
            return;
        }
        let (challenge, binding) = (*challenge.as_bytes(), *binding.as_bytes());
        self.queue.push(Leaf { kind, role: self.role(), challenge, binding }, deliver);
    }

    fn sign_receipt(&self, fields: ReceiptFields) -> Result<ServingAnswer, Failure> {
        let guest = OfGuest { model: self.model(), launch: self.launch, evidence: self.evidence_digest };
        let signed = self.receipts.sign(&self.keys, guest, fields)?;
        let receipt = signed.receipt.to_canonical().map_err(|_| Failure::TooLarge)?;
        Ok(ServingAnswer::Receipt {
            receipt: Base64::new(receipt).ok_or(Failure::TooLarge)?,
            signature: Base64::new(signed.signature.to_vec()).ok_or(Failure::Internal)?,
        })
    }

    fn role(&self) -> Role {
        self.facts.config().role.0
    }

    fn model(&self) -> &ModelId {
        &self.facts.config().model.0
    }
}

/// What every receipt says of this guest.
struct OfGuest<'a> {
    model: &'a ModelId,
    launch: Sha256Digest,
    evidence: Sha256Digest,
}

/// What serve says of one answer.
pub(crate) struct ReceiptFields {
    request: Sha256Digest,
    response: Sha256Digest,
    prompt_tokens: u64,
    completion_tokens: u64,
    channel: Sha256Digest,
}

/// The chain of receipts: number and hash of the newest.
#[derive(Default)]
pub(crate) struct Receipts(Mutex<Option<(u64, Sha256Digest)>>);

impl Receipts {
    /// Count and head as they stand in REPORTDATA; zero before the first.
    pub(crate) fn head(&self) -> (u64, Sha256Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or((0, Sha256Digest::ZERO))
    }

    /// Signs the next receipt. The chain moves on only with a receipt that was signed.
    fn sign(&self, keys: &Keys, guest: OfGuest<'_>, fields: ReceiptFields) -> Result<SignedReceipt, Failure> {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, previous) = newest.unwrap_or((0, Sha256Digest::ZERO));
        let OfGuest { model, launch, evidence } = guest;
        let ReceiptFields { request, response, prompt_tokens, completion_tokens, channel } = fields;
        let receipt = Receipt {
            schema: Receipt::SCHEMA.to_owned(),
            sequence,
            previous,
            request,
            response,
            model: model.clone(),
            launch,
            prompt_tokens,
            completion_tokens,
            price_unit: Unset,
            payment_channel: Unset,
            cumulative_amount: Unset,
            channel,
            evidence,
            instance_key: keys.instance_key(),
        };
        let head = receipt.digest().map_err(|_| Failure::TooLarge)?;
        let signed = SignedReceipt::sign(receipt, &keys.instance).map_err(|_| Failure::TooLarge)?;
        *newest = Some((sequence.checked_add(1).ok_or(Failure::TooLarge)?, head));
        Ok(signed)
    }
}
