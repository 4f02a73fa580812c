// SPDX-License-Identifier: Apache-2.0
//! Checks receipts against what the client knows by itself, and keeps them.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use attested_channel::{DeliveredReceipt, Receipt, ReceiptError};
use types::{Document as _, Evidence, Hex32, ModelId, Refusal, Sha256Digest};

/// What receipts of a connection must say, taken from the accepted proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The guest's receipt key.
    pub instance_key: Hex32,
    /// Digest of its evidence document.
    pub evidence: Sha256Digest,
    /// The model that the evidence names.
    pub model: ModelId,
    /// The connection.
    pub channel: Sha256Digest,
}

/// Checks a receipt against the accepted guest, the connection, the request that was sent and what came: the text, or
/// [`attested_channel::receipt::response_bytes`].
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
    let Receipt { model, channel, evidence, instance_key, .. } = &delivered.receipt;
    reasons.extend(delivered.signed().verify_signature().err().map(|error| error.refusal()));
    reasons.extend(delivered.verify_content(request_body, response).err().map(|error| error.refusal()));
    let mut same = |same: bool, code: &str, field: &str, expected: &dyn ToString, found: &dyn ToString| {
        if !same {
            let detail = format!("expected {}; found {}", expected.to_string(), found.to_string());
            reasons.push(Refusal::new(code, field, detail, NO_FIX));
        }
    };
    same(*model == session.model, "receipt_model_mismatch", "receipt.model", &session.model, model);
    same(*channel == session.channel, "receipt_channel_mismatch", "receipt.channel", &session.channel, channel);
    same(*evidence == session.evidence, "receipt_evidence_mismatch", "receipt.evidence", &session.evidence, evidence);
    let key = &session.instance_key;
    same(instance_key == key, "receipt_instance_key_mismatch", "receipt.instance_key", key, instance_key);
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Remembers receipts, so that none is taken twice and the parts of a guest's chain that pass here fit together.
/// With a folder it also stores them, each with the evidence that it names.
#[derive(Debug)]
pub struct ReceiptBook {
    folder: Option<PathBuf>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Digest and previous digest by instance and sequence.
    links: HashMap<(Hex32, u64), (Sha256Digest, Sha256Digest)>,
    order: VecDeque<(Hex32, u64)>,
}

/// Why a checked receipt was not taken into the book.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// It was seen before, or does not fit the chain.
    #[error("{0}")]
    Refused(Refusal),
    /// It could not be stored.
    #[error("cannot store the receipt in {folder}")]
    Store {
        /// Where.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl ReceiptBook {
    /// A book that stores in `folder`, which is made when it is missing; without one it only remembers.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(folder: Option<PathBuf>) -> Result<Self, BookError> {
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(|source| BookError::Store { folder: folder.clone(), source })?;
        }
        Ok(Self { folder, seen: Mutex::default() })
    }

    /// Takes a receipt that [`check_receipt`] has accepted. Gives the file in which it was stored.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn take(&self, delivered: &DeliveredReceipt, evidence: &Evidence) -> Result<Option<PathBuf>, BookError> {
        if let Some(folder) = &self.folder {
            check_stored(folder, &delivered.receipt)?;
        }
        self.link(&delivered.receipt).map_err(BookError::Refused)?;
        let Some(folder) = &self.folder else { return Ok(None) };
        store(folder, delivered, evidence)
            .map(Some)
            .map_err(|source| BookError::Store { folder: folder.clone(), source })
    }

    fn link(&self, receipt: &Receipt) -> Result<(), Refusal> {
        let digest = receipt.digest().map_err(|error| ReceiptError::Malformed(error).refusal())?;
        let (key, sequence) = (receipt.instance_key, receipt.sequence);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, _)) = seen.links.get(&(key, sequence)) {
            return Err(taken(*known == digest));
        }
        let before = sequence.checked_sub(1).and_then(|number| seen.links.get(&(key, number)));
        let after = sequence.checked_add(1).and_then(|number| seen.links.get(&(key, number)));
        let fits = before.is_none_or(|(before, _)| *before == receipt.previous)
            && after.is_none_or(|(_, previous)| *previous == digest)
            && (sequence != 0 || receipt.previous == Sha256Digest::ZERO);
        if !fits {
            return Err(ReceiptError::Chain.refusal());
        }
        seen.links.insert((key, sequence), (digest, receipt.previous));
        seen.order.push_back((key, sequence));
        while seen.order.len() > MAX_REMEMBERED {
            if let Some(oldest) = seen.order.pop_front() {
                seen.links.remove(&oldest);
            }
        }
        Ok(())
    }
}

/// The refusal of a receipt whose number is taken, by itself or by another.
fn taken(by_itself: bool) -> Refusal {
    let (code, detail) = if by_itself {
        ("receipt_replayed", "this receipt was delivered before")
    } else {
        ("receipt_forked", "another receipt has this number")
    };
    Refusal::new(code, "receipt.sequence", detail, NO_FIX)
}

/// Compares with what an earlier run has stored: nothing of that is written over.
fn check_stored(folder: &Path, receipt: &Receipt) -> Result<(), BookError> {
    let failed = |source| BookError::Store { folder: folder.to_path_buf(), source };
    let file = match std::fs::File::open(folder.join(receipt_name(receipt))) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_STORED).read_to_end(&mut bytes).map_err(failed)?;
    // A file that is no receipt has the number all the same.
    let is_same = DeliveredReceipt::from_canonical(&bytes).is_ok_and(|stored| stored.receipt == *receipt);
    Err(BookError::Refused(taken(is_same)))
}

fn receipt_name(receipt: &Receipt) -> String {
    let short: String = receipt.instance_key.to_string().chars().take(SHORT_KEY).collect();
    format!("receipt-{short}-{:08}.json", receipt.sequence)
}

/// Name of an evidence document in a folder of receipts.
pub(crate) fn evidence_name(digest: &Sha256Digest) -> String {
    format!("evidence-{digest}.json")
}

fn store(folder: &Path, delivered: &DeliveredReceipt, evidence: &Evidence) -> io::Result<PathBuf> {
    let evidence_path = folder.join(evidence_name(&delivered.receipt.evidence));
    if !evidence_path.exists() {
        write(folder, &evidence_path, &evidence.to_canonical().map_err(io::Error::other)?)?;
    }
    let path = folder.join(receipt_name(&delivered.receipt));
    write(folder, &path, &delivered.to_canonical().map_err(io::Error::other)?)?;
    Ok(path)
}

/// Readable by the owner alone: with its salt a receipt lets a guess of the request be confirmed.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // What is there already stays: another process may have the same folder.
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists && is_kept(path, bytes) => {}
        Err(error) => return Err(error.error),
    }
    std::fs::File::open(folder)?.sync_all()
}

/// Whether a file holds just these bytes.
fn is_kept(path: &Path, bytes: &[u8]) -> bool {
    std::fs::read(path).is_ok_and(|found| found == bytes)
}

const NO_FIX: &str = "do not rely on this answer: ask again, and keep the receipt as a proof";
const MAX_REMEMBERED: usize = 1 << 16;
const SHORT_KEY: usize = 16;
const MAX_STORED: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use attested_channel::{
        SignedReceipt,
        receipt::{channel_id, salted},
    };
    use ed25519_dalek::SigningKey;
    use types::Blake3Digest;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    fn session() -> Session {
        Session {
            instance_key: Hex32::new(key().verifying_key().to_bytes()),
            evidence: Sha256Digest::of(b"evidence"),
            model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
            channel: channel_id(&[1; 32]),
        }
    }

    fn delivered(sequence: u64, previous: Sha256Digest, text: &str) -> DeliveredReceipt {
        let (salt, session) = (Hex32::new([4; 32]), session());
        let receipt = Receipt {
            schema: Receipt::SCHEMA.into(),
            sequence,
            previous,
            request: salted(&salt, b"{}"),
            response: salted(&salt, text.as_bytes()),
            model: session.model,
            prompt_tokens: 1,
            completion_tokens: 1,
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
        let link = |receipt: &DeliveredReceipt| book.link(&receipt.receipt).map_err(|refusal| refusal.code);
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
    /// A guest that forks its chain finds the old receipt on disk, also after the proxy was started again.
    #[test]
    fn what_is_stored_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, forked) = (delivered(7, Sha256Digest::ZERO, "a"), delivered(7, Sha256Digest::ZERO, "x"));
        let check = |receipt: &DeliveredReceipt| match check_stored(folder.path(), &receipt.receipt) {
            Err(BookError::Refused(refusal)) => refusal.code,
            other => format!("{other:?}"),
        };
        assert_eq!(check(&kept), "Ok(())");
        let path = folder.path().join(receipt_name(&kept.receipt));
        let bytes = |receipt: &DeliveredReceipt| receipt.to_canonical().unwrap();
        write(folder.path(), &path, &bytes(&kept)).unwrap();
        assert_eq!((check(&kept).as_str(), check(&forked).as_str()), ("receipt_replayed", "receipt_forked"));
        assert!(write(folder.path(), &path, &bytes(&forked)).is_err());
        assert!(write(folder.path(), &path, &bytes(&kept)).is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), bytes(&kept));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(check(&kept), "receipt_forked");
    }
}
