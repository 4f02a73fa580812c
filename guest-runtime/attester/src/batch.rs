// SPDX-License-Identifier: Apache-2.0
//! Batched attestation: the challenges that arrive while a quote is being made are the leaves of the next quote's tree.

use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use attested_channel::{Leaf, ReportDataInputs, Tree};
use attester_protocol::Failure;
use tee::QuoteDevice;
use types::{Base64, ConnectionProof, Document as _, Freshness, Sha256Digest};

use crate::serving::Receipts;

/// Takes the result of one challenge. Must not block.
pub(crate) type Deliver = Box<dyn FnOnce(Result<ConnectionProof, Failure>) + Send>;

/// Challenges that wait for the next quote.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Vec<(Leaf, Deliver)>>,
    arrived: Condvar,
}

impl Queue {
    /// Adds a challenge, or delivers [`Failure::Busy`] at once when too many wait.
    pub(crate) fn push(&self, leaf: Leaf, deliver: Deliver) {
        let mut waiting = self.lock();
        if waiting.len() >= MAX_WAITING {
            drop(waiting);
            deliver(Err(Failure::Busy));
            return;
        }
        waiting.push((leaf, deliver));
        self.arrived.notify_one();
    }

    /// Waits for at least one challenge, then takes all of the first one's kind: a tree has leaves of one kind.
    fn take(&self) -> Vec<(Leaf, Deliver)> {
        let mut waiting = self.lock();
        loop {
            if let Some(kind) = waiting.first().map(|(leaf, _)| leaf.kind) {
                let (taken, left) = mem::take(&mut *waiting).into_iter().partition(|(leaf, _)| leaf.kind == kind);
                *waiting = left;
                return taken;
            }
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Leaf, Deliver)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The quote device and what its quotes say.
pub(crate) struct Batches<D> {
    pub(crate) device: D,
    pub(crate) queue: Arc<Queue>,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) inputs: ReportDataInputs,
    pub(crate) evidence: Sha256Digest,
}

impl<D: QuoteDevice> Batches<D> {
    /// Makes one quote after the other, for ever.
    pub(crate) fn run(mut self) {
        loop {
            self.next();
        }
    }

    fn next(&mut self) {
        let (leaves, deliveries): (Vec<_>, Vec<_>) = self.queue.take().into_iter().unzip();
        match self.prove(&leaves) {
            Ok((tree, proof)) => {
                for ((leaf_index, path), deliver) in (0..).zip(tree.paths()).zip(deliveries) {
                    deliver(Ok(ConnectionProof { leaf_index, path, ..proof.clone() }));
                }
            }
            Err(failure) => deliveries.into_iter().for_each(|deliver| deliver(Err(failure))),
        }
    }

    /// One quote over the tree of these leaves, and the proof without index and path.
    fn prove(&mut self, leaves: &[Leaf]) -> Result<(Tree, ConnectionProof), Failure> {
        let kind = leaves.first().map(|leaf| leaf.kind).ok_or(Failure::Internal)?;
        let tree = Tree::new(leaves.iter().map(Leaf::hash).collect()).ok_or(Failure::Busy)?;
        let (receipt_count, receipt_head) = self.receipts.head();
        let freshness = Freshness { kind, tree_size: tree.size(), root: tree.root() };
        let inputs = ReportDataInputs { receipt_head, receipt_count, freshness, ..self.inputs.clone() };
        let quote = self.device.quote(&inputs.report_data()).map_err(|_| Failure::Device)?;
        let proof = ConnectionProof {
            schema: ConnectionProof::SCHEMA.to_owned(),
            evidence: self.evidence,
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

/// Most challenges that wait for one quote: twice the connections of `serve`. A connection must be able to take the
/// proofs of all of them at once ([`crate::connection`]), some 10 KB each in locked memory.
pub(crate) const MAX_WAITING: usize = 1024;
