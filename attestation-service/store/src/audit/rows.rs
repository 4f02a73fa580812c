// SPDX-License-Identifier: Apache-2.0
//! The audit log in PostgreSQL: entries, full tiles and the newest checkpoint as rows. Partial tiles are made from the
//! rows below them. Whoever appends holds the checkpoint's row: of all replicas one at a time, in one transaction.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use release::log::{
    Checkpoint, Edge, EntryProof, LogSigner, SignedCheckpoint, TileError, TilePath, Tiles, Tree, leaf_hash, node_hash,
    verify_consistency,
};
use tile_log::AppendError;
use types::Sha256Digest;

use super::AuditError;
use crate::changes;
use crate::database::{Database, DatabaseError};
use crate::sql::{Tx, Value, integer};

/// The log as one process sees it.
pub(crate) struct RowLog {
    signer: LogSigner,
    sequencer: bool,
    known: Mutex<Known>,
    /// The largest head that was read or written. A copy is taken before each look: what is found must extend it.
    seen: Mutex<Seen>,
    set_back: AtomicBool,
}

/// A head that was verified.
#[derive(Debug, Clone, Copy)]
struct Seen {
    size: u64,
    root: Sha256Digest,
}

/// The newest state that this process saw: whatever comes must extend it.
struct Known {
    edge: Edge,
    /// Tiles that the next proofs are likely to need.
    recent: BTreeMap<TilePath, Vec<u8>>,
}

impl RowLog {
    /// Makes the empty log of a new database.
    pub(crate) fn create(tx: &mut Tx<'_>, signer: &LogSigner) -> Result<(), AuditError> {
        let root = Edge::empty().root();
        let note = Checkpoint::new(signer.public().origin(), 0, root).sign(signer)?;
        let sql = "INSERT INTO audit_head (one, size, root, note) VALUES (1, 0, ?1, ?2)";
        tx.execute(sql, &[Value::Blob(root.as_bytes()), Value::Text(&note)])?;
        Ok(())
    }

    /// Looks at the newest state and checks its right edge against the signed checkpoint.
    pub(crate) fn open(database: &Database, signer: LogSigner, sequencer: bool) -> Result<Self, AuditError> {
        let known = database.read(|tx| {
            let head = head(tx, &signer)?;
            loaded(tx, &head).map(|edge| Known { edge, recent: BTreeMap::new() })
        })?;
        let seen = Seen { size: known.edge.size(), root: known.edge.root() };
        let (known, seen) = (Mutex::new(known), Mutex::new(seen));
        Ok(Self { signer, sequencer, known, seen, set_back: AtomicBool::new(false) })
    }

    /// The newest checkpoint, which extends every one that was seen before.
    pub(crate) fn checkpoint(&self, database: &Database) -> Result<SignedCheckpoint, AuditError> {
        let seen = *self.seen();
        self.noted(database.read(|tx| {
            let head = head(tx, &self.signer)?;
            seen.extended_by(tx, &head)?;
            Ok(head)
        }))
    }

    /// Whether the newest look found the log set back.
    pub(super) fn is_set_back(&self) -> bool {
        self.set_back.load(Ordering::Relaxed)
    }

    /// Keeps what a look found.
    fn noted(&self, found: Result<SignedCheckpoint, AuditError>) -> Result<SignedCheckpoint, AuditError> {
        match &found {
            Ok(checkpoint) => {
                let head = checkpoint.head();
                let mut seen = self.seen();
                if head.size() > seen.size {
                    *seen = Seen { size: head.size(), root: *head.root() };
                }
                self.set_back.store(false, Ordering::Relaxed);
            }
            Err(AuditError::RolledBack { .. }) => self.set_back.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        found
    }

    /// Two words that are replaced together.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(
        &self,
        database: &Database,
        entries: &[&[u8]],
    ) -> Result<Vec<Result<EntryProof, AuditError>>, AuditError> {
        // What only the operator's changes queued may be entered beside a service, too.
        if !entries.is_empty() {
            self.may_append()?;
        }
        let mut known = self.known.lock().map_err(|_| AuditError::Poisoned)?;
        let seen = *self.seen();
        let mut made = None;
        let checkpoint = self.noted(database.write(|tx| {
            let (next, checkpoint, indexes) = self.extend(tx, &known, &seen, entries)?;
            made = Some((next, indexes));
            Ok(checkpoint)
        }))?;
        let (next, indexes) = made.ok_or(AuditError::Poisoned)?;
        let size = next.edge.size();
        let tiles = Cached { recent: RefCell::new(next.recent), below: DatabaseTiles(database) };
        let tree = Tree::new(&tiles, size);
        let proofs = indexes.map(|index| proof(&tree, index, &checkpoint)).collect();
        *known = Known { edge: next.edge, recent: tiles.recent.into_inner() };
        Ok(proofs)
    }

    /// Appends what is queued, and then `entries`, whose indexes it gives.
    fn extend(
        &self,
        tx: &mut Tx<'_>,
        known: &Known,
        seen: &Seen,
        entries: &[&[u8]],
    ) -> Result<(Known, SignedCheckpoint, Range<u64>), AuditError> {
        let (mut head, waiting) = locked_head(tx, &self.signer)?;
        let mut next = caught_up(tx, known, seen, &head)?;
        if waiting {
            // Where more waits than is written at once, each of these changes may have decided the entries.
            loop {
                let queued = changes::queued(tx, 0)?;
                let bytes: Vec<_> = queued.iter().map(|one| one.entry.as_slice()).collect();
                head = self.written(tx, &mut next, head, &bytes)?;
                if let Some(newest) = queued.last() {
                    changes::entered(tx, newest.number)?;
                }
                if !changes::is_full(&queued) {
                    break;
                }
            }
        }
        let head = self.written(tx, &mut next, head, entries)?;
        let size = next.edge.size();
        let own = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        Ok((next, head, size.saturating_sub(own)..size))
    }

    /// Writes entries behind `head`, and gives the new one.
    fn written(
        &self,
        tx: &mut Tx<'_>,
        next: &mut Known,
        head: SignedCheckpoint,
        entries: &[&[u8]],
    ) -> Result<SignedCheckpoint, AuditError> {
        if entries.is_empty() {
            return Ok(head);
        }
        let first = next.edge.size();
        for entry in entries {
            next.edge.append(entry).map_err(AppendError::Edge)?;
        }
        let checkpoint = signed(&self.signer, next.edge.size(), next.edge.root())?;
        let files = next.edge.take_files();
        write(tx, first, entries, &files, &checkpoint)?;
        next.keep(files);
        Ok(checkpoint)
    }

    pub(super) fn proof(&self, database: &Database, index: u64) -> Result<EntryProof, AuditError> {
        let checkpoint = self.checkpoint(database)?;
        let tiles = DatabaseTiles(database);
        proof(&Tree::new(&tiles, checkpoint.head().size()), index, &checkpoint)
    }

    /// Replaces the checkpoint by the same head with more cosignatures.
    pub(super) fn set_cosigned(&self, database: &Database, cosigned: &SignedCheckpoint) -> Result<(), AuditError> {
        self.may_append()?;
        let verified = SignedCheckpoint::verify(cosigned.note(), self.signer.public())?;
        database.write(|tx| {
            if locked_head(tx, &self.signer)?.0.head() != verified.head() {
                return Err(release::log::CheckpointError::Form("another head than the log's").into());
            }
            tx.execute("UPDATE audit_head SET note = ?1", &[Value::Text(verified.note())])?;
            Ok(())
        })
    }

    fn may_append(&self) -> Result<(), AuditError> {
        if self.sequencer { Ok(()) } else { Err(AuditError::NotSequencer) }
    }
}

impl Seen {
    /// Refuses a head that is smaller, or of another history.
    fn extended_by(&self, tx: &mut Tx<'_>, head: &SignedCheckpoint) -> Result<(), AuditError> {
        let (found, root) = (head.head().size(), head.head().root());
        let rolled_back = AuditError::RolledBack { known: self.size, found };
        if found < self.size {
            return Err(rolled_back);
        }
        if found == self.size {
            return if root == &self.root { Ok(()) } else { Err(rolled_back) };
        }
        let tiles = TxTiles(RefCell::new(tx));
        let proof = Tree::new(&tiles, found).consistency_proof(self.size).map_err(tile_log::ReadError::Tile)?;
        verify_consistency(self.size, &self.root, found, root, &proof).map_err(|_| rolled_back)
    }
}

/// Writes a log that is there already, from its first entry on, into an empty database.
pub(crate) struct RowWriter<'a> {
    signer: &'a LogSigner,
    edge: Edge,
}

impl<'a> RowWriter<'a> {
    pub(crate) fn create(tx: &mut Tx<'_>, signer: &'a LogSigner) -> Result<Self, AuditError> {
        RowLog::create(tx, signer)?;
        Ok(Self { signer, edge: Edge::empty() })
    }

    pub(crate) fn append(&mut self, tx: &mut Tx<'_>, entries: &[Vec<u8>]) -> Result<(), AuditError> {
        let first = self.edge.size();
        for entry in entries {
            self.edge.append(entry).map_err(AppendError::Edge)?;
        }
        let checkpoint = signed(self.signer, self.edge.size(), self.edge.root())?;
        let entries: Vec<_> = entries.iter().map(Vec::as_slice).collect();
        write(tx, first, &entries, &self.edge.take_files(), &checkpoint)
    }

    /// Puts the checkpoint that the log had, with its cosignatures, in the place of our own.
    pub(crate) fn finish(self, tx: &mut Tx<'_>, checkpoint: &SignedCheckpoint) -> Result<(), AuditError> {
        if self.edge.size() != checkpoint.head().size() || &self.edge.root() != checkpoint.head().root() {
            return Err(AuditError::Root);
        }
        tx.execute("UPDATE audit_head SET note = ?1", &[Value::Text(checkpoint.note())])?;
        Ok(())
    }
}

impl Known {
    /// Takes in tiles of the newest size, and drops those that are of no use any more.
    fn keep(&mut self, files: Vec<(TilePath, Vec<u8>)>) {
        let size = self.edge.size();
        self.recent.retain(|path, _| {
            let level = path.level().unwrap_or_default();
            !path.is_full() && TilePath::in_tree(level, path.index(), size) == Some(*path)
        });
        self.recent.extend(files.into_iter().filter(|(path, _)| path.level().is_some()));
    }
}

/// The newest checkpoint, verified.
fn head(tx: &mut Tx<'_>, signer: &LogSigner) -> Result<SignedCheckpoint, AuditError> {
    let mut row = tx.first("SELECT note FROM audit_head", &[])?.ok_or(DatabaseError::Row("audit_head"))?;
    Ok(SignedCheckpoint::verify(&row.text(0)?, signer.public())?)
}

/// [`head`], with its row locked until the end of the transaction; and whether changes of the operator are queued.
fn locked_head(tx: &mut Tx<'_>, signer: &LogSigner) -> Result<(SignedCheckpoint, bool), AuditError> {
    let sql = "SELECT note, (SELECT count(*) FROM operator_changes) FROM audit_head WHERE one = 1 FOR UPDATE";
    let mut row = tx.first(sql, &[])?.ok_or(DatabaseError::Row("audit_head"))?;
    Ok((SignedCheckpoint::verify(&row.text(0)?, signer.public())?, row.int(1)? > 0))
}

/// The state of `head`, which must extend the known one, and the one that was seen.
fn caught_up(tx: &mut Tx<'_>, known: &Known, seen: &Seen, head: &SignedCheckpoint) -> Result<Known, AuditError> {
    let (size, found) = (known.edge.size(), head.head().size());
    let rolled_back = AuditError::RolledBack { known: size.max(seen.size), found };
    if found < size.max(seen.size) || (size == seen.size && known.edge.root() != seen.root) {
        return Err(rolled_back);
    }
    if found - size > MAX_STEPS {
        seen.extended_by(tx, head)?;
        let tiles = TxTiles(RefCell::new(tx));
        let proof = Tree::new(&tiles, found).consistency_proof(size).map_err(tile_log::ReadError::Tile)?;
        verify_consistency(size, &known.edge.root(), found, head.head().root(), &proof).map_err(|_| rolled_back)?;
        let edge = loaded(tiles.0.into_inner(), head)?;
        return Ok(Known { edge, recent: BTreeMap::new() });
    }
    let mut next = Known { edge: known.edge.clone(), recent: known.recent.clone() };
    if found > size {
        // What other replicas appended.
        for entry in entries(tx, size, found)? {
            next.edge.append(&entry).map_err(AppendError::Edge)?;
            if next.edge.size() == seen.size && next.edge.root() != seen.root {
                return Err(rolled_back);
            }
        }
        let files = next.edge.take_files();
        next.keep(files);
    }
    if next.edge.size() != found || &next.edge.root() != head.head().root() {
        return Err(rolled_back);
    }
    Ok(next)
}

/// The edge of `head`, checked against its root.
fn loaded(tx: &mut Tx<'_>, head: &SignedCheckpoint) -> Result<Edge, AuditError> {
    let tiles = TxTiles(RefCell::new(tx));
    let edge = Edge::load(&tiles, head.head().size()).map_err(tile_log::ReadError::Tile)?;
    if &edge.root() == head.head().root() { Ok(edge) } else { Err(AuditError::Root) }
}

fn signed(signer: &LogSigner, size: u64, root: Sha256Digest) -> Result<SignedCheckpoint, AuditError> {
    let note = Checkpoint::new(signer.public().origin(), size, root).sign(signer)?;
    Ok(SignedCheckpoint::verify(&note, signer.public())?)
}

fn proof<T: Tiles>(tree: &Tree<'_, T>, index: u64, checkpoint: &SignedCheckpoint) -> Result<EntryProof, AuditError> {
    let make = || {
        Ok(EntryProof {
            index,
            leaf: tree.leaf(index)?,
            tree_size: tree.size(),
            path: tree.inclusion_proof(index)?,
            checkpoint: checkpoint.note().to_owned(),
        })
    };
    make().map_err(|error| AuditError::Read(tile_log::ReadError::Tile(error)))
}

fn write(
    tx: &mut Tx<'_>,
    first: u64,
    entries: &[&[u8]],
    files: &[(TilePath, Vec<u8>)],
    checkpoint: &SignedCheckpoint,
) -> Result<(), AuditError> {
    insert_entries(tx, first, entries)?;
    for (path, bytes) in files.iter().filter(|(path, _)| path.is_full()) {
        // A full bundle's entries are rows already.
        let Some(level) = path.level() else { continue };
        let hashes = path.hashes(bytes).map_err(tile_log::ReadError::Tile)?;
        let root = root_of(&hashes).ok_or(AuditError::Root)?;
        let sql = "INSERT INTO audit_tiles (level, number, hashes, root) VALUES (?1, ?2, ?3, ?4)";
        let number = integer("audit_tiles", path.index())?;
        tx.execute(
            sql,
            &[Value::Int(level.into()), Value::Int(number), Value::Blob(bytes), Value::Blob(root.as_bytes())],
        )?;
    }
    let size = integer("audit_head", checkpoint.head().size())?;
    tx.execute(
        "UPDATE audit_head SET size = ?1, root = ?2, note = ?3",
        &[Value::Int(size), Value::Blob(checkpoint.head().root().as_bytes()), Value::Text(checkpoint.note())],
    )?;
    Ok(())
}

/// One statement for all: a round trip for each would be most of the time that the row is locked.
fn insert_entries(tx: &mut Tx<'_>, first: u64, entries: &[&[u8]]) -> Result<(), DatabaseError> {
    let first = integer("audit_entries", first)?;
    match tx {
        Tx::Postgres(session) => {
            let numbers: Vec<i64> = (first..).take(entries.len()).collect();
            let sql = "INSERT INTO audit_entries (number, entry) SELECT * FROM unnest(?1::bigint[], ?2::bytea[])";
            session.execute_with(sql, &[&numbers, &entries]).map(drop)
        }
        Tx::Sqlite(_) => Err(DatabaseError::Row("audit_entries")),
    }
}

fn entries(tx: &mut Tx<'_>, from: u64, until: u64) -> Result<Vec<Vec<u8>>, DatabaseError> {
    let sql = "SELECT entry FROM audit_entries WHERE number >= ?1 AND number < ?2 ORDER BY number";
    let (from, until) = (integer("audit_entries", from)?, integer("audit_entries", until)?);
    tx.query(sql, &[Value::Int(from), Value::Int(until)])?.into_iter().map(|mut row| row.blob(0)).collect()
}

/// Root of the complete subtree over a power of two of hashes.
fn root_of(hashes: &[Sha256Digest]) -> Option<Sha256Digest> {
    match hashes {
        [one] => Some(*one),
        [] => None,
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            Some(node_hash(&root_of(left)?, &root_of(right)?))
        }
    }
}

/// The log's tiles, each read by itself.
pub(crate) struct DatabaseTiles<'a>(pub(crate) &'a Database);

/// The same inside a transaction.
struct TxTiles<'a, 'b>(RefCell<&'a mut Tx<'b>>);

/// Tiles that are at hand, and the others.
struct Cached<'a> {
    recent: RefCell<BTreeMap<TilePath, Vec<u8>>>,
    below: DatabaseTiles<'a>,
}

impl Tiles for DatabaseTiles<'_> {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        found(path, self.0.read(|tx| tile(tx, path)))
    }
}

impl Tiles for TxTiles<'_, '_> {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        found(path, tile(&mut self.0.borrow_mut(), path))
    }
}

impl Tiles for Cached<'_> {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        if let Some(bytes) = self.recent.borrow().get(path) {
            return Ok(bytes.clone());
        }
        let bytes = self.below.read(path)?;
        self.recent.borrow_mut().insert(*path, bytes.clone());
        Ok(bytes)
    }
}

fn found(path: &TilePath, read: Result<Option<Vec<u8>>, DatabaseError>) -> Result<Vec<u8>, TileError> {
    match read {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(TileError::Missing(*path)),
        Err(error) => Err(TileError::Read { path: *path, source: error.into() }),
    }
}

/// `None` where the log has fewer entries.
fn tile(tx: &mut Tx<'_>, path: &TilePath) -> Result<Option<Vec<u8>>, DatabaseError> {
    let number = integer("audit_tiles", path.index())?;
    if let (Some(level), true) = (path.level(), path.is_full()) {
        let sql = "SELECT hashes FROM audit_tiles WHERE level = ?1 AND number = ?2";
        let row = tx.first(sql, &[Value::Int(level.into()), Value::Int(number)])?;
        return row.map(|mut row| row.blob(0)).transpose();
    }
    let from = path.index().checked_mul(256).ok_or(DatabaseError::Row("audit_tiles"))?;
    let until = from.checked_add(path.width().into()).ok_or(DatabaseError::Row("audit_tiles"))?;
    let parts: Vec<Vec<u8>> = match path.level() {
        None => entries(tx, from, until)?.into_iter().map(bundled).collect::<Option<_>>().unwrap_or_default(),
        Some(0) => entries(tx, from, until)?.iter().map(|entry| leaf_hash(entry).as_bytes().to_vec()).collect(),
        Some(level) => {
            let sql = "SELECT root FROM audit_tiles WHERE level = ?1 AND number >= ?2 AND number < ?3 ORDER BY number";
            let (from, until) = (integer("audit_tiles", from)?, integer("audit_tiles", until)?);
            let below = i64::from(level.saturating_sub(1));
            let rows = tx.query(sql, &[Value::Int(below), Value::Int(from), Value::Int(until)])?;
            rows.into_iter().map(|mut row| row.blob(0)).collect::<Result<_, _>>()?
        }
    };
    Ok((parts.len() == usize::from(path.width())).then(|| parts.concat()))
}

/// An entry as it stands in a bundle; `None` for one that is too long to be in one.
fn bundled(entry: Vec<u8>) -> Option<Vec<u8>> {
    let length = u16::try_from(entry.len()).ok()?.to_be_bytes();
    Some([length.as_slice(), &entry].concat())
}

/// Other replicas' entries that are taken in one by one; beyond that the log is looked at anew.
const MAX_STEPS: u64 = 2048;
