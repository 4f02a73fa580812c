// SPDX-License-Identifier: Apache-2.0
//! The guest's TLS keys: the newest, which new connections begin with, and those that older connections go on with.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attested_channel::{Quoted, ReportDataInputs};
use attester_protocol::{Failure, Identity, ServingAnswer, serving::OLD_KEYS};
use tee::QuoteDevice;
use types::{Base64, Hex32, RuntimeEvent, Sha256Digest};

use crate::{certificate, facts::Facts, keys::TlsKey};

/// Takes an answer. Must not block.
pub(crate) type Told = Box<dyn FnOnce(Result<ServingAnswer, Failure>) + Send>;

/// What proofs say of a TLS key. Nothing here is secret.
pub(crate) struct Shown {
    /// What its evidence was made over, without later receipts and freshness.
    pub(crate) inputs: ReportDataInputs,
    /// Address of that evidence.
    pub(crate) evidence: Sha256Digest,
}

/// A TLS key with certificate and evidence of its own.
pub(crate) struct Generation {
    key: TlsKey,
    shown: Arc<Shown>,
    certificate: Vec<u8>,
    evidence: Vec<u8>,
    /// What the guest was launched as, by the quote: the same of every generation.
    pub(crate) launch: Sha256Digest,
    holds: Hold,
}

/// As long as it exists, [`Generations::retire`] gives up no key of its generation.
pub(crate) type Hold = Arc<()>;

impl Generation {
    /// Has a quote made over the key, and over the chain of receipts as it stands.
    pub(crate) fn new<D: QuoteDevice>(
        device: &mut D,
        facts: &Facts,
        events: &[RuntimeEvent],
        key: TlsKey,
        instance_key: Hex32,
        (receipt_count, receipt_head): (u64, Sha256Digest),
    ) -> Result<Self, Failure> {
        let inputs = facts.report_data_inputs(key.spki_sha256(), instance_key, Hex32::default());
        let inputs = ReportDataInputs { receipt_count, receipt_head, ..inputs };
        let quote = device.quote(&inputs.report_data()).map_err(|_| Failure::Device)?;
        let launch = Quoted::read(&quote).map_err(|_| Failure::Device)?.launch;
        let evidence = facts.evidence(&inputs, quote.clone(), events)?;
        let digest = Sha256Digest::of(&evidence);
        let certificate = certificate::build(&key, digest, quote)?;
        Ok(Self {
            key,
            shown: Arc::new(Shown { inputs, evidence: digest }),
            certificate,
            evidence,
            launch,
            holds: Hold::default(),
        })
    }
}

/// All TLS keys of a guest that serves.
pub(crate) struct Generations {
    facts: Arc<Facts>,
    launch: Sha256Digest,
    inner: Mutex<Inner>,
}

struct Inner {
    newest: Generation,
    /// How many keys came before the newest.
    number: u64,
    /// The oldest first.
    old: VecDeque<Old>,
    /// Addresses of evidence, the oldest first: an answer may outlive the key of its connection.
    evidence: VecDeque<Sha256Digest>,
    /// Who waits for the successor of a key.
    waiting: Vec<(Sha256Digest, Told)>,
}

/// A key that was replaced. It is overwritten when it is dropped.
struct Old {
    number: u64,
    key: TlsKey,
    shown: Arc<Shown>,
    holds: Hold,
}

impl Generations {
    pub(crate) fn new(facts: Arc<Facts>, first: Generation) -> Self {
        let (launch, evidence) = (first.launch, VecDeque::from([first.shown.evidence]));
        let inner = Inner { newest: first, number: 0, old: VecDeque::new(), evidence, waiting: Vec::new() };
        Self { facts, launch, inner: Mutex::new(inner) }
    }

    /// What the first quote shows of the launch.
    pub(crate) fn launch(&self) -> Sha256Digest {
        self.launch
    }

    /// Who the guest is, by its newest key.
    pub(crate) fn identity(&self) -> Result<ServingAnswer, Failure> {
        self.identity_of(&self.lock().newest)
    }

    /// Tells who the guest is as soon as its newest key is another one than `key`.
    pub(crate) fn tell_successor(&self, key: Sha256Digest, told: Told) {
        let mut inner = self.lock();
        if *inner.newest.spki_sha256() != key {
            let identity = self.identity_of(&inner.newest);
            drop(inner);
            told(identity);
        } else if inner.waiting.len() < MAX_WAITING {
            inner.waiting.push((key, told));
        } else {
            drop(inner);
            told(Err(Failure::Busy));
        }
    }

    /// Makes `next` the newest, tells who waits for it, and forgets keys that are too old.
    pub(crate) fn replace(&self, next: Generation) {
        let mut inner = self.lock();
        let Generation { key, shown, holds, .. } = std::mem::replace(&mut inner.newest, next);
        let number = inner.number;
        inner.old.push_back(Old { number, key, shown, holds });
        inner.number = number.saturating_add(1);
        let oldest = inner.number.saturating_sub(OLD_KEYS);
        inner.old.retain(|old| old.number >= oldest);
        let evidence = inner.newest.shown.evidence;
        inner.evidence.push_back(evidence);
        while inner.evidence.len() > MAX_EVIDENCE {
            inner.evidence.pop_front();
        }
        let spki = *inner.newest.spki_sha256();
        let (waiting, others) = std::mem::take(&mut inner.waiting).into_iter().partition(|(key, _)| *key != spki);
        inner.waiting = others;
        let waiting: Vec<(Sha256Digest, Told)> = waiting;
        let answers: Vec<_> = waiting.into_iter().map(|(_, told)| (told, self.identity_of(&inner.newest))).collect();
        drop(inner);
        answers.into_iter().for_each(|(told, identity)| told(identity));
    }

    /// Keeps a key until it is too old.
    pub(crate) fn hold(&self, key: &Sha256Digest) -> Result<Hold, Failure> {
        let inner = self.lock();
        if inner.newest.spki_sha256() == key {
            return Ok(Arc::clone(&inner.newest.holds));
        }
        let old = inner.old.iter().find(|old| old.spki_sha256() == key);
        old.map(|old| Arc::clone(&old.holds)).ok_or(Failure::UnknownKey)
    }

    /// Overwrites a key that no connection uses any more.
    pub(crate) fn retire(&self, key: &Sha256Digest) -> Result<ServingAnswer, Failure> {
        let mut inner = self.lock();
        let is_held = |old: &Old| old.spki_sha256() == key && Arc::strong_count(&old.holds) > 1;
        if inner.newest.spki_sha256() == key || inner.old.iter().any(is_held) {
            return Err(Failure::KeyInUse);
        }
        inner.old.retain(|old| old.spki_sha256() != key);
        Ok(ServingAnswer::Retired {})
    }

    /// Signs with a key that is still kept.
    pub(crate) fn sign(&self, key: &Sha256Digest, message: &[u8]) -> Result<[u8; 64], Failure> {
        let inner = self.lock();
        if inner.newest.spki_sha256() == key {
            return Ok(inner.newest.key.sign(message));
        }
        let old = inner.old.iter().find(|old| old.spki_sha256() == key);
        old.map(|old| old.key.sign(message)).ok_or(Failure::UnknownKey)
    }

    /// What proofs say of a key that is still kept.
    pub(crate) fn shown(&self, key: &Sha256Digest) -> Result<Arc<Shown>, Failure> {
        let inner = self.lock();
        if inner.newest.spki_sha256() == key {
            return Ok(Arc::clone(&inner.newest.shown));
        }
        let old = inner.old.iter().find(|old| old.spki_sha256() == key);
        old.map(|old| Arc::clone(&old.shown)).ok_or(Failure::UnknownKey)
    }

    /// Whether a receipt may name this evidence: it was made here.
    pub(crate) fn has_evidence(&self, digest: &Sha256Digest) -> bool {
        self.lock().evidence.contains(digest)
    }

    fn identity_of(&self, generation: &Generation) -> Result<ServingAnswer, Failure> {
        let Generation { shown, certificate, evidence, .. } = generation;
        Ok(ServingAnswer::Identity(Box::new(Identity {
            certificates: vec![Base64::new(certificate.clone()).ok_or(Failure::TooLarge)?],
            evidence: Base64::new(evidence.clone()).ok_or(Failure::TooLarge)?,
            spki_sha256: shown.inputs.spki_sha256,
            instance_key: shown.inputs.instance_key,
            unix: self.facts.unix(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generation {
    fn spki_sha256(&self) -> &Sha256Digest {
        &self.shown.inputs.spki_sha256
    }
}

impl Old {
    fn spki_sha256(&self) -> &Sha256Digest {
        &self.shown.inputs.spki_sha256
    }
}

/// Most who wait for a successor: serve's one connection, and what else of the guest asks.
const MAX_WAITING: usize = 8;
/// Addresses of evidence kept, 32 bytes each: with a renewal in an hour, those of six weeks.
const MAX_EVIDENCE: usize = 1024;
