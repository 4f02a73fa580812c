// SPDX-License-Identifier: Apache-2.0
//! A TLS stream whose exporter stays reachable while HTTP owns the stream.
//!
//! Challenges come in the middle of a connection, when the stream already belongs to the HTTP library. The stream and
//! its [`Channel`] share the connection behind a mutex that is held only inside one poll, never across an await.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::tls::exporter;

/// The half that HTTP reads and writes.
#[derive(Debug)]
pub struct SharedStream<S> {
    inner: Arc<Mutex<TlsStream<S>>>,
}

/// The half that answers questions about the connection.
#[derive(Debug)]
pub struct Channel<S> {
    inner: Arc<Mutex<TlsStream<S>>>,
}

impl<S> Clone for Channel<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// Shares a stream whose handshake is complete.
#[must_use]
pub fn share<S>(stream: TlsStream<S>) -> (SharedStream<S>, Channel<S>) {
    let inner = Arc::new(Mutex::new(stream));
    (SharedStream { inner: Arc::clone(&inner) }, Channel { inner })
}

impl<S> Channel<S> {
    /// The binding of a challenge to this connection ([`exporter`]).
    ///
    /// # Errors
    /// The handshake is not complete.
    pub fn binding(&self, challenge: &[u8; 32]) -> Result<[u8; 32], rustls::Error> {
        match &*lock(&self.inner) {
            TlsStream::Client(stream) => exporter(stream.get_ref().1, challenge),
            TlsStream::Server(stream) => exporter(stream.get_ref().1, challenge),
        }
    }

    /// How many session tickets the peer has sent: none was asked for.
    #[must_use]
    pub fn tickets_received(&self) -> u32 {
        match &*lock(&self.inner) {
            TlsStream::Client(stream) => stream.get_ref().1.tls13_tickets_received(),
            TlsStream::Server(_) => 0,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for SharedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.inner)).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SharedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.inner)).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.inner)).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.inner)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.inner)).poll_shutdown(cx)
    }
}

/// A poisoned lock means that a poll panicked; the stream's own state decides what happens next.
fn lock<S>(inner: &Mutex<TlsStream<S>>) -> MutexGuard<'_, TlsStream<S>> {
    inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
