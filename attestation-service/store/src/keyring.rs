// SPDX-License-Identifier: Apache-2.0
//! The keys that wrap: one for what is written from now on, and others that older rows may need. What a remote key
//! opened is kept for a moment, so that a storm of guests is not as slow as a token.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use key_wrap::{KekError, KekSource, KeyWrap, WrapError};
use types::Sha256Digest;
use zeroize::Zeroizing;

use crate::KeyStoreError;

/// The keys, and what they opened lately.
pub(crate) struct Keyring {
    first: Box<dyn KeyWrap>,
    others: Vec<Box<dyn KeyWrap>>,
    kept: Mutex<HashMap<Sha256Digest, Kept>>,
    /// Of several callers for one row one asks the remote key; the others wait for what it gets, a failure included.
    gates: [Mutex<Option<Failure>>; GATES],
}

/// That a remote key could not be asked.
struct Failure {
    at: Instant,
    kek: String,
    reason: String,
}

/// A secret, wrapped, and the name of the key that did it.
pub(crate) struct Wrapped {
    pub(crate) bytes: Vec<u8>,
    pub(crate) kek: String,
}

struct Kept {
    until: Instant,
    secret: Zeroizing<Vec<u8>>,
}

impl Keyring {
    pub(crate) fn open(first: &KekSource, others: &[KekSource]) -> Result<Self, KekError> {
        Self::new(first.open()?, others.iter().map(KekSource::open).collect::<Result<_, _>>()?)
    }

    /// Keys of different names, or rows could not say which one wrapped them.
    pub(crate) fn new(first: Box<dyn KeyWrap>, others: Vec<Box<dyn KeyWrap>>) -> Result<Self, KekError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = core::iter::once(&first).chain(&others).find(|key| !names.insert(key.id().to_owned())) {
            return Err(KekError::Unfit(format!("two of the keys that were given are {}", twice.id())));
        }
        Ok(Self { first, others, kept: Mutex::default(), gates: [const { Mutex::new(None) }; GATES] })
    }

    /// Names the key that wraps from now on.
    pub(crate) fn first(&self) -> &str {
        self.first.id()
    }

    pub(crate) fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Wrapped, WrapError> {
        Ok(Wrapped { bytes: self.first.wrap(secret, context)?, kek: self.first.id().to_owned() })
    }

    /// Opens what the key `kek` wrapped; rows of the time before keys had names have an empty one.
    pub(crate) fn unwrap(
        &self,
        kek: &str,
        wrapped: &[u8],
        context: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        let keys = core::iter::once(&self.first).chain(&self.others);
        if kek.is_empty() {
            let opened = keys.filter(|key| !key.is_remote()).find_map(|key| key.open(wrapped, context).ok());
            return Ok(opened.ok_or(WrapError::Open)?);
        }
        // The one of this name first; then those that may have had it.
        let mut candidates: Vec<_> = keys.filter(|key| key.may_open(kek)).collect();
        candidates.sort_by_key(|key| key.id() != kek);
        let mut refused = None;
        for key in candidates {
            match self.open_by(key.as_ref(), wrapped, context) {
                Ok(secret) => return Ok(secret),
                // It may be this one's: that no other opens it says nothing.
                Err(error @ WrapError::Unavailable(_)) => refused = Some(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.map_or_else(|| KeyStoreError::OtherKek(kek.to_owned()), KeyStoreError::Wrap))
    }

    /// Opens by one key; what a remote one opened is kept for a moment.
    fn open_by(&self, key: &dyn KeyWrap, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        if !key.is_remote() {
            return key.open(wrapped, context);
        }
        let came = Instant::now();
        let length = u64::try_from(context.len()).unwrap_or(u64::MAX).to_be_bytes();
        let name = Sha256Digest::of_parts(&[key.id().as_bytes(), b"\0", &length, context, wrapped]);
        if let Some(secret) = self.kept(&name) {
            return Ok(secret);
        }
        let gate = name.as_bytes().first().map_or(0, |byte| usize::from(*byte) % GATES);
        // What is in a gate is replaced as a whole.
        let mut gate = self.gates.get(gate).map(|gate| gate.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(secret) = self.kept(&name) {
            return Ok(secret);
        }
        // Who waited for a failure has it, and does not wait once more for the next.
        let failed = gate.as_ref().and_then(|gate| gate.as_ref());
        if let Some(failure) = failed.filter(|failure| failure.at >= came && failure.kek == key.id()) {
            return Err(WrapError::Unavailable(failure.reason.clone()));
        }
        match key.open(wrapped, context) {
            Ok(secret) => {
                self.keep(name, &secret);
                Ok(secret)
            }
            Err(error) => {
                if let (Some(gate), WrapError::Unavailable(reason)) = (gate.as_mut(), &error) {
                    let (at, kek) = (Instant::now(), key.id().to_owned());
                    **gate = Some(Failure { at, kek, reason: reason.clone() });
                }
                Err(error)
            }
        }
    }

    fn kept(&self, name: &Sha256Digest) -> Option<Zeroizing<Vec<u8>>> {
        let mut kept = self.lock();
        match kept.get(name) {
            Some(found) if Instant::now() < found.until => Some(found.secret.clone()),
            Some(_) => {
                kept.remove(name);
                None
            }
            None => None,
        }
    }

    fn keep(&self, name: Sha256Digest, secret: &Zeroizing<Vec<u8>>) {
        let mut kept = self.lock();
        let now = Instant::now();
        kept.retain(|_, found| now < found.until);
        if kept.len() < MOST {
            kept.insert(name, Kept { until: now + KEEP, secret: secret.clone() });
        }
    }

    /// Forgets what was kept longer than it may be; for the quiet hours.
    pub(crate) fn forget_old(&self) {
        let now = Instant::now();
        self.lock().retain(|_, found| now < found.until);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Sha256Digest, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an opened secret is kept.
const KEEP: Duration = Duration::from_secs(30);
/// Most that are kept.
const MOST: usize = 1024;
/// Different rows that a remote key opens at the same time.
const GATES: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A key that counts its uses, or can't be used.
    struct Counting {
        uses: Arc<AtomicUsize>,
        id: &'static str,
        down: bool,
        /// A failure comes when so many callers are there.
        callers: Arc<AtomicUsize>,
    }

    impl KeyWrap for Counting {
        fn id(&self) -> &str {
            self.id
        }

        /// Names are `remote:PLACE`; `remote:` was one without a place.
        fn may_open(&self, name: &str) -> bool {
            name == self.id || name == "remote:"
        }

        fn is_remote(&self) -> bool {
            true
        }

        fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError> {
            Ok([context, secret].concat())
        }

        fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
            self.uses.fetch_add(1, Ordering::SeqCst);
            if self.down {
                while self.callers.load(Ordering::SeqCst) > 0 {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(100));
                return Err(WrapError::Unavailable("down".to_owned()));
            }
            // Long enough for the others to come to the gate.
            std::thread::sleep(Duration::from_millis(20));
            wrapped.strip_prefix(context).map(|secret| Zeroizing::new(secret.to_vec())).ok_or(WrapError::Open)
        }
    }

    fn ring(down: bool) -> (Keyring, Arc<AtomicUsize>) {
        let uses = Arc::new(AtomicUsize::new(0));
        let key = counting("remote:1", &uses, down, &Arc::default());
        (Keyring::new(key, Vec::new()).unwrap(), uses)
    }

    fn counting(id: &'static str, uses: &Arc<AtomicUsize>, down: bool, callers: &Arc<AtomicUsize>) -> Box<dyn KeyWrap> {
        Box::new(Counting { uses: Arc::clone(uses), id, down, callers: Arc::clone(callers) })
    }

    /// Two services with a key of one name: rows that do not say which are opened by the one that can.
    #[test]
    fn a_name_of_several_keys_is_tried_with_each() {
        let uses = Arc::default();
        let none = Arc::default();
        let two = |down| {
            let others = vec![counting("remote:2", &uses, down, &none)];
            Keyring::new(counting("remote:1", &uses, false, &none), others).unwrap()
        };
        let ring = two(false);
        assert_eq!(ring.unwrap("remote:", b"c_row", b"c_").unwrap().as_slice(), b"row");
        // What the key of its own name refuses is not tried with another's.
        let before = uses.load(Ordering::SeqCst);
        assert!(matches!(ring.unwrap("remote:2", b"x", b"c_"), Err(KeyStoreError::Wrap(WrapError::Open))));
        assert_eq!(uses.load(Ordering::SeqCst), before + 1);
        assert!(matches!(ring.unwrap("remote:", b"x", b"c_"), Err(KeyStoreError::Wrap(WrapError::Open))));
        // Where one of them can't be asked, that is the reason: it might have opened the row.
        let refused = two(true).unwrap("remote:", b"x", b"c_");
        assert!(matches!(refused, Err(KeyStoreError::Wrap(WrapError::Unavailable(_)))));
        let twice = vec![counting("remote:1", &uses, false, &none)];
        let refused = Keyring::new(counting("remote:1", &uses, false, &none), twice);
        assert!(matches!(refused.err(), Some(KekError::Unfit(_))));
    }

    /// They do not wait one after the other, each as long as it takes to find out.
    #[test]
    fn who_waited_for_a_failure_shares_it() {
        let (uses, callers) = (Arc::default(), Arc::new(AtomicUsize::new(8)));
        let ring = Keyring::new(counting("remote:1", &uses, true, &callers), Vec::new()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    callers.fetch_sub(1, Ordering::SeqCst);
                    let refused = ring.unwrap("remote:1", b"x", b"context");
                    assert!(matches!(refused, Err(KeyStoreError::Wrap(WrapError::Unavailable(_)))));
                });
            }
        });
        assert!(uses.load(Ordering::SeqCst) < 8, "{uses:?}");
    }

    #[test]
    fn a_storm_for_one_row_asks_the_remote_key_once() {
        let (ring, uses) = ring(false);
        let wrapped = ring.wrap(b"secret", b"context").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let opened = ring.unwrap(&wrapped.kek, &wrapped.bytes, b"context").unwrap();
                    assert_eq!(opened.as_slice(), b"secret");
                });
            }
        });
        assert_eq!(uses.load(Ordering::SeqCst), 1);
        // Another context, another row: asked again.
        assert!(ring.unwrap(&wrapped.kek, &wrapped.bytes, b"other").is_err());
        assert_eq!(uses.load(Ordering::SeqCst), 2);
        ring.lock().values_mut().for_each(|kept| kept.until = Instant::now());
        ring.unwrap(&wrapped.kek, &wrapped.bytes, b"context").unwrap();
        assert_eq!(uses.load(Ordering::SeqCst), 3, "kept for a moment alone");
        ring.lock().values_mut().for_each(|kept| kept.until = Instant::now());
        ring.forget_old();
        assert!(ring.lock().is_empty());
    }

    #[test]
    fn failures_are_not_kept_and_other_keys_rows_are_named() {
        let (ring, uses) = ring(true);
        for expected in 1..3 {
            let refused = ring.unwrap("remote:1", b"x", b"context");
            assert!(matches!(refused, Err(KeyStoreError::Wrap(WrapError::Unavailable(_)))));
            assert_eq!(uses.load(Ordering::SeqCst), expected);
        }
        assert!(matches!(ring.unwrap("remote:2", b"x", b"c"), Err(KeyStoreError::OtherKek(id)) if id == "remote:2"));
    }
}
