// SPDX-License-Identifier: Apache-2.0
//! Fetching a pack, object by object.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::disk::Layout;
use model::{Object, PackIndex};
use nix::fcntl::Flock;
use tokio::time::Instant;
use types::{Blake3Digest, Document as _};

use crate::error::{CacheError, SourceError};
use crate::partial::Partial;
use crate::pipe::Pipe;
use crate::source::{Limits, Source};
use crate::store::{Cache, HeldPack, disk_length};

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pack.
    pub root: &'a Blake3Digest,
    /// The model that it must say it is of, if that is known.
    pub identity: Option<&'a Blake3Digest>,
    /// Where from, the preferred one first.
    pub sources: &'a [Source],
    /// How long they may take.
    pub limits: Limits,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes of ciphertext that are here.
    pub done: u64,
    /// Of all.
    pub total: u64,
}

impl Cache {
    /// Gives the pack, and fetches it if it is not here, or is here with a damaged `pack.json`. Its other bytes are not
    /// hashed again ([`Cache::verify`] does that). What was fetched before a failure stays for the next call.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn fetch(
        &self,
        request: &Request<'_>,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<HeldPack, CacheError> {
        match self.hold(request.root) {
            Ok(Some(held)) => return checked(held, request),
            Ok(None) | Err(CacheError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let lock = self.wait_for_lock(request.root).await?;
        // Whoever had the lock may have fetched it.
        if let Some(held) = self.hold_or_clear(request.root)? {
            return checked(held, request);
        }
        let mut sources = Sources::new(request);
        let index = sources.index().await?;
        if let Some(expected) = request.identity
            && index.identity != *expected
        {
            let (root, expected, found) = (*request.root, *expected, index.identity);
            return Err(CacheError::Identity { root, expected, found });
        }
        self.fetch_objects(&mut sources, &index, Arc::new(lock), progress).await?;
        self.hold(request.root)?.ok_or(CacheError::Missing { root: *request.root })
    }

    /// Holds a pack, if it is here. One whose public part is damaged goes, unless somebody holds it: then that is said.
    /// The caller has the lock of its fetch.
    fn hold_or_clear(&self, root: &Blake3Digest) -> Result<Option<HeldPack>, CacheError> {
        match self.hold(root) {
            Err(error @ CacheError::Damaged { .. }) => {
                if self.remove(root)? {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            // What has no disk is in the way of the whole one.
            Ok(None) => self.remove(root).map(|_| None),
            other => other,
        }
    }

    async fn wait_for_lock(&self, root: &Blake3Digest) -> Result<Flock<File>, CacheError> {
        loop {
            if let Some(lock) = self.try_lock(root)? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    async fn fetch_objects(
        &self,
        sources: &mut Sources<'_>,
        index: &PackIndex,
        lock: Arc<Flock<File>>,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<(), CacheError> {
        let root = sources.request.root;
        let damaged = |source| CacheError::Damaged { root: *root, source };
        let layout = Layout::of(index).map_err(damaged)?;
        let directory = self.partial(root);
        self.make_room(root, layout.length, disk_length(&directory))?;
        let mut partial = Partial::open(&directory, index, &layout, lock)?;
        let mut bytes = FetchProgress { done: 0, total: index.ciphertext_length() };
        for (object, offset) in index.objects.iter().zip(&layout.offsets) {
            if !partial.has(object) {
                let before = bytes.done;
                let report =
                    |of_object: u64| progress(FetchProgress { done: before.saturating_add(of_object), ..bytes });
                let place = Place { object, offset: *offset, path: &directory };
                sources.fetch_object(&mut partial, place, &report).await?;
            }
            bytes.done = bytes.done.saturating_add(object.length);
            progress(bytes);
        }
        let public = index
            .to_canonical()
            .map_err(|error| damaged(model::PackError::Malformed { field: "pack.json", detail: error.to_string() }))?;
        partial.finish(&public, &self.pack(root))
    }
}

fn checked(held: HeldPack, request: &Request<'_>) -> Result<HeldPack, CacheError> {
    match request.identity {
        Some(expected) if held.identity() != expected => {
            Err(CacheError::Identity { root: *request.root, expected: *expected, found: *held.identity() })
        }
        _ => Ok(held),
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    object: &'a Object,
    offset: u64,
    path: &'a std::path::Path,
}

/// The sources of one fetch, and what is known of them.
struct Sources<'a> {
    request: &'a Request<'a>,
    /// The one to ask next.
    next: usize,
    /// Gave wrong bytes, or refused who asks: not asked again.
    bad: Vec<bool>,
    failures: Vec<(String, SourceError)>,
}

impl<'a> Sources<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        Self { request, next: 0, bad: vec![false; request.sources.len()], failures: Vec::new() }
    }

    fn pick(&self) -> Option<(usize, &'a Source)> {
        let number = self.request.sources.len();
        let order = (0..number).filter_map(|step| self.next.checked_add(step)?.checked_rem(number));
        let at = order.into_iter().find(|at| self.bad.get(*at) == Some(&false))?;
        Some((at, self.request.sources.get(at)?))
    }

    fn others(&self, at: usize) -> bool {
        self.bad.iter().enumerate().any(|(other, bad)| other != at && !bad)
    }

    /// Notes a failure; the next one is asked from now on.
    fn failed(&mut self, at: usize, error: SourceError) {
        let fatal = matches!(
            error,
            SourceError::Digest(_)
                | SourceError::Root
                | SourceError::Index
                | SourceError::Length
                | SourceError::Encoded
                // Asked again it says the same, and a store may count who is wrong too often.
                | SourceError::Credentials { .. }
                | SourceError::Store { .. }
        );
        if let Some(bad) = self.bad.get_mut(at) {
            *bad |= fatal;
        }
        let label = self.request.sources.get(at).map(Source::label).unwrap_or_default();
        self.failures.retain(|(known, _)| *known != label);
        self.failures.push((label, error));
        self.next = at.saturating_add(1);
    }

    fn exhausted(&mut self) -> CacheError {
        CacheError::NoSource { root: *self.request.root, failures: std::mem::take(&mut self.failures) }
    }

    async fn index(&mut self) -> Result<PackIndex, CacheError> {
        for _ in 0..self.request.sources.len() {
            let Some((at, source)) = self.pick() else { break };
            match source.index(self.request.root, self.request.limits).await {
                Ok(index) => {
                    self.next = at;
                    return Ok(index);
                }
                Err(error) => self.failed(at, error),
            }
        }
        Err(self.exhausted())
    }

    async fn fetch_object(
        &mut self,
        partial: &mut Partial,
        place: Place<'_>,
        report: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), CacheError> {
        let Place { object, offset, path } = place;
        let mut present = partial.present(object);
        // From whom the bytes are: only who gave all of them can be blamed.
        let mut givers: Vec<usize> = Vec::new();
        let mut resumed = present > 0;
        let mut alone = false;
        let mut pipe = Pipe::open(&partial.disk, offset, present);
        for attempt in 1..=ATTEMPTS.saturating_mul(self.request.sources.len()) {
            let Some((at, source)) = self.pick() else { break };
            if !givers.contains(&at) {
                givers.push(at);
            }
            let transfer = match self.transfer(at, source, &mut pipe, partial, object, report).await {
                Ok(transfer) => transfer,
                Err(Fault::Cache(error)) => return Err(error),
                Err(Fault::Stuck) => {
                    return Err(pipe.finish().await.err().map_or(CacheError::Writer, CacheError::io(path)));
                }
            };
            if transfer.is_ok() {
                let digest = pipe.finish().await.map_err(CacheError::io(path))?;
                if digest == object.blake3 {
                    return partial.done(object);
                }
                if givers.len() == 1 && !resumed {
                    self.failed(at, SourceError::Digest(object.index));
                }
                // From the start, and from one source alone, so that the next wrong byte has an author.
                (present, resumed, alone) = (0, false, true);
                givers.clear();
                partial.note(object, 0)?;
                pipe = Pipe::open(&partial.disk, offset, present);
            } else if let Err(error) = transfer {
                let wait = attempt.is_multiple_of(self.request.sources.len());
                let cannot_resume = error == SourceError::Range;
                self.failed(at, error);
                if alone || cannot_resume {
                    (present, resumed) = (0, false);
                    givers.clear();
                    pipe.abandon().await;
                    pipe = Pipe::open(&partial.disk, offset, present);
                }
                if wait {
                    tokio::time::sleep(self.request.limits.pause).await;
                }
            }
        }
        // Its threads have the lock of the fetch, too: it is free when this returns.
        pipe.abandon().await;
        Err(self.exhausted())
    }

    /// Lets one source go on with an object. The outer error is this machine's.
    async fn transfer(
        &self,
        at: usize,
        source: &Source,
        pipe: &mut Pipe,
        partial: &mut Partial,
        object: &Object,
        report: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Result<(), SourceError>, Fault> {
        let limits = self.request.limits;
        if pipe.taken() == object.length {
            return Ok(Ok(()));
        }
        let mut parts = source.object(object.index, pipe.taken(), object.length, limits);
        let mut noted = pipe.on_disk();
        let mut window = (Instant::now(), pipe.taken());
        loop {
            let part = match tokio::time::timeout(limits.patience.max(limits.idle), parts.recv()).await {
                Err(_) => return Ok(Err(SourceError::Idle(limits.idle))),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Ok(Err(error)),
                Ok(Some(Ok(part))) => part,
            };
            let left = object.length.saturating_sub(pipe.taken());
            if u64::try_from(part.len()).unwrap_or(u64::MAX) > left {
                return Ok(Err(SourceError::Length));
            }
            if pipe.take(part).await.is_err() {
                return Err(Fault::Stuck);
            }
            report(pipe.taken());
            if pipe.on_disk().saturating_sub(noted) >= NOTE_EVERY {
                noted = pipe.on_disk();
                partial.note(object, noted).map_err(Fault::Cache)?;
            }
            if window.0.elapsed() >= limits.patience {
                let came = pipe.taken().saturating_sub(window.1);
                if self.others(at) && came < limits.slowest.saturating_mul(limits.patience.as_secs().max(1)) {
                    return Ok(Err(SourceError::Slow(limits.slowest)));
                }
                window = (Instant::now(), pipe.taken());
            }
        }
        let whole = pipe.taken() == object.length;
        let broken = SourceError::Io { what: "receiving", kind: io::ErrorKind::UnexpectedEof };
        Ok(if whole { Ok(()) } else { Err(broken) })
    }
}

/// A failure of this machine.
enum Fault {
    /// A thread of the pipe ended; it says why when it is asked.
    Stuck,
    Cache(CacheError),
}

/// Attempts for an object, times the number of sources.
const ATTEMPTS: usize = 6;
/// How far an object may come before it is noted for a later fetch.
const NOTE_EVERY: u64 = 64 << 20;
const LOCK_POLL: Duration = Duration::from_millis(200);
