// SPDX-License-Identifier: Apache-2.0
//! The directory of kept collateral. Nothing in it is older, in any part, than what was in it before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tdx_verify::{Collateral, CollateralError, CollateralFacts, CollateralFault, MAX_COLLATERAL_LEN, TrustAnchors};
use types::Refusal;

use crate::Fmspc;

/// A directory of collateral that was verified under one set of anchors.
#[derive(Debug, Clone)]
pub struct Keeper {
    dir: PathBuf,
    anchors: TrustAnchors,
}

/// Collateral that may be used now.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// For which platforms.
    pub fmspc: Fmspc,
    /// The collateral.
    pub collateral: Collateral,
    /// What it says of itself.
    pub facts: CollateralFacts,
}

/// Everything in the directory.
#[derive(Debug)]
pub struct Kept {
    /// What may be used.
    pub usable: Vec<Loaded>,
    /// What may not, and why.
    pub refused: Vec<(Fmspc, OfferError)>,
}

/// Why the directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The system.
    #[error("could not {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A record that this program did not write.
    #[error("{} is malformed: remove it only if you know that the collateral beside it is the newest", .0.display())]
    Malformed(PathBuf),
    /// More files than any service needs.
    #[error("{} has collateral for more than {MAX_KINDS} kinds of platforms", .0.display())]
    TooMany(PathBuf),
}

/// Why collateral was not kept, or is not used.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Its form.
    #[error(transparent)]
    Form(#[from] CollateralError),
    /// Its issuer, or its time.
    #[error(transparent)]
    Fault(#[from] CollateralFault),
    /// It is for other platforms.
    #[error("the collateral is for {found}, asked was {expected}")]
    OtherFmspc {
        /// Asked for.
        expected: Fmspc,
        /// Found.
        found: Fmspc,
    },
    /// A part is older than what was kept before.
    #[error("{field} was {known} and is {found}: an older issue")]
    RolledBack {
        /// Which part.
        field: &'static str,
        /// Kept before.
        known: u64,
        /// Found.
        found: u64,
    },
    /// The directory.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

/// What is remembered about one kind of platform, beside the collateral itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The newest of each part that was ever kept.
    pub(crate) floor: CollateralFacts,
    /// When it was last fetched, seconds since 1970.
    pub(crate) fetched: u64,
    /// Number of the early evaluation, and when it was first seen.
    pub(crate) early: Option<(u32, u64)>,
}

impl Keeper {
    /// A directory, made when it is not there.
    ///
    /// # Errors
    /// [`KeepError::File`].
    pub fn open(dir: &Path, anchors: TrustAnchors) -> Result<Self, KeepError> {
        fs::create_dir_all(dir).map_err(|source| failed("make", dir, source))?;
        Ok(Self { dir: dir.to_owned(), anchors })
    }

    /// Verifies collateral for `fmspc` at `now` and keeps it. `early` is the early evaluation that came with it, where
    /// one came. It gates nothing: what does not verify, or has a
    /// lower number than what stands there, is left out.
    ///
    /// # Errors
    /// [`OfferError`]; then what was kept before is untouched.
    pub fn keep(
        &self,
        fmspc: Fmspc,
        collateral: &[u8],
        early: Option<&[u8]>,
        now: u64,
    ) -> Result<CollateralFacts, OfferError> {
        let facts = self.judge(fmspc, collateral, now)?.facts;
        let _lock = self.lock()?;
        let before = self.record(fmspc)?;
        if let Some(before) = &before {
            not_older(&before.floor, &facts)?;
        }
        // Collateral that is newer than its record says can only be the work of a crash between the two.
        if let Ok(Some(held)) = self.held(fmspc, now) {
            not_older(&held.facts, &facts)?;
        }
        self.write(&self.collateral_path(fmspc), collateral)?;
        let known = self.early_number(fmspc, now).unwrap_or(0);
        let not_less = |bytes: &&[u8]| {
            self.judge(fmspc, bytes, now).is_ok_and(|early| early.facts.tcb_evaluation_data_number >= known)
        };
        if let Some(bytes) = early.filter(not_less) {
            self.write(&self.early_path(fmspc), bytes)?;
        }
        let early = self.early_number(fmspc, now).filter(|number| *number > facts.tcb_evaluation_data_number);
        if early.is_none() {
            remove(&self.early_path(fmspc))?;
        }
        let seen = before.and_then(|before| before.early);
        let early = early.map(|number| seen.filter(|(known, _)| *known == number).unwrap_or((number, now)));
        self.write_record(fmspc, &Record { floor: facts, fetched: now, early })?;
        Ok(facts)
    }

    /// What may be used at `now`, and why the rest may not.
    ///
    /// # Errors
    /// [`KeepError`] when the directory itself can't be read.
    pub fn load(&self, now: u64) -> Result<Kept, KeepError> {
        let (mut usable, mut refused) = (Vec::new(), Vec::new());
        for fmspc in self.kinds()? {
            match self.usable(fmspc, now) {
                Ok(Some(loaded)) => usable.push(loaded),
                Ok(None) => {}
                Err(error) => refused.push((fmspc, error)),
            }
        }
        Ok(Kept { usable, refused })
    }

    /// What is kept for one kind of platform, if it may be used at `now`.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn usable(&self, fmspc: Fmspc, now: u64) -> Result<Option<Loaded>, OfferError> {
        // The record first: a newer one may be written meanwhile, an older one never.
        let record = self.record(fmspc)?;
        let Some(held) = self.held(fmspc, now)? else { return Ok(None) };
        if let Some(record) = record {
            not_older(&record.floor, &held.facts)?;
        }
        Ok(Some(held))
    }

    /// The early evaluation that is kept, if it may be used at `now`.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn early(&self, fmspc: Fmspc, now: u64) -> Result<Option<Loaded>, OfferError> {
        read(&self.early_path(fmspc))?.map(|bytes| self.judge(fmspc, &bytes, now)).transpose()
    }

    /// For which platforms collateral is, or was, kept.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn kinds(&self) -> Result<Vec<Fmspc>, KeepError> {
        let mut kinds = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|source| failed("read", &self.dir, source))? {
            let name = entry.map_err(|source| failed("read", &self.dir, source))?.file_name();
            let fmspc = name.to_str().and_then(|name| name.strip_suffix(RECORD).or_else(|| name.strip_suffix(".json")));
            kinds.extend(fmspc.and_then(|fmspc| fmspc.parse::<Fmspc>().ok()));
            if kinds.len() > MAX_KINDS.saturating_mul(2) {
                return Err(KeepError::TooMany(self.dir.clone()));
            }
        }
        kinds.sort_unstable();
        kinds.dedup();
        Ok(kinds)
    }

    pub(crate) fn record(&self, fmspc: Fmspc) -> Result<Option<Record>, KeepError> {
        let path = self.record_path(fmspc);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|_| KeepError::Malformed(path))
    }

    fn early_number(&self, fmspc: Fmspc, now: u64) -> Option<u32> {
        self.early(fmspc, now).ok().flatten().map(|early| early.facts.tcb_evaluation_data_number)
    }

    fn held(&self, fmspc: Fmspc, now: u64) -> Result<Option<Loaded>, OfferError> {
        read(&self.collateral_path(fmspc))?.map(|bytes| self.judge(fmspc, &bytes, now)).transpose()
    }

    fn judge(&self, expected: Fmspc, bytes: &[u8], now: u64) -> Result<Loaded, OfferError> {
        let collateral = Collateral::from_json(bytes)?;
        let fmspc = Fmspc::from_bytes(*collateral.fmspc());
        if fmspc != expected {
            return Err(OfferError::OtherFmspc { expected, found: fmspc });
        }
        let facts = collateral.check(&self.anchors, now)?;
        Ok(Loaded { fmspc, collateral, facts })
    }

    fn write_record(&self, fmspc: Fmspc, record: &Record) -> Result<(), KeepError> {
        let path = self.record_path(fmspc);
        let bytes = serde_json::to_vec(record).map_err(|e| failed("write", &path, io::Error::other(e)))?;
        self.write(&path, &bytes)
    }

    /// Writes to a temporary file, syncs, renames, syncs the directory.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), KeepError> {
        let written = (|| {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.map_err(|source| failed("write", path, source))
    }

    /// One writer at a time, among processes, too.
    fn lock(&self) -> Result<File, KeepError> {
        let path = self.dir.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        opened.and_then(|file| file.lock().map(|()| file)).map_err(|source| failed("lock", &path, source))
    }

    fn collateral_path(&self, fmspc: Fmspc) -> PathBuf {
        self.dir.join(format!("{fmspc}.json"))
    }

    fn early_path(&self, fmspc: Fmspc) -> PathBuf {
        self.dir.join(format!("{fmspc}.early.json"))
    }

    fn record_path(&self, fmspc: Fmspc) -> PathBuf {
        self.dir.join(format!("{fmspc}{RECORD}"))
    }
}

impl OfferError {
    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let again = "fetch the collateral again from its source";
        match self {
            Self::Form(error) => Refusal::new("collateral_malformed", "collateral", error.to_string(), again),
            Self::Fault(fault) => fault.refusal(),
            Self::OtherFmspc { .. } => {
                Refusal::new("fmspc_mismatch", "collateral.tcb_info.fmspc", self.to_string(), again)
            }
            Self::RolledBack { field, .. } => {
                let fix = "ask another source: this one serves what is out of date";
                Refusal::new("collateral_rollback", &format!("collateral.{field}"), self.to_string(), fix)
            }
            Self::Keep(error) => {
                Refusal::new("collateral_store", "collateral_dir", error.to_string(), "look after the directory")
            }
        }
    }
}

/// No part may be older than it was: a list that forgets a revocation would still be in its time.
fn not_older(known: &CollateralFacts, found: &CollateralFacts) -> Result<(), OfferError> {
    let parts = |facts: &CollateralFacts| {
        [
            ("tcb_evaluation_data_number", facts.tcb_evaluation_data_number.into()),
            ("qe_identity.tcb_evaluation_data_number", facts.qe_evaluation_data_number.into()),
            ("tcb_info.issue_date", facts.tcb_info.issued),
            ("qe_identity.issue_date", facts.qe_identity.issued),
            ("pck_crl.this_update", facts.pck_crl.issued),
            ("root_ca_crl.this_update", facts.root_ca_crl.issued),
        ]
    };
    for ((field, known), (_, found)) in parts(known).into_iter().zip(parts(found)) {
        if found < known {
            return Err(OfferError::RolledBack { field, known, found });
        }
    }
    Ok(())
}

/// A file of capped size; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, KeepError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open", path, source)),
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_COLLATERAL_LEN).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|source| failed("read", path, source))?;
    Ok(Some(bytes))
}

fn remove(path: &Path) -> Result<(), KeepError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> KeepError {
    KeepError::File { action, path: path.to_owned(), source }
}

const RECORD: &str = ".kept.json";
const MAX_KINDS: usize = 64;
