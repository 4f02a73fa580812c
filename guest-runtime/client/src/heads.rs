// SPDX-License-Identifier: Apache-2.0
//! What is known of the chains of guests: the hash of the newest receipt for each number of receipts.
//!
//! A receipt says two heads, the one before it and its own; a proof says one. An honest guest has one head for each count,
//! and never fewer receipts than before. Proofs and answers overtake each other on their way, so a count is compared only
//! with what was known before the question was asked; heads are compared whenever they come.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use attested_channel::{Commitment, Receipt, ReceiptError};
use types::{Document as _, Hex32, Refusal, Sha256Digest};

/// How many receipts each guest was known to have signed at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<HashMap<Hex32, u64>>);

impl Known {
    /// Of the guest with this receipt key; 0 of a stranger.
    pub(crate) fn count(&self, instance_key: &Hex32) -> u64 {
        self.0.get(instance_key).copied().unwrap_or(0)
    }
}

/// The heads that were seen, a bounded number of them.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    seen: HashMap<(Hex32, u64), Head>,
    order: VecDeque<(Hex32, u64)>,
    counts: Known,
    guests: VecDeque<Hex32>,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    digest: Sha256Digest,
    by: By,
    /// The receipt with this hash was taken, not only named.
    taken: bool,
}

/// Who said a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Receipt,
    Proof,
}

impl Heads {
    /// The counts of now.
    pub(crate) fn known(&self) -> Known {
        self.counts.clone()
    }

    /// Takes a receipt for a request that was sent when the guest was known to have signed `before` receipts.
    ///
    /// # Errors
    /// All reasons why it is not in the guest's chain; then nothing is remembered of it.
    pub(crate) fn take_receipt(&mut self, receipt: &Receipt, before: u64) -> Result<(), Vec<Refusal>> {
        let digest = receipt.digest().map_err(|error| vec![ReceiptError::Malformed(error).refusal()])?;
        let (key, sequence) = (receipt.instance_key, receipt.sequence);
        let next = sequence.checked_add(1).ok_or_else(|| vec![ReceiptError::Chain.refusal()])?;
        let (here, after) = (self.head(&key, sequence), self.head(&key, next));
        if let Some(head) = after.filter(|head| head.taken) {
            return Err(vec![taken(head.digest == digest)]);
        }
        let mut reasons = Vec::new();
        if (sequence == 0) != (receipt.previous == Sha256Digest::ZERO) {
            reasons.push(ReceiptError::Chain.refusal());
        }
        for (known, found, field) in [(here, receipt.previous, "receipt.previous"), (after, digest, "receipt")] {
            if let Some(head) = known.filter(|head| head.digest != found) {
                reasons.push(match head.by {
                    By::Receipt => ReceiptError::Chain.refusal(),
                    By::Proof => mismatch("receipt_head_mismatch", field, &head.digest, &found),
                });
            }
        }
        if sequence < before {
            let detail = format!("the guest had signed {before} receipts when the request was sent; found {sequence}");
            reasons.push(Refusal::new("receipt_sequence_behind", "receipt.sequence", detail, NO_FIX));
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        self.remember(key, sequence, Head { digest: receipt.previous, by: By::Receipt, taken: false });
        self.remember(key, next, Head { digest, by: By::Receipt, taken: true });
        Ok(())
    }

    /// Takes what an accepted proof commits to. `known` are the counts from before its challenge was sent.
    ///
    /// # Errors
    /// All reasons why it contradicts what is known; then nothing is remembered of it.
    pub(crate) fn take_proof(
        &mut self,
        key: &Hex32,
        commitment: &Commitment,
        known: &Known,
    ) -> Result<(), Vec<Refusal>> {
        let Commitment { count, head } = *commitment;
        let mut reasons = Vec::new();
        let before = known.count(key);
        if count < before {
            let detail = format!("the guest had signed {before} receipts before it was asked; found {count}");
            reasons.push(Refusal::new("receipt_count_behind", "proof.receipt_count", detail, NO_FIX));
        }
        if (count == 0) != (head == Sha256Digest::ZERO) {
            let detail = "the head is zero where there is no receipt, and nowhere else";
            reasons.push(Refusal::new("receipt_head_mismatch", HEAD, detail, NO_FIX));
        } else if let Some(seen) = self.head(key, count).filter(|seen| seen.digest != head) {
            reasons.push(match seen.by {
                By::Receipt => mismatch("receipt_head_mismatch", HEAD, &seen.digest, &head),
                By::Proof => mismatch("receipt_head_forked", HEAD, &seen.digest, &head),
            });
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        self.remember(*key, count, Head { digest: head, by: By::Proof, taken: false });
        Ok(())
    }

    fn head(&self, key: &Hex32, count: u64) -> Option<Head> {
        self.seen.get(&(*key, count)).copied()
    }

    fn remember(&mut self, key: Hex32, count: u64, head: Head) {
        match self.seen.get_mut(&(key, count)) {
            Some(seen) => seen.taken |= head.taken,
            None => {
                self.seen.insert((key, count), head);
                self.order.push_back((key, count));
            }
        }
        while self.order.len() > MAX_HEADS {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        self.count_to(key, count);
    }

    fn count_to(&mut self, key: Hex32, count: u64) {
        if self.counts.0.get(&key).is_some_and(|known| *known >= count) {
            return;
        }
        let counts = Arc::make_mut(&mut self.counts.0);
        if counts.insert(key, count).is_none() {
            self.guests.push_back(key);
        }
        while self.guests.len() > MAX_GUESTS {
            if let Some(oldest) = self.guests.pop_front() {
                counts.remove(&oldest);
            }
        }
    }
}

/// The refusal of a receipt whose number is taken, by itself or by another.
pub(crate) fn taken(by_itself: bool) -> Refusal {
    let (code, detail) = if by_itself {
        (REPLAYED, "this receipt was delivered before")
    } else {
        ("receipt_forked", "another receipt has this number")
    };
    Refusal::new(code, "receipt.sequence", detail, NO_FIX)
}

fn mismatch(code: &str, field: &str, expected: &Sha256Digest, found: &Sha256Digest) -> Refusal {
    Refusal::new(code, field, format!("expected {expected}; found {found}"), NO_FIX)
}

/// The code of a receipt that was delivered before.
pub(crate) const REPLAYED: &str = "receipt_replayed";
/// Heads that are remembered, of all guests together.
const MAX_HEADS: usize = 1 << 16;
/// Guests whose counts are remembered.
pub(crate) const MAX_GUESTS: usize = 1024;
const HEAD: &str = "proof.receipt_head";
const NO_FIX: &str =
    "do not rely on this guest: it has more than one chain of receipts; keep its receipts and proofs, and ask another";

#[cfg(test)]
mod tests;
