// SPDX-License-Identifier: Apache-2.0
//! The folder in which receipts are kept, with the evidence that they name and each guest's newest proof.
//!
//! Names: `receipt-KEY-NUMBER.json`, `evidence-DIGEST.json`, `proof-KEY.json`, where KEY is the beginning of the guest's
//! receipt key. What contradicted that is kept once for each guest, as `refused-receipt-KEY.json` and `refused-proof-KEY.json`.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use attested_channel::{Commitment, DeliveredReceipt, Receipt, StoredProof, as_committed};
use types::{Document as _, Evidence, Hex32, Sha256Digest};

use crate::heads::{Heads, Known, MAX_GUESTS, taken};

/// What cannot be done with a folder, or a file in it.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system says no.
    #[error("cannot use {path}")]
    Io {
        /// The file or the folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} is damaged: {detail}; move it to another folder to go on without it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// A folder of receipts.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes it where it is missing.
    pub(crate) fn open(path: PathBuf) -> Result<Self, FolderError> {
        std::fs::create_dir_all(&path).map_err(|source| FolderError::Io { path: path.clone(), source })?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What the newest receipt and the newest proof of each guest say. That is all that later ones can contradict: a
    /// guest's numbers only grow, so what it signs from now on meets no older receipt.
    pub(crate) fn heads(&self) -> Result<Heads, FolderError> {
        let mut guests: Vec<_> = self.newest()?.into_values().collect();
        guests.sort_by_key(|guest| guest.changed);
        let mut heads = Heads::default();
        for guest in guests.iter().rev().take(MAX_GUESTS).rev() {
            if let Some((_, path)) = &guest.receipt {
                let receipt = read_receipt(path)?.receipt;
                heads
                    .take_receipt(&receipt, 0)
                    .map_err(|reasons| damaged(path, &reasons.first().map_or_else(String::new, ToString::to_string)))?;
            }
            if let Some(path) = &guest.proof {
                let (evidence, proof) = self.read_proof(path)?;
                let commitment = Commitment::of(&as_committed(evidence.clone(), &proof.proof));
                heads
                    .take_proof(&evidence.instance_key, &commitment, &Known::default())
                    .map_err(|reasons| damaged(path, &reasons.first().map_or_else(String::new, ToString::to_string)))?;
            }
        }
        Ok(heads)
    }

    /// Files of each guest by the beginning of its key. Reads names alone, however many receipts there are.
    fn newest(&self) -> Result<HashMap<String, Newest>, FolderError> {
        let failed = |source| FolderError::Io { path: self.0.clone(), source };
        let mut guests = HashMap::<String, Newest>::new();
        for entry in std::fs::read_dir(&self.0).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some((key, sequence)) = receipt_of(name) {
                let guest = guests.entry(key.to_owned()).or_default();
                if guest.receipt.as_ref().is_none_or(|(newest, _)| *newest < sequence) {
                    guest.receipt = Some((sequence, path));
                }
            } else if let Some(key) = proof_of(name) {
                let guest = guests.entry(key.to_owned()).or_default();
                guest.proof = Some(path);
            }
        }
        for guest in guests.values_mut() {
            let files = guest.receipt.iter().map(|(_, path)| path).chain(&guest.proof);
            guest.changed = files.filter_map(|path| path.metadata().ok()?.modified().ok()).max();
        }
        Ok(guests)
    }

    fn read_proof(&self, path: &Path) -> Result<(Evidence, StoredProof), FolderError> {
        let proof = StoredProof::from_canonical(&read(path)?).map_err(|error| damaged(path, &error.to_string()))?;
        let evidence_path = self.0.join(evidence_name(&proof.proof.evidence));
        let evidence = Evidence::from_canonical(&read(&evidence_path)?);
        let evidence = evidence.map_err(|error| damaged(&evidence_path, &error.to_string()))?;
        proof.verify(&evidence).map_err(|error| damaged(path, &error.to_string()))?;
        Ok((evidence, proof))
    }

    /// The refusal of a receipt whose number was stored by an earlier run: nothing of that is written over.
    pub(crate) fn check_stored(&self, receipt: &Receipt) -> Result<Option<types::Refusal>, FolderError> {
        let path = self.0.join(receipt_name(receipt));
        if !path.exists() {
            return Ok(None);
        }
        // A file that is no receipt has the number all the same.
        let is_same = DeliveredReceipt::from_canonical(&read(&path)?).is_ok_and(|stored| stored.receipt == *receipt);
        Ok(Some(taken(is_same)))
    }

    /// Stores a receipt and the evidence that it names. Gives its file.
    pub(crate) fn store_receipt(&self, delivered: &DeliveredReceipt, evidence: &Evidence) -> io::Result<PathBuf> {
        self.store_evidence(&delivered.receipt.evidence, evidence)?;
        let path = self.0.join(receipt_name(&delivered.receipt));
        self.write_new(&path, &delivered.to_canonical().map_err(io::Error::other)?)?;
        Ok(path)
    }

    /// Stores a proof where the one that lies there says of fewer receipts, and the evidence that it names.
    pub(crate) fn store_proof(&self, proof: &StoredProof, evidence: &Evidence) -> io::Result<()> {
        let path = self.0.join(proof_name(&evidence.instance_key));
        let older = read(&path).ok().and_then(|bytes| StoredProof::from_canonical(&bytes).ok());
        if older.is_some_and(|older| older.proof.receipt_count >= proof.proof.receipt_count) {
            return Ok(());
        }
        self.store_evidence(&proof.proof.evidence, evidence)?;
        self.replace(&path, &proof.to_canonical().map_err(io::Error::other)?)
    }

    /// Keeps what contradicts the rest, the first of each guest: with what is stored it shows to others that there are two
    /// chains.
    pub(crate) fn keep_refused(&self, kind: &str, instance_key: &Hex32, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(format!("refused-{kind}-{}.json", short(instance_key)));
        if path.exists() { Ok(()) } else { self.write_new(&path, bytes) }
    }

    /// The evidence that a refused proof names.
    pub(crate) fn store_evidence(&self, digest: &Sha256Digest, evidence: &Evidence) -> io::Result<()> {
        let path = self.0.join(evidence_name(digest));
        if path.exists() {
            return Ok(());
        }
        self.write_new(&path, &evidence.to_canonical().map_err(io::Error::other)?)
    }

    /// What is there already stays: another process may have the same folder.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.written(bytes)?.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists && is_kept(path, bytes) => {}
            Err(error) => return Err(error.error),
        }
        std::fs::File::open(&self.0)?.sync_all()
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.written(bytes)?.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(&self.0)?.sync_all()
    }

    /// Readable by the owner alone: with its salt a receipt lets a guess of the request be confirmed.
    fn written(&self, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    }
}

/// The newest of a guest's files.
#[derive(Debug, Default)]
struct Newest {
    receipt: Option<(u64, PathBuf)>,
    proof: Option<PathBuf>,
    changed: Option<SystemTime>,
}

/// Name of an evidence document in a folder of receipts.
pub(crate) fn evidence_name(digest: &Sha256Digest) -> String {
    format!("evidence-{digest}.json")
}

fn receipt_name(receipt: &Receipt) -> String {
    format!("receipt-{}-{:08}.json", short(&receipt.instance_key), receipt.sequence)
}

fn proof_name(instance_key: &Hex32) -> String {
    format!("proof-{}.json", short(instance_key))
}

fn short(instance_key: &Hex32) -> String {
    instance_key.to_string().chars().take(SHORT_KEY).collect()
}

/// Beginning of the key and number, from the name of a receipt's file.
pub(crate) fn receipt_of(name: &str) -> Option<(&str, u64)> {
    let (key, number) = name.strip_prefix("receipt-")?.strip_suffix(".json")?.split_once('-')?;
    let digits = number.len() >= 8 && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((key, number.parse().ok().filter(|_| digits)?))
}

/// Beginning of the key, from the name of a proof's file.
pub(crate) fn proof_of(name: &str) -> Option<&str> {
    name.strip_prefix("proof-")?.strip_suffix(".json")
}

fn read_receipt(path: &Path) -> Result<DeliveredReceipt, FolderError> {
    let receipt = DeliveredReceipt::from_canonical(&read(path)?).map_err(|error| damaged(path, &error.to_string()))?;
    receipt.signed().verify_signature().map_err(|error| damaged(path, &error.to_string()))?;
    Ok(receipt)
}

/// At most as many bytes as the largest document has, which is evidence.
fn read(path: &Path) -> Result<Vec<u8>, FolderError> {
    let failed = |source| FolderError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let most = Evidence::MAX_BYTES as u64;
    std::fs::File::open(path).map_err(failed)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most { Err(damaged(path, "it is too long")) } else { Ok(bytes) }
}

fn damaged(path: &Path, detail: &str) -> FolderError {
    FolderError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

/// Whether a file holds just these bytes.
fn is_kept(path: &Path, bytes: &[u8]) -> bool {
    std::fs::read(path).is_ok_and(|found| found == bytes)
}

const SHORT_KEY: usize = 16;
