// SPDX-License-Identifier: Apache-2.0
//! What the attester answers once the guest serves.

use std::sync::{Arc, Mutex, PoisonError};

use attested_channel::{Leaf, Receipt, SignedReceipt, receipt::Unset};
use attester_protocol::{Failure, ServingAnswer, ServingRequest, TlsSide, serving::TLS_SCHEME};
use ed25519_dalek::SigningKey;
use tee::QuoteDevice;
use types::{Base64, Document as _, FreshnessKind, Hex32, ModelId, RuntimeEvent, Sha256Digest};

use crate::{
    Keys, Renewal,
    batch::{Batches, Challenge, Deliver, Queue},
    facts::Facts,
    generations::{Generation, Generations, Hold},
    keys::is_certificate_verify,
};

/// Keys and the chain of receipts of a guest that serves. The quote device is not here: see [`Batches`].
pub(crate) struct Serving {
    instance: SigningKey,
    /// What this guest was launched as. A host that changes the quote on its way makes receipts that no verifier takes.
    launch: Sha256Digest,
    facts: Arc<Facts>,
    generations: Arc<Generations>,
    receipts: Arc<Receipts>,
    queue: Arc<Queue>,
}

impl Serving {
    /// `events` are those of the whole boot.
    pub(crate) fn new<D: QuoteDevice>(
        mut device: D,
        keys: Keys,
        facts: Facts,
        events: Vec<RuntimeEvent>,
        renewal: Renewal,
    ) -> Result<(Self, Batches<D>), Failure> {
        let instance_key = keys.instance_key();
        let Keys { instance, tls } = keys;
        let receipts = Arc::new(Receipts::default());
        let first = Generation::new(&mut device, &facts, &events, tls, instance_key, receipts.head())?;
        let launch = first.launch;
        let facts = Arc::new(facts);
        let generations = Arc::new(Generations::new(Arc::clone(&facts), first));
        let Renewal { every, queue } = renewal;
        let batches = Batches {
            device,
            queue: Arc::clone(&queue),
            receipts: Arc::clone(&receipts),
            generations: Arc::clone(&generations),
            facts: Arc::clone(&facts),
            events,
            instance_key,
            every,
        };
        Ok((Self { instance, launch, facts, generations, receipts, queue }, batches))
    }

    /// Gives the answer to `deliver`: at once, or when its quote is made or a key was renewed, by another thread. `held` lives
    /// as long as the connection.
    pub(crate) fn answer(
        &self,
        request: ServingRequest,
        held: &mut Vec<Hold>,
        deliver: impl FnOnce(Result<ServingAnswer, Failure>) + Send + 'static,
    ) {
        match request {
            ServingRequest::Identity {} => deliver(self.generations.identity()),
            ServingRequest::Successor { key } => self.generations.tell_successor(key, Box::new(deliver)),
            ServingRequest::Hold { key } => deliver(self.hold(&key, held)),
            ServingRequest::Retire { key } => deliver(self.generations.retire(&key)),
            ServingRequest::SignTls { key, side, scheme, message } => {
                deliver(self.sign_tls(&key, side, scheme, message.as_slice()));
            }
            ServingRequest::SignReceipt { evidence, request, response, prompt_tokens, completion_tokens, channel } => {
                let answer = ReceiptFields { evidence, request, response, prompt_tokens, completion_tokens, channel };
                deliver(self.sign_receipt(answer));
            }
            ServingRequest::Prove { key, kind, challenge, binding } => {
                let deliver: Deliver = Box::new(move |proof| {
                    deliver(proof.map(|proof| ServingAnswer::Proof { proof: Box::new(proof) }));
                });
                self.prove(&key, kind, &challenge, &binding, deliver);
            }
        }
    }

    fn hold(&self, key: &Sha256Digest, held: &mut Vec<Hold>) -> Result<ServingAnswer, Failure> {
        if held.len() >= MAX_HELD {
            return Err(Failure::Busy);
        }
        held.push(self.generations.hold(key)?);
        Ok(ServingAnswer::Held {})
    }

    fn sign_tls(
        &self,
        key: &Sha256Digest,
        side: TlsSide,
        scheme: u16,
        message: &[u8],
    ) -> Result<ServingAnswer, Failure> {
        if scheme != TLS_SCHEME {
            return Err(Failure::Scheme);
        }
        if !is_certificate_verify(side, message) {
            return Err(Failure::NotCertificateVerify);
        }
        let signature = Base64::new(self.generations.sign(key, message)?.to_vec()).ok_or(Failure::Internal)?;
        Ok(ServingAnswer::TlsSignature { signature })
    }

    fn prove(&self, key: &Sha256Digest, kind: FreshnessKind, challenge: &Hex32, binding: &Hex32, deliver: Deliver) {
        // `none` proves nothing, and a key release is not serve's to ask for (attack 67).
        if !matches!(kind, FreshnessKind::Tls | FreshnessKind::TlsClient | FreshnessKind::Hpke) {
            deliver(Err(Failure::Kind));
            return;
        }
        let shown = match self.generations.shown(key) {
            Ok(shown) => shown,
            Err(failure) => return deliver(Err(failure)),
        };
        let (challenge, binding) = (*challenge.as_bytes(), *binding.as_bytes());
        let leaf = Leaf { kind, role: shown.inputs.role, challenge, binding };
        self.queue.push(Challenge { leaf, shown, deliver });
    }

    fn sign_receipt(&self, fields: ReceiptFields) -> Result<ServingAnswer, Failure> {
        if !self.generations.has_evidence(&fields.evidence) {
            return Err(Failure::UnknownEvidence);
        }
        let signed =
            self.receipts.sign(&self.instance, OfGuest { model: self.model(), launch: self.launch }, fields)?;
        let receipt = signed.receipt.to_canonical().map_err(|_| Failure::TooLarge)?;
        Ok(ServingAnswer::Receipt {
            receipt: Base64::new(receipt).ok_or(Failure::TooLarge)?,
            signature: Base64::new(signed.signature.to_vec()).ok_or(Failure::Internal)?,
        })
    }

    fn model(&self) -> &ModelId {
        &self.facts.config().model.0
    }
}

/// What every receipt says of this guest.
struct OfGuest<'a> {
    model: &'a ModelId,
    launch: Sha256Digest,
}

/// What serve says of one answer.
pub(crate) struct ReceiptFields {
    evidence: Sha256Digest,
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
    fn sign(&self, key: &SigningKey, guest: OfGuest<'_>, fields: ReceiptFields) -> Result<SignedReceipt, Failure> {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, previous) = newest.unwrap_or((0, Sha256Digest::ZERO));
        let OfGuest { model, launch } = guest;
        let ReceiptFields { evidence, request, response, prompt_tokens, completion_tokens, channel } = fields;
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
            instance_key: Hex32::new(key.verifying_key().to_bytes()),
        };
        let head = receipt.digest().map_err(|_| Failure::TooLarge)?;
        let signed = SignedReceipt::sign(receipt, key).map_err(|_| Failure::TooLarge)?;
        *newest = Some((sequence.checked_add(1).ok_or(Failure::TooLarge)?, head));
        Ok(signed)
    }
}

/// Most keys that one connection holds.
const MAX_HELD: usize = 16;
