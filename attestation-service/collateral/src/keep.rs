// SPDX-License-Identifier: Apache-2.0
//! The directory of kept collateral. Nothing in it is older, in any part, than what was in it before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tdx_verify::{Collateral, CollateralFacts, MAX_COLLATERAL_LEN, TrustAnchors};
use types::Sha256Digest;

use crate::{
    Fmspc, PckCa, Wanted,
    offer::{OfferError, not_older},
};

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

/// What is remembered about one kind of platform, beside the collateral itself.
///
/// It is written before the collateral and after it: whatever fails in between, no floor is below what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The authority of the PCK certificates.
    #[serde(default)]
    pub(crate) ca: PckCa,
    /// The newest of each part that was ever kept.
    pub(crate) floor: CollateralFacts,
    /// What is being put in the collateral's place. It counts as kept from when the file has this digest.
    #[serde(default)]
    pub(crate) next: Option<(Sha256Digest, CollateralFacts)>,
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

    /// Verifies collateral for what is `wanted` at `now` and keeps it. `early` is the early evaluation that came with it, where
    /// one came. It gates nothing: what does not verify, or has a
    /// lower number than what stands there, is left out.
    ///
    /// # Errors
    /// [`OfferError`]; then what was kept before is untouched.
    pub fn keep(
        &self,
        wanted: &Wanted,
        collateral: &[u8],
        early: Option<&[u8]>,
        now: u64,
    ) -> Result<CollateralFacts, OfferError> {
        let Wanted { fmspc, ca } = *wanted;
        let facts = self.judge(fmspc, Some(ca), collateral, now)?.facts;
        let _lock = self.lock()?;
        let before = self.record(fmspc)?;
        let held = read(&self.collateral_path(fmspc))?;
        let floor = before.map(|before| before.floor_with(held.as_deref()));
        if let Some(floor) = &floor {
            not_older(floor, &facts)?;
        }
        // Newer than its record: somebody put it there.
        if let Some(Ok(held)) = held.map(|held| self.judge(fmspc, None, &held, now)) {
            not_older(&held.facts, &facts)?;
        }
        // The first has nothing below it.
        self.announce(wanted, before, floor.unwrap_or(facts), collateral, facts)?;
        self.write(&self.collateral_path(fmspc), collateral)?;
        let number = self.keep_early(wanted, early, facts.tcb_evaluation_data_number, now)?;
        let seen = before.and_then(|before| before.early);
        let early = number.map(|number| seen.filter(|(known, _)| *known == number).unwrap_or((number, now)));
        self.write_record(fmspc, &Record { ca, floor: facts, fetched: now, early, next: None })?;
        Ok(facts)
    }

    /// Says in the record what is about to be written.
    fn announce(
        &self,
        wanted: &Wanted,
        before: Option<Record>,
        floor: CollateralFacts,
        collateral: &[u8],
        facts: CollateralFacts,
    ) -> Result<(), KeepError> {
        let next = Some((Sha256Digest::of(collateral), facts));
        let before = before.unwrap_or(Record { ca: wanted.ca, floor, fetched: 0, early: None, next });
        self.write_record(wanted.fmspc, &Record { floor, next, ..before })
    }

    /// The number of the early evaluation that stands there after this, if it is above the one in force.
    fn keep_early(
        &self,
        wanted: &Wanted,
        early: Option<&[u8]>,
        in_force: u32,
        now: u64,
    ) -> Result<Option<u32>, KeepError> {
        let fmspc = wanted.fmspc;
        let known = self.early_number(fmspc, now).unwrap_or(0);
        let not_less = |bytes: &&[u8]| {
            self.judge(fmspc, Some(wanted.ca), bytes, now)
                .is_ok_and(|early| early.facts.tcb_evaluation_data_number >= known)
        };
        if let Some(bytes) = early.filter(not_less) {
            self.write(&self.early_path(fmspc), bytes)?;
        }
        let number = self.early_number(fmspc, now).filter(|number| *number > in_force);
        if number.is_none() {
            remove(&self.early_path(fmspc))?;
        }
        Ok(number)
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
        let Some(bytes) = read(&self.collateral_path(fmspc))? else { return Ok(None) };
        let held = self.judge(fmspc, record.map(|record| record.ca), &bytes, now)?;
        if let Some(record) = record {
            not_older(&record.floor, &held.facts)?;
        }
        Ok(Some(held))
    }

    /// Whether collateral from elsewhere may be used beside what is kept: its list of revoked PCK certificates is of the
    /// authority that is kept for its platforms, whose certificates another's judges none of, and no part of it is older
    /// than what was ever kept. Of what is not valid at `now` nothing is asked: it serves nobody.
    ///
    /// # Errors
    /// [`OfferError`], also where it can't be read what was kept.
    pub fn admits(&self, collateral: &Collateral, now: u64) -> Result<(), OfferError> {
        let Ok(facts) = collateral.check(&self.anchors, now) else { return Ok(()) };
        let fmspc = Fmspc::from_bytes(*collateral.fmspc());
        let Some(record) = self.record(fmspc)? else { return Ok(()) };
        same_ca(record.ca, collateral)?;
        let held = read(&self.collateral_path(fmspc))?;
        not_older(&record.floor_with(held.as_deref()), &facts)
    }

    /// The early evaluation that is kept, if it may be used at `now`.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn early(&self, fmspc: Fmspc, now: u64) -> Result<Option<Loaded>, OfferError> {
        read(&self.early_path(fmspc))?.map(|bytes| self.judge(fmspc, None, &bytes, now)).transpose()
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

    pub(crate) const fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    pub(crate) fn record(&self, fmspc: Fmspc) -> Result<Option<Record>, KeepError> {
        let path = self.record_path(fmspc);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|_| KeepError::Malformed(path))
    }

    fn early_number(&self, fmspc: Fmspc, now: u64) -> Option<u32> {
        self.early(fmspc, now).ok().flatten().map(|early| early.facts.tcb_evaluation_data_number)
    }

    fn judge(&self, expected: Fmspc, ca: Option<PckCa>, bytes: &[u8], now: u64) -> Result<Loaded, OfferError> {
        let collateral = Collateral::from_json(bytes)?;
        let fmspc = Fmspc::from_bytes(*collateral.fmspc());
        if fmspc != expected {
            return Err(OfferError::OtherFmspc { expected, found: fmspc });
        }
        let facts = collateral.check(&self.anchors, now)?;
        if let Some(expected) = ca {
            same_ca(expected, &collateral)?;
        }
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

impl Record {
    /// The newest of each part that was ever kept, with what is `held` now: a file that was being put there counts.
    fn floor_with(&self, held: Option<&[u8]>) -> CollateralFacts {
        let next = self.next.filter(|(digest, _)| held.is_some_and(|held| Sha256Digest::of(held) == *digest));
        next.map_or(self.floor, |(_, facts)| facts)
    }
}

/// Whether the list of revoked PCK certificates is of this authority, in collateral whose check established that it is of
/// the issuer that it names.
fn same_ca(expected: PckCa, checked: &Collateral) -> Result<(), OfferError> {
    let found = PckCa::of_list(checked.pck_crl());
    if found == Some(expected) { Ok(()) } else { Err(OfferError::OtherCa { expected, found }) }
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

#[cfg(test)]
mod tests {
    use tdx_sim::SimulatedPlatform;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const MONTH: u64 = 31 * 86_400;

    struct World {
        platform: SimulatedPlatform,
        dir: tempfile::TempDir,
        keeper: Keeper,
        wanted: Wanted,
    }

    fn world() -> World {
        let (platform, dir) = (SimulatedPlatform::generate(NOW).unwrap(), tempfile::tempdir().unwrap());
        let keeper = Keeper::open(dir.path(), TrustAnchors::custom(platform.root_der().to_vec())).unwrap();
        World { platform, dir, keeper, wanted: "53494d000000".parse().unwrap() }
    }

    impl World {
        fn issue(&self, number: u32, at: u64) -> Vec<u8> {
            self.platform.collateral_numbered(at, number, None).unwrap().to_json().into_bytes()
        }

        fn keep(&self, number: u32, at: u64) -> Result<CollateralFacts, OfferError> {
            self.keep_this(&self.issue(number, at), at)
        }

        fn keep_this(&self, bytes: &[u8], at: u64) -> Result<CollateralFacts, OfferError> {
            self.keeper.keep(&self.wanted, bytes, None, at)
        }

        fn path(&self) -> PathBuf {
            self.keeper.collateral_path(self.wanted.fmspc)
        }

        fn number(&self, now: u64) -> u32 {
            self.keeper.usable(self.wanted.fmspc, now).unwrap().unwrap().facts.tcb_evaluation_data_number
        }
    }

    /// The last write failed: what was put there counts, also when its time is over.
    #[test]
    fn the_floor_holds_though_the_record_was_not_finished() {
        let world = world();
        world.keep(17, NOW).unwrap();
        let newer = world.issue(18, NOW);
        let announced = announce(&world, &newer);
        world.keep_this(&newer, NOW).unwrap();
        fs::write(world.keeper.record_path(world.wanted.fmspc), announced).unwrap();
        assert_eq!(world.number(NOW), 18);
        for at in [NOW, NOW + MONTH] {
            let refused = world.keep(17, at).unwrap_err();
            let number = "tcb_evaluation_data_number";
            assert!(matches!(refused, OfferError::RolledBack { field, known: 18, .. } if field == number), "{refused}");
        }
        world.keep(18, NOW + MONTH).unwrap();
        assert_eq!(world.number(NOW + MONTH), 18);
    }

    /// The record as it stands when the collateral itself can't be written.
    fn announce(world: &World, bytes: &[u8]) -> Vec<u8> {
        let (path, aside) = (world.path(), world.dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        // No file can be put in the place of a directory; that it can't be read is told before anything is written.
        fs::create_dir(&path).unwrap();
        let before = fs::read(world.keeper.record_path(world.wanted.fmspc)).unwrap();
        assert_eq!(world.keep_this(bytes, NOW).unwrap_err().refusal().code, "collateral_store");
        assert_eq!(fs::read(world.keeper.record_path(world.wanted.fmspc)).unwrap(), before);
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        let facts = world.keeper.judge(world.wanted.fmspc, None, bytes, NOW).unwrap().facts;
        let record = world.keeper.record(world.wanted.fmspc).unwrap().unwrap();
        world.keeper.announce(&world.wanted, Some(record), record.floor, bytes, facts).unwrap();
        fs::read(world.keeper.record_path(world.wanted.fmspc)).unwrap()
    }

    /// The collateral was announced and not written: what stood there stays in use, and its successor may be any.
    #[test]
    fn what_was_announced_alone_raises_no_floor() {
        let world = world();
        world.keep(17, NOW).unwrap();
        announce(&world, &world.issue(19, NOW));
        assert_eq!(world.number(NOW), 17);
        world.keep(18, NOW).unwrap();
        assert_eq!(world.number(NOW), 18);
    }

    /// Beside what is kept nothing is used that judges none of its platforms, however new.
    #[test]
    fn a_file_of_another_authority_is_not_used_beside_what_is_kept() {
        let world = world();
        let file = |json: String| Collateral::from_json(json.as_bytes()).unwrap();
        let later = NOW + 86_400;
        let same = file(world.platform.collateral(later, None).unwrap().to_json());
        let other = file(world.platform.collateral_of_processor_ca(later).unwrap().to_json());
        other.check(&world.keeper.anchors, later).unwrap();
        world.keeper.admits(&other, later).unwrap();
        let record = |world: &World| world.keeper.record(world.wanted.fmspc).unwrap().unwrap();
        world.keep(17, NOW).unwrap();
        world.keeper.admits(&same, later).unwrap();
        let refused = |collateral: &Collateral| match world.keeper.admits(collateral, later) {
            Err(OfferError::OtherCa { expected, found }) => Some((expected, found)),
            _ => None,
        };
        assert_eq!(refused(&other), Some((PckCa::Platform, Some(PckCa::Processor))));
        assert_eq!(world.keeper.admits(&other, later).unwrap_err().refusal().code, "pck_ca_mismatch");
        // The other way round.
        let processor = Record { ca: PckCa::Processor, ..record(&world) };
        world.keeper.write_record(world.wanted.fmspc, &processor).unwrap();
        world.keeper.admits(&other, later).unwrap();
        assert_eq!(refused(&same), Some((PckCa::Processor, Some(PckCa::Platform))));
    }

    #[test]
    fn the_list_is_of_the_wanted_authority() {
        let world = world();
        let processor = Wanted { ca: PckCa::Processor, ..world.wanted };
        let refused = world.keeper.keep(&processor, &world.issue(17, NOW), None, NOW).unwrap_err();
        let (expected, found) = (PckCa::Processor, Some(PckCa::Platform));
        assert!(matches!(&refused, OfferError::OtherCa { expected: e, found: f } if (*e, *f) == (expected, found)));
        assert_eq!(refused.refusal().code, "pck_ca_mismatch");
        assert_eq!(world.keeper.kinds().unwrap(), []);
        // What is kept is judged by the record's authority.
        world.keep(17, NOW).unwrap();
        let fmspc = world.wanted.fmspc;
        let record = world.keeper.record(fmspc).unwrap().unwrap();
        world.keeper.write_record(fmspc, &Record { ca: PckCa::Processor, ..record }).unwrap();
        assert_eq!(world.keeper.usable(fmspc, NOW).unwrap_err().refusal().code, "pck_ca_mismatch");
        // And renewed from that, after a restart.
        let source = crate::Source::new("http://127.0.0.1:1", || Ok(Vec::new())).unwrap();
        let refresher = crate::Refresher::new(source, world.keeper.clone(), Vec::new()).unwrap();
        assert_eq!(refresher.wanted(), [processor]);
    }
}
