// SPDX-License-Identifier: Apache-2.0
//! One object, decrypted by several threads: each takes the next segment, reads it, decrypts it and passes it on. Only
//! hashing has an order; whoever brings the segment whose turn it is hashes it and those that wait behind it.

use crate::source::{ReadAt, read_exact_at};
use crate::stream::Opener;
use crate::{Object, PackError, Progress};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Takes plaintext: its offset in the object, and the bytes. Called on several threads, in no order.
pub(crate) type Sink<'a> = &'a (dyn Fn(u64, &[u8]) -> Result<(), PackError> + Sync);

/// Digests that go on from object to object.
#[derive(Default)]
pub(crate) struct Hashes {
    /// Of the plaintext.
    pub(crate) plaintext: blake3::Hasher,
    /// Of the ciphertext, where it is asked for.
    pub(crate) ciphertext: Option<blake3::Hasher>,
}

/// What is worked through.
pub(crate) struct Work<'a> {
    pub(crate) object: &'a Object,
    pub(crate) device: &'a dyn ReadAt,
    pub(crate) opener: &'a Opener,
    /// Bytes of the ciphertext's header, at the start of its first segment.
    pub(crate) header: usize,
    /// Bytes of ciphertext in a full segment.
    pub(crate) segment: usize,
    pub(crate) sink: Sink<'a>,
    pub(crate) progress: Progress<'a>,
}

impl Work<'_> {
    /// Reads, decrypts, hashes and passes on every segment.
    ///
    /// # Errors
    /// A fault of one segment, not always the first one. What was passed on by then is not to be used.
    pub(crate) fn run(&self, hashes: &mut Hashes) -> Result<(), PackError> {
        let segment = u64::try_from(self.segment).unwrap_or(u64::MAX).max(1);
        let count = u32::try_from(self.object.length.div_ceil(segment)).map_err(|_| self.undecryptable())?;
        let keeps_ciphertext = hashes.ciphertext.is_some();
        let state = State { hashes: Some(std::mem::take(hashes)), ..State::default() };
        let run = Run { work: self, count, keeps_ciphertext, state: Mutex::new(state), moved: Condvar::new() };
        std::thread::scope(|scope| {
            for _ in 1..workers().min(count) {
                scope.spawn(|| run.work_until_done());
            }
            run.work_until_done();
        });
        let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        *hashes = state.hashes.unwrap_or_default();
        match state.fault {
            Some(fault) => Err(fault),
            None if state.hashed == count => Ok(()),
            None => Err(PackError::io("decrypting")(std::io::Error::other("a thread stopped"))),
        }
    }

    fn undecryptable(&self) -> PackError {
        PackError::ObjectDecrypt { object: self.object.index }
    }

    /// Segment `number`, read and decrypted into `buffers`, passed on.
    fn fetch(&self, number: u32, is_last: bool, keeps: bool, mut buffers: Buffers) -> Result<Segment, PackError> {
        let segment = u64::try_from(self.segment).unwrap_or(u64::MAX);
        let start = segment.saturating_mul(number.into());
        let left = self.object.length.saturating_sub(start).min(segment);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.segment);
        buffers.bytes.resize(self.segment, 0);
        let bytes = buffers.bytes.get_mut(..length).unwrap_or_default();
        let reading = || PackError::reading(format!("object {}", self.object.index));
        read_exact_at(self.device, bytes, start).map_err(reading())?;
        (self.progress)(left);
        if keeps {
            buffers.ciphertext.clear();
            buffers.ciphertext.extend_from_slice(bytes);
        }
        let skip = if number == 0 { self.header } else { 0 };
        let ciphertext = bytes.get_mut(skip..).ok_or_else(|| self.undecryptable())?;
        let plaintext = self.opener.open(number, is_last, ciphertext).map_err(|_| self.undecryptable())?;
        (self.sink)(self.plaintext_offset(number), plaintext)?;
        let plaintext = skip..skip.saturating_add(plaintext.len());
        Ok(Segment { buffers, plaintext })
    }

    /// Where the plaintext of a segment begins.
    fn plaintext_offset(&self, number: u32) -> u64 {
        if number == 0 {
            return 0;
        }
        let per_segment = self.segment.saturating_sub(crate::stream::TAG);
        let per_segment = u64::try_from(per_segment).unwrap_or(u64::MAX);
        per_segment.saturating_mul(number.into()).saturating_sub(u64::try_from(self.header).unwrap_or(u64::MAX))
    }
}

/// What a segment is read into, used again and again.
#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    ciphertext: Vec<u8>,
}

struct Segment {
    buffers: Buffers,
    plaintext: Range<usize>,
}

#[derive(Default)]
struct State {
    /// Segments that some thread has taken.
    claimed: u32,
    /// Segments that are hashed.
    hashed: u32,
    /// Decrypted, waiting for their turn.
    ready: BTreeMap<u32, Segment>,
    /// None while some thread hashes.
    hashes: Option<Hashes>,
    spare: Vec<Buffers>,
    fault: Option<PackError>,
}

struct Run<'a> {
    work: &'a Work<'a>,
    count: u32,
    keeps_ciphertext: bool,
    state: Mutex<State>,
    /// There is room for another segment, or a fault.
    moved: Condvar,
}

impl Run<'_> {
    fn work_until_done(&self) {
        let _alarm = Alarm(self);
        while let Some((number, buffers)) = self.claim() {
            let is_last = number.saturating_add(1) == self.count;
            match self.work.fetch(number, is_last, self.keeps_ciphertext, buffers) {
                Ok(segment) => self.deliver(number, segment),
                Err(fault) => return self.fail(fault),
            }
        }
    }

    /// The next segment to work on; none when all are taken or something is at fault.
    fn claim(&self) -> Option<(u32, Buffers)> {
        let mut state = self.lock();
        loop {
            if state.fault.is_some() || state.claimed == self.count {
                return None;
            }
            if state.claimed.saturating_sub(state.hashed) < WINDOW {
                let number = state.claimed;
                state.claimed = state.claimed.saturating_add(1);
                return Some((number, state.spare.pop().unwrap_or_default()));
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, number: u32, segment: Segment) {
        let mut state = self.lock();
        state.ready.insert(number, segment);
        // Who hashes looks for this segment before it stops.
        let Some(mut hashes) = state.hashes.take() else { return };
        loop {
            let turn = state.hashed;
            let Some(Segment { buffers, plaintext }) = state.ready.remove(&turn) else { break };
            drop(state);
            hashes.plaintext.update(buffers.bytes.get(plaintext).unwrap_or_default());
            if let Some(hasher) = &mut hashes.ciphertext {
                hasher.update(&buffers.ciphertext);
            }
            state = self.lock();
            state.hashed = turn.saturating_add(1);
            state.spare.push(buffers);
            self.moved.notify_all();
        }
        state.hashes = Some(hashes);
    }

    fn fail(&self, fault: PackError) {
        self.lock().fault.get_or_insert(fault);
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees those that wait for a thread which panicked.
struct Alarm<'a>(&'a Run<'a>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(PackError::io("decrypting")(std::io::Error::other("a thread stopped")));
        }
    }
}

fn workers() -> u32 {
    let available = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(available).unwrap_or(MAX_WORKERS).clamp(1, MAX_WORKERS)
}

/// More would wait for the one that hashes.
const MAX_WORKERS: u32 = 4;
/// Segments in memory at a time: with the largest (4 MiB) they take 32 MiB.
const WINDOW: u32 = 8;
