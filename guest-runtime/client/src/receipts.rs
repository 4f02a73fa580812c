// SPDX-License-Identifier: Apache-2.0
//! Checks receipts against what the client knows by itself, and keeps them.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use attested_channel::{Commitment, DeliveredReceipt, Receipt, StoredProof};
use types::{ConnectionProof, Document as _, Evidence, Hex32, ModelId, Refusal, Sha256Digest};

use crate::{
    folder::{Folder, FolderError},
    heads::{Heads, Known, REPLAYED},
};

/// What receipts of a connection must say, taken from the accepted proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The guest's receipt key.
    pub instance_key: Hex32,
    /// Digest of its evidence document.
    pub evidence: Sha256Digest,
    /// The model that the evidence names.
    pub model: ModelId,
    /// What was launched: [`attested_channel::launch_digest`] of the registers of the verified quote, which the accepted
    /// release explains.
    pub launch: Sha256Digest,
    /// The connection.
    pub channel: Sha256Digest,
    /// How many receipts the guest was known to have signed when the newest request was sent. The receipt of its answer
    /// has no smaller number.
    pub receipts_before: u64,
}

/// Checks a receipt against the accepted guest, the connection, the request that was sent and what came: the text, or
/// [`attested_channel::receipt::response_bytes`]. Its place in the guest's chain is for [`ReceiptBook::take`].
///
/// # Errors
/// All independent reasons, in the order of the receipt's fields.
pub fn check_receipt(
    delivered: &DeliveredReceipt,
    session: &Session,
    request_body: &[u8],
    response: &[u8],
) -> Result<(), Vec<Refusal>> {
    let mut reasons = Vec::new();
    let Receipt { model, launch, channel, evidence, instance_key, .. } = &delivered.receipt;
    reasons.extend(delivered.signed().verify_signature().err().map(|error| error.refusal()));
    reasons.extend(delivered.verify_content(request_body, response).err().map(|error| error.refusal()));
    let mut same = |same: bool, code: &str, field: &str, expected: &dyn ToString, found: &dyn ToString| {
        if !same {
            let detail = format!("expected {}; found {}", expected.to_string(), found.to_string());
            reasons.push(Refusal::new(code, field, detail, NO_FIX));
        }
    };
    same(*model == session.model, "receipt_model_mismatch", "receipt.model", &session.model, model);
    same(*launch == session.launch, "receipt_launch_mismatch", "receipt.launch", &session.launch, launch);
    same(*channel == session.channel, "receipt_channel_mismatch", "receipt.channel", &session.channel, channel);
    same(*evidence == session.evidence, "receipt_evidence_mismatch", "receipt.evidence", &session.evidence, evidence);
    let key = &session.instance_key;
    same(instance_key == key, "receipt_instance_key_mismatch", "receipt.instance_key", key, instance_key);
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Remembers receipts and what proofs say of them, so that none is taken twice, the parts of a guest's chain that pass here
/// fit together, and a guest that drops a receipt contradicts itself. With a folder it also stores them, each with the
/// evidence that it names, and each guest's newest proof; a book that is opened there again knows what it knew.
#[derive(Debug, Default)]
pub struct ReceiptBook {
    folder: Option<Folder>,
    heads: Mutex<Heads>,
    storing_proof: Mutex<()>,
}

/// Why a checked receipt or an accepted proof was not taken into the book.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// It was seen before, or does not fit the chain.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// It could not be stored.
    #[error("cannot store in {folder}")]
    Store {
        /// Where.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What is stored cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl ReceiptBook {
    /// A book that stores in `folder`, which is made when it is missing; without one it only remembers.
    ///
    /// # Errors
    /// The folder can't be made, or what is in it is damaged.
    pub fn open(folder: Option<PathBuf>) -> Result<Self, BookError> {
        let folder = folder.map(Folder::open).transpose()?;
        let heads = folder.as_ref().map(Folder::heads).transpose()?.unwrap_or_default();
        Ok(Self { folder, heads: Mutex::new(heads), storing_proof: Mutex::default() })
    }

    /// Takes a receipt that [`check_receipt`] has accepted for `session`. Gives the file in which it was stored.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn take(
        &self,
        delivered: &DeliveredReceipt,
        session: &Session,
        evidence: &Evidence,
    ) -> Result<Option<PathBuf>, BookError> {
        let Some(folder) = &self.folder else { return self.link(delivered, session).map(|()| None) };
        let placed = match folder.check_stored(&delivered.receipt)? {
            Some(refusal) => Err(BookError::Refused(vec![refusal])),
            None => self.link(delivered, session),
        };
        if let Err(error) = placed {
            // A replay contradicts nothing. Otherwise the refusal counts, whether or not its subject could be kept.
            if !matches!(&error, BookError::Refused(reasons) if reasons.iter().any(|r| r.code == REPLAYED)) {
                let bytes = delivered.to_canonical().map_err(io::Error::other);
                let _ = bytes.and_then(|bytes| folder.keep_refused("receipt", &session.instance_key, &bytes));
            }
            return Err(error);
        }
        let stored = folder.store_receipt(delivered, evidence);
        stored.map(Some).map_err(|source| BookError::Store { folder: folder.path().to_owned(), source })
    }

    /// Takes a proof that was accepted. `known` is what [`ReceiptBook::known`] gave before its challenge was sent.
    pub(crate) fn take_proof(&self, proof: &StoredProof, evidence: &Evidence, known: &Known) -> Result<(), BookError> {
        let key = &evidence.instance_key;
        let ConnectionProof { receipt_count: count, receipt_head: head, .. } = proof.proof;
        let commitment = Commitment { count, head };
        let taken = self.lock().take_proof(key, &commitment, known);
        let Some(folder) = &self.folder else { return taken.map_err(BookError::Refused) };
        let _one = self.storing_proof.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(reasons) = taken {
            let kept = folder.store_evidence(&proof.proof.evidence, evidence);
            // As above.
            let _ = kept
                .and_then(|()| proof.to_canonical().map_err(io::Error::other))
                .and_then(|bytes| folder.keep_refused("proof", key, &bytes));
            return Err(BookError::Refused(reasons));
        }
        let stored = folder.store_proof(proof, evidence);
        stored.map_err(|source| BookError::Store { folder: folder.path().to_owned(), source })
    }

    /// Whether what is taken is written to a folder.
    pub(crate) const fn writes(&self) -> bool {
        self.folder.is_some()
    }

    /// How many receipts each guest is known to have signed.
    pub(crate) fn known(&self) -> Known {
        self.lock().known()
    }

    fn link(&self, delivered: &DeliveredReceipt, session: &Session) -> Result<(), BookError> {
        self.lock().take_receipt(&delivered.receipt, session.receipts_before).map_err(BookError::Refused)
    }

    fn lock(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NO_FIX: &str = "do not rely on this answer: ask again, and keep the receipt as a proof";

#[cfg(test)]
pub(crate) mod tests {
    use attested_channel::{
        Leaf, ReportDataInputs, SignedReceipt, as_committed,
        receipt::{Unset, channel_id, salted},
    };
    use ed25519_dalek::SigningKey;
    use types::{Base64, Blake3Digest, Freshness, FreshnessKind, GpuEvidence, Role, TimeState};

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    pub(crate) fn session() -> Session {
        Session {
            instance_key: Hex32::new(key().verifying_key().to_bytes()),
            evidence: Sha256Digest::of(b"evidence"),
            model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
            launch: Sha256Digest::of(b"launch"),
            channel: channel_id(&[1; 32]),
            receipts_before: 0,
        }
    }

    pub(crate) fn delivered(sequence: u64, previous: Sha256Digest, text: &str) -> DeliveredReceipt {
        let (salt, session) = (Hex32::new([4; 32]), session());
        let receipt = Receipt {
            schema: Receipt::SCHEMA.into(),
            sequence,
            previous,
            request: salted(&salt, b"{}"),
            response: salted(&salt, text.as_bytes()),
            model: session.model,
            launch: session.launch,
            prompt_tokens: 1,
            completion_tokens: 1,
            price_unit: Unset,
            payment_channel: Unset,
            cumulative_amount: Unset,
            channel: session.channel,
            evidence: session.evidence,
            instance_key: session.instance_key,
        };
        DeliveredReceipt::new(SignedReceipt::sign(receipt, &key()).unwrap(), salt)
    }

    fn codes(change: impl FnOnce(&mut Session), body: &[u8], text: &str) -> Vec<String> {
        let mut session = session();
        change(&mut session);
        let result = check_receipt(&delivered(0, Sha256Digest::ZERO, "a"), &session, body, text.as_bytes());
        result.err().unwrap_or_default().into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn each_thing_the_client_knows_is_compared() {
        assert_eq!(codes(|_| (), b"{}", "a"), [""; 0]);
        assert_eq!(codes(|_| (), b"{ }", "a"), ["receipt_request_mismatch"]);
        assert_eq!(codes(|_| (), b"{}", "b"), ["receipt_response_mismatch"]);
        assert_eq!(codes(|s| s.channel = channel_id(&[2; 32]), b"{}", "a"), ["receipt_channel_mismatch"]);
        assert_eq!(codes(|s| s.launch = Sha256Digest::ZERO, b"{}", "a"), ["receipt_launch_mismatch"]);
        assert_eq!(codes(|s| s.evidence = Sha256Digest::ZERO, b"{}", "a"), ["receipt_evidence_mismatch"]);
        assert_eq!(codes(|s| s.instance_key = Hex32::default(), b"{}", "a"), ["receipt_instance_key_mismatch"]);
        let other = ModelId::new("m", "2", Blake3Digest::of(b"m")).unwrap();
        assert_eq!(codes(|s| s.model = other, b"{}", "a"), ["receipt_model_mismatch"]);
        let mut forged = delivered(0, Sha256Digest::ZERO, "a");
        forged.receipt.completion_tokens = 9;
        let reasons = check_receipt(&forged, &session(), b"{}", b"a").unwrap_err();
        assert_eq!(reasons[0].code, "receipt_signature");
    }

    /// Attack 61: a receipt is taken once, and a guest has one chain.
    #[test]
    fn replays_forks_and_gaps_in_the_chain_are_refused() {
        let book = ReceiptBook::open(None).unwrap();
        let link = |receipt: &DeliveredReceipt| match book.link(receipt, &session()) {
            Err(BookError::Refused(reasons)) => Err(reasons[0].code.clone()),
            Err(other) => panic!("{other}"),
            Ok(()) => Ok(()),
        };
        let first = delivered(0, Sha256Digest::ZERO, "a");
        let second = delivered(1, first.receipt.digest().unwrap(), "b");
        let third = delivered(2, second.receipt.digest().unwrap(), "c");
        assert_eq!(link(&first), Ok(()));
        assert_eq!(link(&first), Err("receipt_replayed".into()));
        assert_eq!(link(&delivered(0, Sha256Digest::ZERO, "x")), Err("receipt_forked".into()));
        // Out of order, as concurrent answers come.
        assert_eq!(link(&third), Ok(()));
        assert_eq!(link(&delivered(1, first.receipt.digest().unwrap(), "x")), Err("receipt_chain_broken".into()));
        assert_eq!(link(&delivered(1, Sha256Digest::ZERO, "b")), Err("receipt_chain_broken".into()));
        assert_eq!(link(&second), Ok(()));
    }

    /// The evidence of a guest with [`key`], and its proof over these receipts. The quote has a body and no signature.
    pub(crate) fn proven(count: u64, head: Sha256Digest) -> (Evidence, StoredProof) {
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: Base64::new(Vec::new()).unwrap(),
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: session().instance_key,
            hpke_key: Hex32::default(),
            gpu: GpuEvidence::NONE,
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness::none(),
            events: Vec::new(),
            firmware_log: None,
            guest_config: Base64::new(b"{}".to_vec()).unwrap(),
            time: TimeState { floor: 1, attested: None },
        };
        let quote = |evidence: &Evidence| {
            let mut bytes = vec![0; 48 + 584 - 64];
            (bytes[0], bytes[4]) = (4, 0x81);
            bytes.extend(ReportDataInputs::of(evidence).unwrap().report_data());
            Base64::new([bytes, vec![0; 4]].concat()).unwrap()
        };
        evidence.quote = quote(&evidence);
        let leaf = Leaf { kind: FreshnessKind::Tls, role: Role::Inference, challenge: [1; 32], binding: [2; 32] };
        let mut proof = ConnectionProof {
            schema: ConnectionProof::SCHEMA.into(),
            evidence: evidence.digest().unwrap(),
            quote: Base64::new(Vec::new()).unwrap(),
            receipt_head: head,
            receipt_count: count,
            freshness: Freshness { kind: FreshnessKind::Tls, tree_size: 1, root: leaf.hash() },
            leaf_index: 0,
            path: Vec::new(),
        };
        proof.quote = quote(&as_committed(evidence.clone(), &proof));
        (evidence, StoredProof::new([1; 32], [2; 32], proof))
    }

    fn code<T: std::fmt::Debug>(result: Result<T, BookError>) -> String {
        match result {
            Ok(_) => String::new(),
            Err(BookError::Refused(reasons)) => reasons[0].code.clone(),
            Err(other) => other.to_string(),
        }
    }

    /// A guest that forks its chain finds the old receipt on disk, also after the proxy was started again.
    #[test]
    fn what_is_stored_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ReceiptBook::open(Some(folder.path().to_owned())).unwrap();
        let (evidence, _) = proven(0, Sha256Digest::ZERO);
        let before = Sha256Digest::of(b"before");
        let (kept, forked) = (delivered(7, before, "a"), delivered(7, before, "x"));
        let path = open().take(&kept, &session(), &evidence).unwrap().unwrap();
        for book in [open(), open()] {
            assert_eq!(code(book.take(&kept, &session(), &evidence)), "receipt_replayed");
            assert_eq!(code(book.take(&forked, &session(), &evidence)), "receipt_forked");
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes, kept.to_canonical().unwrap());
        // Another process stored it meanwhile.
        let book = open();
        std::fs::rename(&path, folder.path().join("aside")).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert_eq!(code(book.take(&kept, &session(), &evidence)), "receipt_forked");
        // What is damaged is said, not passed over.
        assert!(ReceiptBook::open(Some(folder.path().to_owned())).unwrap_err().to_string().contains("damaged"));
    }

    /// What a guest said before the proxy was started again still binds it.
    #[test]
    fn heads_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ReceiptBook::open(Some(folder.path().to_owned())).unwrap();
        let head = Sha256Digest::of(b"of eight receipts");
        let take = |book: &ReceiptBook, count, head| {
            let (evidence, proof) = proven(count, head);
            code(book.take_proof(&proof, &evidence, &book.known()))
        };
        assert_eq!(take(&open(), 8, head), "");
        assert_eq!(take(&open(), 7, head), "receipt_count_behind");
        assert_eq!(take(&open(), 8, Sha256Digest::of(b"another")), "receipt_head_forked");
        assert_eq!(take(&open(), 8, head), "");
        let (evidence, _) = proven(8, head);
        let receipt = |sequence, previous| {
            let book = open();
            let receipts_before = book.known().count(&session().instance_key);
            code(book.take(&delivered(sequence, previous, "a"), &Session { receipts_before, ..session() }, &evidence))
        };
        assert_eq!(receipt(8, Sha256Digest::of(b"another")), "receipt_head_mismatch");
        assert_eq!(receipt(5, Sha256Digest::of(b"another")), "receipt_sequence_behind");
        assert_eq!(receipt(8, head), "");
        assert_eq!(take(&open(), 8, head), "receipt_count_behind");
        assert_eq!(take(&open(), 9, head), "receipt_head_mismatch");
        assert_eq!(take(&open(), 9, delivered(8, head, "a").receipt.digest().unwrap()), "");
        // What contradicted the rest is there, the first of each kind.
        let mut refused: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("refused-"))
            .collect();
        refused.sort();
        assert_eq!(refused.len(), 2, "{refused:?}");
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(StoredProof::from_canonical(&read(&refused[0])).unwrap().proof.receipt_count, 7);
        assert_eq!(DeliveredReceipt::from_canonical(&read(&refused[1])).unwrap().receipt.sequence, 8);
    }

    /// The newest proof stays, whichever is stored last.
    #[test]
    fn an_older_proof_does_not_replace_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let book = ReceiptBook::open(Some(folder.path().to_owned())).unwrap();
        let known = book.known();
        for count in [3, 9, 4] {
            let (evidence, proof) = proven(count, Sha256Digest::of(&[count as u8]));
            book.take_proof(&proof, &evidence, &known).unwrap();
        }
        let stored = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let proofs: Vec<_> =
            stored.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("proof-")).collect();
        assert_eq!(proofs.len(), 1);
        let proof = StoredProof::from_canonical(&std::fs::read(&proofs[0]).unwrap()).unwrap();
        assert_eq!(proof.proof.receipt_count, 9);
        // A proof that was changed on disk is damaged.
        let mut changed = proof;
        changed.proof.receipt_count = 2;
        std::fs::write(&proofs[0], changed.to_canonical().unwrap()).unwrap();
        assert!(ReceiptBook::open(Some(folder.path().to_owned())).unwrap_err().to_string().contains("damaged"));
    }
}
