// SPDX-License-Identifier: Apache-2.0
//! One object on its way to the disk: hashed and written at the same time, in two threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use types::Blake3Digest;

use crate::partial::Guarded;

/// Takes the bytes of one object in order.
pub(crate) struct Pipe {
    hash: mpsc::Sender<Bytes>,
    write: mpsc::Sender<Bytes>,
    hashed: JoinHandle<io::Result<blake3::Hash>>,
    written: JoinHandle<io::Result<()>>,
    on_disk: Arc<AtomicU64>,
    taken: u64,
}

/// A thread ended early: its own error says why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stuck;

impl Pipe {
    /// For an object at `offset` of the disk, whose first `present` bytes are there already: those are hashed again.
    pub(crate) fn open(disk: &Arc<Guarded>, offset: u64, present: u64) -> Self {
        let (hash, to_hash) = mpsc::channel(DEPTH);
        let (write, to_write) = mpsc::channel(DEPTH);
        let on_disk = Arc::new(AtomicU64::new(present));
        let (for_hashing, for_writing, counter) = (Arc::clone(disk), Arc::clone(disk), Arc::clone(&on_disk));
        let hashed = tokio::task::spawn_blocking(move || hash_all(for_hashing.file(), offset, present, to_hash));
        let start = offset.saturating_add(present);
        let written = tokio::task::spawn_blocking(move || write_all(for_writing.file(), start, to_write, &counter));
        Self { hash, write, hashed, written, on_disk, taken: present }
    }

    /// Bytes that were taken, with those that were present.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that were handed to the file system.
    pub(crate) fn on_disk(&self) -> u64 {
        self.on_disk.load(Ordering::Relaxed)
    }

    pub(crate) async fn take(&mut self, part: Bytes) -> Result<(), Stuck> {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.write.send(part.clone()).await.map_err(|_| Stuck)?;
        self.hash.send(part).await.map_err(|_| Stuck)?;
        self.taken = self.taken.saturating_add(length);
        Ok(())
    }

    /// Gives up; nothing of it writes to the disk afterwards.
    pub(crate) async fn abandon(self) {
        drop((self.hash, self.write));
        // Why a thread failed matters to nobody any more.
        let _ = (self.written.await, self.hashed.await);
    }

    /// Waits until everything is hashed and on the disk.
    pub(crate) async fn finish(self) -> io::Result<Blake3Digest> {
        drop((self.hash, self.write));
        self.written.await.map_err(io::Error::other)??;
        let hash = self.hashed.await.map_err(io::Error::other)??;
        Ok(Blake3Digest::from_bytes(*hash.as_bytes()))
    }
}

fn hash_all(file: &File, offset: u64, present: u64, mut parts: mpsc::Receiver<Bytes>) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; crate::source::PART];
    let (mut at, mut left) = (offset, present);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(part);
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        (at, left) = (at.saturating_add(length), left.saturating_sub(length));
    }
    while let Some(part) = parts.blocking_recv() {
        hasher.update(&part);
    }
    Ok(hasher.finalize())
}

fn write_all(file: &File, start: u64, mut parts: mpsc::Receiver<Bytes>, counter: &AtomicU64) -> io::Result<()> {
    let mut at = start;
    while let Some(part) = parts.blocking_recv() {
        file.write_all_at(&part, at)?;
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        at = at.saturating_add(length);
        counter.fetch_add(length, Ordering::Relaxed);
    }
    file.sync_data()
}

/// Parts between the source and each thread.
const DEPTH: usize = 8;
