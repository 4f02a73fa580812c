// SPDX-License-Identifier: Apache-2.0
//! What an audit of receipts names.

use attested_channel::DeliveredReceipt;

use super::*;
use crate::receipts::tests::{delivered, proven};

/// A folder with a guest's receipts, and its proof over the first of them.
struct Kept {
    folder: tempfile::TempDir,
    receipts: Vec<DeliveredReceipt>,
}

impl Kept {
    /// The guest has signed `count` receipts and made its proof after `proven_after` of them.
    fn new(count: u64, proven_after: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut receipts, mut heads) = (Vec::<DeliveredReceipt>::new(), vec![Sha256Digest::ZERO]);
        for sequence in 0..count {
            let receipt = delivered(sequence, *heads.last().unwrap(), "a");
            heads.push(receipt.receipt.digest().unwrap());
            receipts.push(receipt);
        }
        let kept = Self { folder, receipts };
        let (evidence, proof) = proven(proven_after, heads[usize::try_from(proven_after).unwrap()]);
        kept.write(&evidence_name(&proof.proof.evidence), &evidence.to_canonical().unwrap());
        kept.write("proof-0.json", &proof.to_canonical().unwrap());
        kept.receipts.iter().for_each(|receipt| kept.store(receipt));
        kept
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn name(sequence: u64) -> String {
        format!("receipt-0-{sequence:08}.json")
    }

    fn store(&self, receipt: &DeliveredReceipt) {
        self.write(&Self::name(receipt.receipt.sequence), &receipt.to_canonical().unwrap());
    }

    fn drop_receipts(&self, sequences: &[u64]) {
        sequences.iter().for_each(|sequence| std::fs::remove_file(self.path(&Self::name(*sequence))).unwrap());
    }

    fn found(&self, change: impl FnOnce(&mut Arguments)) -> Found {
        let mut arguments = Arguments {
            receipts: vec![self.folder.path().to_owned()],
            proof: None,
            since: None,
            evidence: None,
            policy: None,
            at: None,
            json: true,
        };
        change(&mut arguments);
        verify(&arguments, &TrustAnchors::intel()).unwrap()
    }
}

fn codes(found: &Found) -> Vec<&str> {
    found.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

#[test]
fn a_whole_chain_is_complete_and_its_tokens_are_counted() {
    let found = Kept::new(5, 3).found(|_| ());
    let chain = &found.chains[0];
    assert_eq!(
        (&chain["complete"], &chain["count"], &chain["found"], &chain["beyond"]),
        (&json!(true), &json!(3), &json!(3), &json!(2))
    );
    assert_eq!((&chain["missing"], &chain["completion_tokens"]), (&json!([]), &json!(3)));
    assert_eq!(chain["guest"], "not_appraised");
    assert!(found.reasons.is_empty(), "{:?}", found.reasons);
    assert!(found.lines[0].contains("NOT appraised"), "{:?}", found.lines);
}

#[test]
fn what_is_missing_is_named_exactly() {
    let kept = Kept::new(9, 8);
    kept.drop_receipts(&[0, 3, 4, 7, 8]);
    let found = kept.found(|_| ());
    assert_eq!(codes(&found), ["receipts_missing"]);
    assert_eq!(found.chains[0]["missing"], json!([[0, 0], [3, 4], [7, 7]]));
    assert!(found.reasons[0].detail.contains("4 of 8 receipts are missing: 0, 3-4, 7"), "{}", found.reasons[0]);
    assert!(found.lines.is_empty());
    kept.drop_receipts(&[1, 2, 5, 6]);
    assert_eq!(kept.found(|_| ()).chains[0]["missing"], json!([[0, 7]]));
}

#[test]
fn forks_other_heads_and_forgeries_are_named() {
    let kept = Kept::new(3, 3);
    let fork = delivered(2, kept.receipts[2].receipt.previous, "another");
    kept.write("receipt-0-00000099.json", &fork.to_canonical().unwrap());
    assert_eq!(codes(&kept.found(|_| ())), ["receipt_forked"]);
    kept.drop_receipts(&[2]);
    assert_eq!(codes(&kept.found(|_| ())), ["receipt_head_mismatch"]);
    kept.drop_receipts(&[99]);
    kept.store(&delivered(2, Sha256Digest::of(b"another chain"), "a"));
    assert_eq!(codes(&kept.found(|_| ())), ["receipt_chain_broken", "receipt_head_mismatch"]);
    let mut forged = kept.receipts[2].clone();
    forged.receipt.prompt_tokens = 7;
    kept.store(&forged);
    assert_eq!(codes(&kept.found(|_| ())), ["receipt_signature", "receipts_missing"]);
    kept.write(&Kept::name(2), b"{}");
    assert_eq!(codes(&kept.found(|_| ())), ["receipt_malformed", "receipts_missing"]);
    kept.store(&kept.receipts[2]);
    assert_eq!(codes(&kept.found(|_| ())), [""; 0]);
}

#[test]
fn without_a_good_proof_nothing_is_complete() {
    let kept = Kept::new(3, 3);
    let text = std::fs::read_to_string(kept.path("proof-0.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        kept.write("proof-0.json", text.replacen(from, to, 1).as_bytes());
        codes(&kept.found(|_| ())).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // Whose receipts they are, only a proof says.
    assert_eq!(with("\"receipt_count\":3", "\"receipt_count\":2"), ["report_data_mismatch", "proof_missing"]);
    assert_eq!(with("\"challenge\":\"01", "\"challenge\":\"02"), ["binding_mismatch", "proof_missing"]);
    assert_eq!(with("\"leaf_index\":0", "\"leaf_index\":1"), ["binding_mismatch", "proof_missing"]);
    assert_eq!(with("stored-proof/v1", "stored-proof/v2"), ["proof_malformed", "proof_missing"]);
    std::fs::remove_file(kept.path("proof-0.json")).unwrap();
    assert_eq!(codes(&kept.found(|_| ())), ["proof_missing"]);
    // As the guest gave it, without challenge and binding.
    let stored = StoredProof::from_canonical(text.as_bytes()).unwrap();
    let proof = kept.path("given.json");
    std::fs::write(&proof, stored.proof.to_canonical().unwrap()).unwrap();
    assert_eq!(codes(&kept.found(|arguments| arguments.proof = Some(proof.clone()))), [""; 0]);
    std::fs::remove_file(kept.path(&evidence_name(&stored.proof.evidence))).unwrap();
    let found = kept.found(|arguments| arguments.proof = Some(proof.clone()));
    assert_eq!(codes(&found), ["evidence_missing"]);
    // Another guest's evidence.
    let (mut other, _) = proven(0, Sha256Digest::ZERO);
    other.hpke_key = Hex32::new([1; 32]);
    kept.write("other.json", &other.to_canonical().unwrap());
    let evidence = Some(kept.path("other.json"));
    let found = kept.found(|arguments| (arguments.proof, arguments.evidence) = (Some(proof), evidence));
    assert_eq!(codes(&found), ["evidence_digest_mismatch"]);
}

#[test]
fn receipts_that_name_the_evidence_must_say_what_it_says() {
    let signed = delivered(0, Sha256Digest::ZERO, "a").signed();
    let receipt = &signed.receipt;
    let code = |change: fn(&mut Committed)| {
        let mut committed = Committed {
            instance_key: receipt.instance_key,
            commitment: Commitment { count: 1, head: Sha256Digest::ZERO },
            evidence: receipt.evidence,
            model: Some(receipt.model.clone()),
            launch: Some(receipt.launch),
            appraised: Appraised::Not,
        };
        change(&mut committed);
        committed.check(&signed).map(|reason| reason.code)
    };
    assert_eq!(code(|_| ()), None);
    assert_eq!(code(|c| c.model = None).as_deref(), Some("receipt_model_mismatch"));
    assert_eq!(code(|c| c.launch = Some(Sha256Digest::ZERO)).as_deref(), Some("receipt_launch_mismatch"));
    // Of evidence that was renewed since, its own document says it.
    assert_eq!(code(|c| (c.evidence, c.launch) = (Sha256Digest::ZERO, None)), None);
}

/// For whoever settles by the month: the receipts of a month lead from one proof to the next.
#[test]
fn a_period_needs_its_own_receipts_alone() {
    let kept = Kept::new(6, 5);
    let earlier = |count: u64, head: Sha256Digest| {
        let (_, proof) = proven(count, head);
        let path = kept.path("earlier.json");
        std::fs::write(&path, proof.to_canonical().unwrap()).unwrap();
        move |arguments: &mut Arguments| arguments.since = Some(path)
    };
    let second = kept.receipts[1].receipt.digest().unwrap();
    kept.drop_receipts(&[0, 1]);
    assert_eq!(codes(&kept.found(|_| ())), ["receipts_missing"]);
    let found = kept.found(earlier(2, second));
    assert!(found.reasons.is_empty(), "{:?}", found.reasons);
    let chain = &found.chains[0];
    assert_eq!((&chain["since"], &chain["found"], &chain["beyond"]), (&json!(2), &json!(3), &json!(1)));
    assert_eq!(codes(&kept.found(earlier(2, Sha256Digest::of(b"another")))), ["receipt_chain_broken"]);
    assert_eq!(codes(&kept.found(earlier(6, second))), ["proofs_out_of_order"]);
    kept.drop_receipts(&[3]);
    let found = kept.found(earlier(2, second));
    assert!(found.reasons[0].detail.contains("1 of 3 receipts are missing: 3"), "{}", found.reasons[0]);
    kept.write("earlier.json", b"{}");
    let found = kept.found(|arguments| arguments.since = Some(kept.path("earlier.json")));
    assert_eq!(codes(&found), ["proof_malformed"]);
    assert!(found.chains.is_empty());
}
