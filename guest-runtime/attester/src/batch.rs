// SPDX-License-Identifier: Apache-2.0
//! Batched attestation: the challenges that arrive while a quote is being made are the leaves of the next quote's tree.

use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attested_channel::{Leaf, ReportDataInputs, Tree};
use attester_protocol::Failure;
use tee::QuoteDevice;
use types::{Base64, ConnectionProof, Document as _, Freshness, Hex32, RuntimeEvent};

use crate::{
    facts::Facts,
    generations::{Generation, Generations, Shown},
    keys::TlsKey,
    serving::Receipts,
};

/// Takes the result of one challenge. Must not block.
pub(crate) type Deliver = Box<dyn FnOnce(Result<ConnectionProof, Failure>) + Send>;

/// A challenge, and the TLS key of its connection.
pub(crate) struct Challenge {
    pub(crate) leaf: Leaf,
    pub(crate) shown: Arc<Shown>,
    pub(crate) deliver: Deliver,
}

/// Challenges that wait for the next quote.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    challenges: Vec<Challenge>,
    /// A renewal out of turn.
    renewal: bool,
}

/// What comes next.
enum Next {
    Challenges(Vec<Challenge>),
    Renewal,
}

impl Queue {
    /// Adds a challenge, or delivers [`Failure::Busy`] at once when too many wait.
    pub(crate) fn push(&self, challenge: Challenge) {
        let mut waiting = self.lock();
        if waiting.challenges.len() >= MAX_WAITING {
            drop(waiting);
            (challenge.deliver)(Err(Failure::Busy));
            return;
        }
        waiting.challenges.push(challenge);
        self.arrived.notify_one();
    }

    /// Has the key renewed.
    pub(crate) fn ask_renewal(&self) {
        self.lock().renewal = true;
        self.arrived.notify_one();
    }

    /// Waits for at least one challenge, then takes all that one quote can answer with the first: of its kind, on
    /// connections of its TLS key. A renewal that is due, or asked for, comes before them.
    fn next(&self, due: Instant) -> Next {
        let mut waiting = self.lock();
        loop {
            let patience = due.saturating_duration_since(Instant::now());
            if mem::take(&mut waiting.renewal) || patience.is_zero() {
                return Next::Renewal;
            }
            let first = waiting.challenges.first().map(|first| (first.leaf.kind, first.shown.evidence));
            if let Some((kind, evidence)) = first {
                let same = |challenge: &Challenge| (challenge.leaf.kind, challenge.shown.evidence) == (kind, evidence);
                let (taken, left) = mem::take(&mut waiting.challenges).into_iter().partition(same);
                waiting.challenges = left;
                return Next::Challenges(taken);
            }
            waiting = self.arrived.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} challenges)", self.lock().challenges.len())
    }
}

/// The quote device and what its quotes say.
pub(crate) struct Batches<D> {
    pub(crate) device: D,
    pub(crate) queue: Arc<Queue>,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) generations: Arc<Generations>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) events: Vec<RuntimeEvent>,
    pub(crate) instance_key: Hex32,
    pub(crate) every: Duration,
}

impl<D: QuoteDevice> Batches<D> {
    /// Makes one quote after the other, for ever; where a renewal is due, its quote comes next.
    pub(crate) fn run(mut self) {
        let mut due = Instant::now() + self.every;
        loop {
            match self.queue.next(due) {
                Next::Challenges(challenges) => self.answer(challenges),
                // A key that cannot be renewed stays: the guest goes on, and proofs are as fresh as ever.
                Next::Renewal => {
                    due = Instant::now() + self.renew().map_or(self.every.min(RETRY), |()| self.every);
                }
            }
        }
    }

    fn renew(&mut self) -> Result<(), Failure> {
        let Self { device, receipts, generations, facts, events, instance_key, .. } = self;
        let key = TlsKey::generate().map_err(|_| Failure::Internal)?;
        let next = Generation::new(device, facts, events, key, *instance_key, receipts.head())?;
        // Registers of the launch do not change while a guest runs: a quote with others was changed on its way, and receipts
        // under it would be refused later.
        if next.launch != generations.launch() {
            return Err(Failure::Device);
        }
        generations.replace(next);
        Ok(())
    }

    fn answer(&mut self, challenges: Vec<Challenge>) {
        let Some(shown) = challenges.first().map(|first| Arc::clone(&first.shown)) else { return };
        let (leaves, deliveries): (Vec<_>, Vec<_>) =
            challenges.into_iter().map(|Challenge { leaf, deliver, .. }| (leaf, deliver)).unzip();
        match self.prove(&shown, &leaves) {
            Ok((tree, proof)) => {
                for ((leaf_index, path), deliver) in (0..).zip(tree.paths()).zip(deliveries) {
                    deliver(Ok(ConnectionProof { leaf_index, path, ..proof.clone() }));
                }
            }
            Err(failure) => deliveries.into_iter().for_each(|deliver| deliver(Err(failure))),
        }
    }

    /// One quote over the tree of these leaves, and the proof without index and path.
    fn prove(&mut self, shown: &Shown, leaves: &[Leaf]) -> Result<(Tree, ConnectionProof), Failure> {
        let kind = leaves.first().map(|leaf| leaf.kind).ok_or(Failure::Internal)?;
        let tree = Tree::new(leaves.iter().map(Leaf::hash).collect()).ok_or(Failure::Busy)?;
        let (receipt_count, receipt_head) = self.receipts.head();
        let freshness = Freshness { kind, tree_size: tree.size(), root: tree.root() };
        let inputs = ReportDataInputs { receipt_head, receipt_count, freshness, ..shown.inputs.clone() };
        let quote = self.device.quote(&inputs.report_data()).map_err(|_| Failure::Device)?;
        let proof = ConnectionProof {
            schema: ConnectionProof::SCHEMA.to_owned(),
            evidence: shown.evidence,
            quote: Base64::new(quote).ok_or(Failure::Device)?,
            receipt_head,
            receipt_count,
            freshness: inputs.freshness,
            leaf_index: 0,
            path: Vec::new(),
        };
        Ok((tree, proof))
    }
}

/// When a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Most challenges that wait for one quote: twice the connections of `serve`. A connection must be able to take the
/// proofs of all of them at once ([`crate::connection`]), some 10 KB each in locked memory.
pub(crate) const MAX_WAITING: usize = 1024;
