// SPDX-License-Identifier: Apache-2.0
//! Dishonest guests are found out, and honest ones never suspected, in whatever order things come.

use std::collections::HashMap;

use attested_channel::receipt::{Unset, channel_id};
use proptest::prelude::*;
use types::{Blake3Digest, ModelId};

use super::*;

const KEY: Hex32 = Hex32::new([7; 32]);

fn receipt(sequence: u64, previous: Sha256Digest, text: &str) -> Receipt {
    Receipt {
        schema: Receipt::SCHEMA.into(),
        sequence,
        previous,
        request: Sha256Digest::of(b"request"),
        response: Sha256Digest::of(text.as_bytes()),
        model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
        launch: Sha256Digest::of(b"launch"),
        prompt_tokens: 1,
        completion_tokens: 1,
        price_unit: Unset,
        payment_channel: Unset,
        cumulative_amount: Unset,
        channel: channel_id(&[1; 32]),
        evidence: Sha256Digest::of(b"evidence"),
        instance_key: KEY,
    }
}

/// Signs receipts as the attester does, but for the signature.
#[derive(Debug, Clone, Default)]
struct Guest(Option<Commitment>);

impl Guest {
    fn commitment(&self) -> Commitment {
        self.0.unwrap_or(Commitment { count: 0, head: Sha256Digest::ZERO })
    }

    fn sign(&mut self, text: &str) -> Receipt {
        let Commitment { count, head } = self.commitment();
        let receipt = receipt(count, head, text);
        self.0 = Some(Commitment { count: count + 1, head: receipt.digest().unwrap() });
        receipt
    }
}

fn codes(result: Result<(), Vec<Refusal>>) -> Vec<String> {
    result.err().unwrap_or_default().into_iter().map(|reason| reason.code).collect()
}

/// Heads that know the guest's first receipts, and the guest.
fn after(count: u64) -> (Heads, Guest, Vec<Receipt>) {
    let (mut heads, mut guest) = (Heads::default(), Guest::default());
    let receipts: Vec<_> = (0..count).map(|_| guest.sign("a")).collect();
    for receipt in &receipts {
        heads.take_receipt(receipt, 0).unwrap();
    }
    (heads, guest, receipts)
}

#[test]
fn a_dropped_receipt_is_missed_in_the_next_proof() {
    let (mut heads, guest, receipts) = after(3);
    let known = heads.known();
    // Two receipts, of which the guest says nothing more.
    let behind = Commitment { count: 2, head: receipts[1].digest().unwrap() };
    assert_eq!(codes(heads.take_proof(&KEY, &behind, &known)), ["receipt_count_behind"]);
    let none = Commitment { count: 0, head: Sha256Digest::ZERO };
    assert_eq!(codes(heads.take_proof(&KEY, &none, &known)), ["receipt_count_behind"]);
    assert_eq!(codes(heads.take_proof(&KEY, &guest.commitment(), &known)), [""; 0]);
    // Of another guest nothing is known.
    assert_eq!(codes(heads.take_proof(&Hex32::new([8; 32]), &none, &known)), [""; 0]);
}

#[test]
fn a_proof_over_another_chain_is_found_by_its_head() {
    let (mut heads, _, receipts) = after(3);
    let known = heads.known();
    let fork = |count| Commitment { count, head: Sha256Digest::of(b"a fork") };
    assert_eq!(codes(heads.take_proof(&KEY, &fork(3), &known)), ["receipt_head_mismatch"]);
    // What a receipt says of the one before it counts, too.
    let (mut named, stranger) = (Heads::default(), Known::default());
    named.take_receipt(&receipts[2], 0).unwrap();
    assert_eq!(codes(named.take_proof(&KEY, &fork(2), &stranger)), ["receipt_head_mismatch"]);
    // Both reasons at once.
    assert_eq!(codes(heads.take_proof(&KEY, &fork(2), &known)), ["receipt_count_behind", "receipt_head_mismatch"]);
    let zero = Commitment { count: 4, head: Sha256Digest::ZERO };
    assert_eq!(codes(heads.take_proof(&KEY, &zero, &known)), ["receipt_head_mismatch"]);
    let head = Commitment { count: 0, head: Sha256Digest::of(b"x") };
    assert_eq!(codes(Heads::default().take_proof(&KEY, &head, &stranger)), ["receipt_head_mismatch"]);
}

#[test]
fn two_proofs_contradict_each_other() {
    let (mut heads, _, _) = after(0);
    let stranger = heads.known();
    let said = |count, text: &[u8]| Commitment { count, head: Sha256Digest::of(text) };
    heads.take_proof(&KEY, &said(5, b"one"), &stranger).unwrap();
    assert_eq!(codes(heads.take_proof(&KEY, &said(5, b"two"), &heads.known())), ["receipt_head_forked"]);
    assert_eq!(codes(heads.take_proof(&KEY, &said(5, b"one"), &heads.known())), [""; 0]);
    assert_eq!(codes(heads.take_proof(&KEY, &said(4, b"zero"), &heads.known())), ["receipt_count_behind"]);
    // Asked for before the other came: it may say less.
    assert_eq!(codes(heads.take_proof(&KEY, &said(4, b"zero"), &stranger)), [""; 0]);
}

#[test]
fn receipts_must_go_on_from_the_heads_of_proofs() {
    let (mut heads, mut guest, _) = after(3);
    let next = guest.clone().sign("a");
    let other = receipt(4, Sha256Digest::of(b"a fork"), "a");
    let stranger = Known::default();
    heads.take_proof(&KEY, &Commitment { count: 4, head: next.digest().unwrap() }, &stranger).unwrap();
    assert_eq!(codes(heads.take_receipt(&other, 0)), ["receipt_head_mismatch"]);
    assert_eq!(codes(heads.take_receipt(&guest.clone().sign("b"), 0)), ["receipt_head_mismatch"]);
    assert_eq!(codes(heads.take_receipt(&guest.sign("a"), 0)), [""; 0]);
    assert_eq!(codes(heads.take_receipt(&guest.sign("c"), 4)), [""; 0]);
}

/// A number that was given to somebody before the request was even sent.
#[test]
fn a_receipt_with_an_old_number_is_refused() {
    let (mut heads, _, receipts) = after(0);
    let proof = Commitment { count: 9, head: Sha256Digest::of(b"x") };
    heads.take_proof(&KEY, &proof, &heads.known()).unwrap();
    let before = heads.known().count(&KEY);
    assert_eq!((before, receipts.len()), (9, 0));
    let old = receipt(5, Sha256Digest::of(b"y"), "a");
    assert_eq!(codes(heads.take_receipt(&old, before)), ["receipt_sequence_behind"]);
    assert_eq!(codes(heads.take_receipt(&receipt(9, proof.head, "a"), before)), [""; 0]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut heads = Heads::default();
    let none = Known::default();
    for number in 0..=MAX_GUESTS as u64 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        let proof = Commitment { count: 1 + number, head: Sha256Digest::of(&key) };
        heads.take_proof(&Hex32::new(key), &proof, &none).unwrap();
    }
    assert_eq!((heads.known().0.len(), heads.guests.len()), (MAX_GUESTS, MAX_GUESTS));
    assert_eq!(heads.known().count(&Hex32::new([0; 32])), 0);
    for count in 1..=MAX_HEADS as u64 {
        heads.take_proof(&KEY, &Commitment { count, head: Sha256Digest::of(b"x") }, &none).unwrap();
    }
    assert_eq!((heads.seen.len(), heads.order.len()), (MAX_HEADS, MAX_HEADS));
}

/// What happens between a client and a guest. Numbers choose among what is under way.
#[derive(Debug, Clone)]
enum Step {
    /// The client sends a request or a challenge.
    Ask,
    Challenge,
    /// The guest signs a receipt for one of the requests, in whatever order, or makes a quote for all challenges that wait.
    Sign(usize),
    Quote,
    /// Somebody else's answer.
    SignForOthers,
    /// An answer or a proof reaches the client, in whatever order.
    Answer(usize),
    Proof(usize),
    /// A client that left: its receipt reaches nobody.
    Lose(usize),
    /// The client ends, with all that was under way, and starts again with what lies on its disk.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Ask),
        2 => Just(Step::Challenge),
        3 => any::<usize>().prop_map(Step::Sign),
        2 => Just(Step::Quote),
        1 => Just(Step::SignForOthers),
        3 => any::<usize>().prop_map(Step::Answer),
        2 => any::<usize>().prop_map(Step::Proof),
        1 => any::<usize>().prop_map(Step::Lose),
        1 => Just(Step::Restart),
    ]
}

/// All that is under way between one client and one guest.
#[derive(Default)]
struct Way {
    heads: Heads,
    guest: Guest,
    /// How many receipts were known when each was sent.
    requests: Vec<u64>,
    challenges: Vec<Known>,
    answers: Vec<(Receipt, u64)>,
    proofs: Vec<(Commitment, Known)>,
    refused: Vec<Refusal>,
    /// What the client has on its disk: the newest of each.
    receipt: Option<Receipt>,
    proof: Option<Commitment>,
}

impl Way {
    fn go(&mut self, step: &Step) {
        let place = |at: usize, length: usize| at.checked_rem(length);
        match *step {
            Step::Ask => self.requests.push(self.heads.known().count(&KEY)),
            Step::Challenge => self.challenges.push(self.heads.known()),
            Step::Sign(at) => {
                if let Some(at) = place(at, self.requests.len()) {
                    let before = self.requests.swap_remove(at);
                    self.answers.push((self.guest.sign("mine"), before));
                }
            }
            Step::Quote => {
                let commitment = self.guest.commitment();
                self.proofs.extend(self.challenges.drain(..).map(|known| (commitment, known)));
            }
            Step::SignForOthers => drop(self.guest.sign("another's")),
            Step::Answer(at) => {
                if let Some(at) = place(at, self.answers.len()) {
                    let (receipt, before) = self.answers.swap_remove(at);
                    self.take_receipt(receipt, before);
                }
            }
            Step::Proof(at) => {
                if let Some(at) = place(at, self.proofs.len()) {
                    let (commitment, known) = self.proofs.swap_remove(at);
                    self.take_proof(commitment, &known);
                }
            }
            Step::Lose(at) => {
                if let Some(at) = place(at, self.answers.len()) {
                    self.answers.swap_remove(at);
                }
            }
            Step::Restart => self.restart(),
        }
    }

    fn take_receipt(&mut self, receipt: Receipt, before: u64) {
        self.refused.extend(self.heads.take_receipt(&receipt, before).err().unwrap_or_default());
        if self.receipt.as_ref().is_none_or(|newest| newest.sequence < receipt.sequence) {
            self.receipt = Some(receipt);
        }
    }

    fn take_proof(&mut self, commitment: Commitment, known: &Known) {
        self.refused.extend(self.heads.take_proof(&KEY, &commitment, known).err().unwrap_or_default());
        if self.proof.is_none_or(|newest| newest.count < commitment.count) {
            self.proof = Some(commitment);
        }
    }

    /// As [`crate::folder::Folder::heads`] does.
    fn restart(&mut self) {
        self.heads = Heads::default();
        self.requests.clear();
        self.challenges.clear();
        self.answers.clear();
        self.proofs.clear();
        if let Some(receipt) = self.receipt.take() {
            self.take_receipt(receipt, 0);
        }
        if let Some(proof) = self.proof.take() {
            self.take_proof(proof, &Known::default());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever overtakes whatever: an honest guest is never refused.
    #[test]
    fn an_honest_guest_is_never_suspected(steps in proptest::collection::vec(step(), 0..120)) {
        let mut way = Way::default();
        steps.iter().for_each(|step| way.go(step));
        prop_assert!(way.refused.is_empty(), "{:?}", way.refused);
    }

    /// A guest that forgets its newest receipts, of which the client has the last, is found out by the next proof or the
    /// next receipt, also when it has signed as many others in their place. Where it has signed more, only an audit of
    /// the whole chain shows it.
    #[test]
    fn a_guest_that_forgets_is_found_out(
        steps in proptest::collection::vec(step(), 0..60),
        forgotten in 1_u64..4,
        since in 0_u64..8,
        by_proof: bool,
        restarted: bool,
    ) {
        let mut way = Way::default();
        let mut moments: HashMap<u64, Guest> = HashMap::new();
        for step in &steps {
            moments.insert(way.guest.commitment().count, way.guest.clone());
            way.go(step);
        }
        // The client gets a receipt with the newest number.
        for step in [Step::Ask, Step::Sign(usize::MAX)] {
            moments.insert(way.guest.commitment().count, way.guest.clone());
            way.go(&step);
        }
        let (receipt, before) = way.answers.pop().unwrap();
        way.take_receipt(receipt, before);
        if restarted {
            way.go(&Step::Restart);
        }
        prop_assert!(way.refused.is_empty(), "{:?}", way.refused);
        let count = way.guest.commitment().count;
        way.guest = moments[&count.saturating_sub(forgotten)].clone();
        for _ in 0..since {
            way.guest.sign("in its place");
        }
        let known = way.heads.known();
        let refused = if by_proof {
            way.heads.take_proof(&KEY, &way.guest.commitment(), &known)
        } else {
            way.heads.take_receipt(&way.guest.sign("next"), known.count(&KEY))
        };
        let most = if by_proof { count } else { count + 1 };
        prop_assert_eq!(refused.is_err(), way.guest.commitment().count <= most, "{:?}", way.guest.commitment());
    }
}
