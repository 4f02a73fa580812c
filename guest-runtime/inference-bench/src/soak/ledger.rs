// SPDX-License-Identifier: Apache-2.0
//! All receipts of a run: those that came with answers, and those that a client would have got had it stayed.

use std::collections::BTreeMap;

use attested_channel::{Receipt, SignedReceipt};
use types::{Document as _, Sha256Digest};

/// The guest's chain as far as it was seen, and answers whose receipts are still to be asked for.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    chain: BTreeMap<u64, SignedReceipt>,
    /// Ids of answers that somebody left, with how often they were asked for.
    left: Vec<(String, u8)>,
    pub(crate) delivered: u64,
    pub(crate) fetched: u64,
}

impl Ledger {
    /// Takes a receipt. Gives whether it is new.
    ///
    /// # Errors
    /// It is not signed, or another one has its place.
    pub(crate) fn take(&mut self, signed: SignedReceipt) -> anyhow::Result<bool> {
        signed.verify_signature()?;
        let sequence = signed.receipt.sequence;
        if let Some(known) = self.chain.get(&sequence) {
            anyhow::ensure!(*known == signed, "two receipts have the number {sequence}");
            return Ok(false);
        }
        self.chain.insert(sequence, signed);
        Ok(true)
    }

    /// Somebody left this answer: it may have a receipt nevertheless.
    pub(crate) fn left(&mut self, id: String) {
        self.left.push((id, 0));
    }

    /// Ids to ask for now. Who asks puts those back that were not found.
    pub(crate) fn wanted(&mut self) -> Vec<(String, u8)> {
        std::mem::take(&mut self.left)
    }

    /// This answer has no receipt yet. After some times it has none: it was cancelled.
    pub(crate) fn not_found(&mut self, id: String, asked: u8) {
        if asked.saturating_add(1) < TRIES {
            self.left.push((id, asked.saturating_add(1)));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.chain.len()
    }

    /// What is wrong with the chain where the guest has signed `count` receipts and the newest has this digest: nothing,
    /// where each is here, follows the one before, and none is beyond.
    pub(crate) fn faults(&self, count: u64, head: Sha256Digest) -> Vec<String> {
        let mut faults = Vec::new();
        let missing: Vec<u64> = (0..count).filter(|sequence| !self.chain.contains_key(sequence)).collect();
        if !missing.is_empty() {
            faults.push(format!("{} of {count} receipts are nowhere, {:?} first", missing.len(), missing.first()));
        }
        if let Some((newest, _)) = self.chain.last_key_value().filter(|(newest, _)| **newest >= count) {
            faults.push(format!("there is a receipt {newest}, but the guest has signed {count}"));
        }
        let mut before: Option<&Receipt> = None;
        for (sequence, signed) in &self.chain {
            let follows = match before {
                Some(before) if before.sequence.checked_add(1) == Some(*sequence) => {
                    signed.verify_follows(before).is_ok()
                }
                // Behind a gap, which is told above.
                Some(_) => true,
                None => *sequence != 0 || signed.receipt.previous == Sha256Digest::ZERO,
            };
            if !follows {
                faults.push(format!("receipt {sequence} does not follow the one before it"));
            }
            before = Some(&signed.receipt);
        }
        let newest = before.map_or(Ok(Sha256Digest::ZERO), Receipt::digest);
        if newest.ok() != Some(head) {
            faults.push("the newest receipt is not the one that the guest's quote names".to_owned());
        }
        faults
    }
}

/// How often a receipt is asked for before it counts as never signed.
const TRIES: u8 = 3;

#[cfg(test)]
mod tests {
    use attested_channel::receipt::Unset;
    use ed25519_dalek::SigningKey;
    use types::{Blake3Digest, Hex32, ModelId};

    use super::*;

    fn receipts(count: u64) -> Vec<SignedReceipt> {
        let key = SigningKey::from_bytes(&[5; 32]);
        let mut previous = Sha256Digest::ZERO;
        let one = |sequence| {
            let receipt = Receipt {
                schema: Receipt::SCHEMA.to_owned(),
                sequence,
                previous,
                request: Sha256Digest::of(b"q"),
                response: Sha256Digest::of(b"a"),
                model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
                launch: Sha256Digest::of(b"l"),
                prompt_tokens: 1,
                completion_tokens: 1,
                price_unit: Unset,
                payment_channel: Unset,
                cumulative_amount: Unset,
                channel: Sha256Digest::of(b"c"),
                evidence: Sha256Digest::of(b"e"),
                instance_key: Hex32::new(key.verifying_key().to_bytes()),
            };
            previous = receipt.digest().unwrap();
            SignedReceipt::sign(receipt, &key).unwrap()
        };
        (0..count).map(one).collect()
    }

    fn ledger(receipts: &[SignedReceipt]) -> Ledger {
        let mut ledger = Ledger::default();
        // In any order.
        receipts.iter().rev().for_each(|receipt| assert!(ledger.take(receipt.clone()).unwrap()));
        ledger
    }

    #[test]
    fn a_whole_chain_is_found_whole() {
        let all = receipts(4);
        let head = all[3].receipt.digest().unwrap();
        assert_eq!(ledger(&all).faults(4, head), [""; 0]);
        assert_eq!(Ledger::default().faults(0, Sha256Digest::ZERO), [""; 0]);
    }

    #[test]
    fn gaps_forks_forgeries_and_what_is_left_off_are_seen() {
        let all = receipts(4);
        let digest = |at: usize| all[at].receipt.digest().unwrap();
        let faults = |receipts: &[SignedReceipt], count, head| ledger(receipts).faults(count, head).len();
        assert_eq!(faults(&[all[0].clone(), all[2].clone(), all[3].clone()], 4, digest(3)), 1);
        assert_eq!(faults(&all[1..], 4, digest(3)), 1);
        // The newest is missing: a gap, and another head.
        assert_eq!(faults(&all[..3], 4, digest(3)), 2);
        assert_eq!(faults(&all, 3, digest(3)), 1);
        assert_eq!(faults(&all, 4, digest(2)), 1);
        assert_eq!(faults(&[], 1, digest(0)), 2);
        let other = SignedReceipt { receipt: all[2].receipt.clone(), signature: all[1].signature };
        assert!(ledger(&all[..2]).take(other).is_err());
        let key = SigningKey::from_bytes(&[5; 32]);
        let fork = Receipt { prompt_tokens: 9, ..all[1].receipt.clone() };
        let fork = SignedReceipt::sign(fork, &key).unwrap();
        assert!(ledger(&all).take(fork.clone()).is_err());
        assert!(!ledger(&all).take(all[1].clone()).unwrap());
        assert_eq!(faults(&[all[0].clone(), fork, all[2].clone(), all[3].clone()], 4, digest(3)), 1);
    }

    #[test]
    fn what_was_left_is_asked_for_some_times() {
        let mut ledger = Ledger::default();
        ledger.left("a".to_owned());
        for _ in 0..TRIES {
            let wanted = ledger.wanted();
            assert_eq!(wanted.len(), 1);
            wanted.into_iter().for_each(|(id, asked)| ledger.not_found(id, asked));
        }
        assert!(ledger.wanted().is_empty());
    }
}
