// SPDX-License-Identifier: Apache-2.0
//! Certificates and evidence by which connections know this guest: new ones by the newest, older ones by the one that
//! they began with, until they end.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use attested_channel::tls::server_config;
use attester_protocol::{Identity, serving::OLD_KEYS};
use bytes::Bytes;
use tokio_rustls::TlsAcceptor;
use types::Sha256Digest;

use crate::{
    attester::{Attester, TlsSocket, resolver},
    drain::Drain,
};

/// A TLS key of the attester, with its certificate and evidence. The attester is told when nobody uses it any more.
pub(crate) struct Shown {
    /// SHA-256 of the SPKI of the TLS key.
    pub(crate) key: Sha256Digest,
    /// Address of the evidence.
    pub(crate) evidence_digest: Sha256Digest,
    /// The canonical evidence.
    pub(crate) evidence: Bytes,
    /// Settings of handshakes that are signed by this key.
    pub(crate) tls: TlsAcceptor,
    /// Whether its connections shall end: the attester will soon keep the key no longer.
    pub(crate) ends: Drain,
    number: u64,
    attester: Attester,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shown({})", self.key)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.attester.retire(self.key);
    }
}

/// All that connections use.
#[derive(Debug)]
pub(crate) struct Identities {
    attester: Attester,
    socket: Arc<TlsSocket>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    newest: Arc<Shown>,
    /// The oldest first.
    earlier: VecDeque<Weak<Shown>>,
}

impl Identities {
    /// Begins with `first`; handshakes are signed over the attester's socket at `path`.
    ///
    /// # Errors
    /// The TLS library refused its settings.
    pub(crate) fn new(attester: Attester, path: &Path, first: Identity) -> Result<Self, rustls::Error> {
        let socket = Arc::new(TlsSocket::new(path));
        let newest = Arc::new(shown(&attester, &socket, first, 0)?);
        Ok(Self { attester, socket, inner: Mutex::new(Inner { newest, earlier: VecDeque::new() }) })
    }

    /// What a new connection begins with.
    pub(crate) fn newest(&self) -> Arc<Shown> {
        Arc::clone(&self.lock().newest)
    }

    /// An evidence document, if a connection still uses it.
    pub(crate) fn evidence(&self, digest: &Sha256Digest) -> Option<Bytes> {
        let inner = self.lock();
        if inner.newest.evidence_digest == *digest {
            return Some(inner.newest.evidence.clone());
        }
        let mut earlier = inner.earlier.iter().filter_map(Weak::upgrade);
        earlier.find(|shown| shown.evidence_digest == *digest).map(|shown| shown.evidence.clone())
    }

    /// Takes each new identity from the attester.
    pub(crate) async fn follow(&self) -> Infallible {
        loop {
            let key = self.newest().key;
            // The end of the attester is seen elsewhere.
            let next = self.attester.successor(key).await;
            if !next.is_ok_and(|next| self.replace(next).is_ok()) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn replace(&self, next: Identity) -> Result<(), rustls::Error> {
        let number = self.lock().newest.number.saturating_add(1);
        let next = Arc::new(shown(&self.attester, &self.socket, next, number)?);
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.newest, next);
        inner.earlier.push_back(Arc::downgrade(&before));
        // One renewal before the attester overwrites their key.
        let oldest = number.saturating_sub(OLD_KEYS.saturating_sub(1));
        inner.earlier.retain(|shown| {
            shown.upgrade().is_some_and(|shown| {
                if shown.number < oldest {
                    shown.ends.begin();
                }
                true
            })
        });
        drop(inner);
        // The last holder drops outside of the lock.
        drop(before);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(
    attester: &Attester,
    socket: &Arc<TlsSocket>,
    identity: Identity,
    number: u64,
) -> Result<Shown, rustls::Error> {
    let tls = TlsAcceptor::from(Arc::new(server_config(resolver(socket, &identity))?));
    Ok(Shown {
        key: identity.spki_sha256,
        evidence_digest: Sha256Digest::of(identity.evidence.as_slice()),
        evidence: identity.evidence.into_vec().into(),
        tls,
        ends: Drain::default(),
        number,
        attester: attester.clone(),
    })
}

/// After an answer that could not be used.
const PAUSE: Duration = Duration::from_secs(60);
