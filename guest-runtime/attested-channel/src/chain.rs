// SPDX-License-Identifier: Apache-2.0
//! Whether receipts are all that a guest had signed when it committed to its chain's head.
//!
//! A quote's REPORTDATA covers how many receipts there are and the hash of the newest. Each receipt names the hash of the one
//! before. So whoever holds a quote can tell whether a set of receipts lacks one, and which.

use std::collections::{BTreeMap, BTreeSet};

use types::{CanonicalError, Document as _, Evidence, Hex32, Sha256Digest};

use crate::{ReceiptError, SignedReceipt};

/// Head and length of a chain, as a quote commits to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commitment {
    /// How many receipts the guest had signed.
    pub count: u64,
    /// Hash of the newest, zero where there is none.
    pub head: Sha256Digest,
}

impl Commitment {
    /// Of a guest that has signed nothing.
    pub const START: Self = Self { count: 0, head: Sha256Digest::ZERO };

    /// What an evidence document says. That its quote covers it is for the caller to check.
    #[must_use]
    pub const fn of(evidence: &Evidence) -> Self {
        Self { count: evidence.receipt_count, head: evidence.receipt_head }
    }
}

/// Receipts of one guest, in any order.
#[derive(Debug, Clone)]
pub struct Chain {
    instance_key: Hex32,
    links: BTreeMap<u64, Link>,
    forked: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    digest: Sha256Digest,
    previous: Sha256Digest,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Why a receipt was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It is signed by another guest.
    #[error("the receipt is of another guest: {found}")]
    OtherGuest {
        /// Its instance key.
        found: Hex32,
    },
    /// It is no receipt, or not signed.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
}

/// What a chain lacks, as compared with a commitment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// Receipts of the chain up to the head.
    pub found: u64,
    /// Receipts behind the head: signed after the commitment was made. That none of them is missing is not established.
    pub beyond: u64,
    /// First and last number of each gap before the head.
    pub missing: Vec<(u64, u64)>,
    /// Numbers of receipts that do not name the hash of the one before.
    pub broken: Vec<u64>,
    /// Numbers for which there are two receipts.
    pub forked: Vec<u64>,
    /// The receipt that should be the newest, or the one that follows it, contradicts the head.
    pub head_differs: bool,
    /// Sum over `found`.
    pub prompt_tokens: u64,
    /// Sum over `found`.
    pub completion_tokens: u64,
}

impl Audit {
    /// Whether the receipts up to the head are all there are, each once.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.broken.is_empty() && self.forked.is_empty() && !self.head_differs
    }

    /// How many receipts the gaps hold.
    #[must_use]
    pub fn missing_count(&self) -> u64 {
        let length = |(first, last): &(u64, u64)| last.saturating_sub(*first).saturating_add(1);
        self.missing.iter().map(length).fold(0, u64::saturating_add)
    }
}

impl Chain {
    /// An empty chain of the guest that holds this key.
    #[must_use]
    pub const fn new(instance_key: Hex32) -> Self {
        Self { instance_key, links: BTreeMap::new(), forked: BTreeSet::new() }
    }

    /// Adds a receipt after its signature was verified. The same one may be added again; another one with its number is
    /// remembered as a fork.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn add(&mut self, signed: &SignedReceipt) -> Result<(), ChainError> {
        let receipt = &signed.receipt;
        if receipt.instance_key != self.instance_key {
            return Err(ChainError::OtherGuest { found: receipt.instance_key });
        }
        signed.verify_signature()?;
        let digest = receipt.digest().map_err(|error: CanonicalError| ReceiptError::from(error))?;
        let link = Link {
            digest,
            previous: receipt.previous,
            prompt_tokens: receipt.prompt_tokens,
            completion_tokens: receipt.completion_tokens,
        };
        if self.links.get(&receipt.sequence).is_some_and(|known| known.digest != digest) {
            self.forked.insert(receipt.sequence);
        } else {
            self.links.insert(receipt.sequence, link);
        }
        Ok(())
    }

    /// Compares with what quotes commit to: the receipts that were signed after `since` ([`Commitment::START`] for all) must
    /// lead to `until`.
    #[must_use]
    pub fn audit(&self, since: &Commitment, until: &Commitment) -> Audit {
        let Commitment { count, head } = *until;
        let mut audit = Audit { forked: self.forked.iter().copied().collect(), ..Audit::default() };
        let newest_of_before = since.count.checked_sub(1).and_then(|number| self.links.get(&number));
        audit.head_differs = newest_of_before.is_some_and(|link| link.digest != since.head)
            || since.count > count
            || (since.count == count && since.head != head);
        // The number that comes next, and the hash that it must name where that is known.
        let (mut next, mut before) = (since.count, Some(since.head));
        for (&sequence, link) in self.links.range(since.count..) {
            if sequence > next {
                audit.gap(next, sequence, count);
                before = None;
            }
            if sequence == count && link.previous != head {
                audit.head_differs = true;
            }
            if before.is_some_and(|before| before != link.previous) {
                audit.broken.push(sequence);
            }
            if sequence < count {
                audit.found = audit.found.saturating_add(1);
                audit.prompt_tokens = audit.prompt_tokens.saturating_add(link.prompt_tokens);
                audit.completion_tokens = audit.completion_tokens.saturating_add(link.completion_tokens);
            } else {
                audit.beyond = audit.beyond.saturating_add(1);
            }
            next = sequence.saturating_add(1);
            before = Some(link.digest);
            if next == count && link.digest != head {
                audit.head_differs = true;
            }
        }
        audit.gap(next, count, count);
        audit
    }
}

impl Audit {
    /// Notes that the numbers from `from` up to `to` are not there, as far as the commitment covers them.
    fn gap(&mut self, from: u64, to: u64, count: u64) {
        let end = to.min(count);
        if from < end {
            self.missing.push((from, end.saturating_sub(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use proptest::prelude::*;
    use types::{Blake3Digest, ModelId};

    use super::*;
    use crate::{
        Receipt,
        receipt::{Unset, channel_id},
    };

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn signed(sequence: u64, previous: Sha256Digest, text: &[u8]) -> SignedReceipt {
        let receipt = Receipt {
            schema: Receipt::SCHEMA.into(),
            sequence,
            previous,
            request: Sha256Digest::of(b"request"),
            response: Sha256Digest::of(text),
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

    /// A guest's receipts, and what it commits to after each number of them.
    fn receipts(count: u64) -> (Vec<SignedReceipt>, Vec<Commitment>) {
        let mut commitments = vec![Commitment::START];
        let mut receipts = Vec::new();
        for sequence in 0..count {
            let receipt = signed(sequence, commitments.last().unwrap().head, b"answer");
            commitments.push(Commitment { count: sequence + 1, head: receipt.receipt.digest().unwrap() });
            receipts.push(receipt);
        }
        (receipts, commitments)
    }

    fn chain<'a>(receipts: impl IntoIterator<Item = &'a SignedReceipt>) -> Chain {
        let mut chain = Chain::new(Hex32::new(key().verifying_key().to_bytes()));
        receipts.into_iter().for_each(|receipt| chain.add(receipt).unwrap());
        chain
    }

    #[test]
    fn all_receipts_in_any_order_are_complete() {
        let (all, commitments) = receipts(6);
        for (at, commitment) in (0..).zip(&commitments) {
            let audit = chain(all.iter().rev().chain(&all)).audit(&Commitment::START, commitment);
            assert!(audit.is_complete(), "{audit:?}");
            assert_eq!(
                (audit.found, audit.beyond, audit.prompt_tokens, audit.completion_tokens),
                (at, 6 - at, 3 * at, 4 * at)
            );
        }
    }

    #[test]
    fn what_was_changed_is_named() {
        let (all, commitments) = receipts(5);
        let head = &commitments[5];
        // Cut off at the end: the remaining chain is whole in itself.
        assert_eq!(chain(&all[..3]).audit(&Commitment::START, head).missing, [(3, 4)]);
        assert_eq!(chain(&all[2..]).audit(&Commitment::START, head).missing, [(0, 1)]);
        assert_eq!(chain([]).audit(&Commitment::START, head).missing, [(0, 4)]);
        let other = Commitment { count: 5, head: Sha256Digest::of(b"another") };
        let audit = chain(&all).audit(&Commitment::START, &other);
        assert!(audit.head_differs && audit.missing.is_empty() && !audit.is_complete());
        // The head is also what a receipt after it must name.
        let audit = chain(&all[..3]).audit(&Commitment::START, &Commitment { count: 2, head: commitments[3].head });
        assert!(audit.head_differs);
        let audit = chain(&all[3..4]).audit(&Commitment::START, &Commitment { count: 3, head: commitments[2].head });
        assert!(audit.head_differs);
        let audit = chain([]).audit(&Commitment::START, &Commitment { count: 0, head: commitments[3].head });
        assert!(audit.head_differs);
    }

    #[test]
    fn forks_and_broken_links_are_named() {
        let (all, commitments) = receipts(5);
        let fork = signed(2, commitments[2].head, b"another answer");
        let audit = chain(all.iter().chain([&fork])).audit(&Commitment::START, &commitments[5]);
        assert_eq!((audit.forked.as_slice(), audit.is_complete()), ([2].as_slice(), false));
        // The fork in place of the receipt: the one after it names another.
        let audit = chain([&all[0], &all[1], &fork, &all[3], &all[4]]).audit(&Commitment::START, &commitments[5]);
        assert_eq!((audit.broken.as_slice(), audit.is_complete()), ([3].as_slice(), false));
        let first = signed(0, Sha256Digest::of(b"something before"), b"answer");
        assert_eq!(
            chain([&first])
                .audit(&Commitment::START, &Commitment { count: 1, head: first.receipt.digest().unwrap() })
                .broken,
            [0]
        );
    }

    #[test]
    fn a_period_begins_at_an_earlier_head() {
        let (all, commitments) = receipts(6);
        let audit = chain(&all[2..]).audit(&commitments[2], &commitments[5]);
        assert!(audit.is_complete(), "{audit:?}");
        assert_eq!((audit.found, audit.beyond, audit.prompt_tokens), (3, 1, 9));
        assert!(chain(&all).audit(&commitments[2], &commitments[5]).is_complete());
        assert_eq!(chain(&all[3..5]).audit(&commitments[2], &commitments[5]).missing, [(2, 2)]);
        assert_eq!(chain([]).audit(&commitments[2], &commitments[5]).missing, [(2, 4)]);
        assert!(chain([]).audit(&commitments[5], &commitments[5]).is_complete());
        let other = Commitment { count: 2, head: Sha256Digest::of(b"another") };
        // What is there of before, and what follows, contradict another head at the beginning.
        assert!(chain(&all).audit(&other, &commitments[5]).head_differs);
        assert_eq!(chain(&all[2..]).audit(&other, &commitments[5]).broken, [2]);
        assert!(chain([]).audit(&other, &commitments[2]).head_differs);
        assert!(chain(&all).audit(&commitments[5], &commitments[2]).head_differs);
    }

    #[test]
    fn only_the_guests_own_signed_receipts_count() {
        let (mut all, _) = receipts(1);
        let mut other = Chain::new(Hex32::default());
        assert!(matches!(other.add(&all[0]), Err(ChainError::OtherGuest { .. })));
        all[0].receipt.completion_tokens = 9;
        let mut own = Chain::new(all[0].receipt.instance_key);
        assert_eq!(own.add(&all[0]), Err(ChainError::Receipt(ReceiptError::Signature)));
        assert_eq!(own.audit(&Commitment::START, &Commitment { count: 1, head: Sha256Digest::ZERO }).missing, [(0, 0)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Exactly what was taken away before the head is missing.
        #[test]
        fn whatever_is_dropped_is_named(kept in proptest::collection::vec(any::<bool>(), 1..24), count in 0_usize..24) {
            let (all, commitments) = receipts(kept.len() as u64);
            let commitment = &commitments[count.min(kept.len())];
            let left: Vec<_> = all.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(receipt, _)| receipt).collect();
            let audit = chain(left).audit(&Commitment::START, commitment);
            let missing: Vec<u64> = audit.missing.iter().flat_map(|(first, last)| *first..=*last).collect();
            let dropped: Vec<u64> = (0..commitment.count).filter(|at| !kept[*at as usize]).collect();
            prop_assert_eq!(audit.missing_count(), dropped.len() as u64);
            prop_assert_eq!(missing, dropped);
            prop_assert!(audit.broken.is_empty() && audit.forked.is_empty() && !audit.head_differs);
        }
    }
}
