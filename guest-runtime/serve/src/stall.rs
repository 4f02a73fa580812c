// SPDX-License-Identifier: Apache-2.0
//! Ends a connection whose peer takes nothing of what is sent to it, or is gone while it is answered.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A stream that fails when a write makes no progress for a time.
///
/// While a request is answered it also reads ahead, and fails when the peer has closed its side: the HTTP library looks for
/// that only as long as the peer has sent nothing behind its request, so that one byte would keep the request running.
#[derive(Debug)]
pub(crate) struct StallGuard<S> {
    inner: S,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
    is_answering: Arc<AtomicBool>,
    /// What was read ahead.
    ahead: Vec<u8>,
    /// Whether the peer has closed its side.
    is_closed: bool,
}

impl<S> StallGuard<S> {
    pub(crate) fn new(inner: S, patience: Duration, is_answering: Arc<AtomicBool>) -> Self {
        let (deadline, waiting) = (Box::pin(sleep(patience)), false);
        Self { inner, patience, deadline, waiting, is_answering, ahead: Vec::new(), is_closed: false }
    }

    /// Passes a result on, or the error when it is pending for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = false;
            return result;
        }
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now().checked_add(self.patience).unwrap_or_else(Instant::now);
            self.deadline.as_mut().reset(deadline);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> StallGuard<S> {
    /// Reads what there is. Somebody who sends more than a request's worth while one is answered is cut off.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.is_closed {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if self.ahead.len() >= MAX_AHEAD {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            let mut bytes = [0; AHEAD_AT_ONCE];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            self.is_closed = buffer.filled().is_empty();
            self.ahead.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(self.ahead.get(..count).unwrap_or_default());
            self.ahead.drain(..count);
            return Poll::Ready(Ok(()));
        }
        if self.is_closed {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, result)
    }

    /// Called whenever the HTTP library has looked at the connection, also with nothing to flush.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_answering.load(Ordering::Relaxed) {
            self.read_ahead(cx)?;
        }
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, result)
    }
}

const MAX_AHEAD: usize = 64 << 10;
const AHEAD_AT_ONCE: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_cut_off_and_one_that_takes_is_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut guarded = StallGuard::new(near, Duration::from_millis(20), Arc::default());
        let reading = tokio::spawn(async move {
            let mut all = [0; 64];
            far.read_exact(&mut all).await.unwrap();
            far
        });
        guarded.write_all(&[1; 64]).await.unwrap();
        let _far = reading.await.unwrap();
        let error = guarded.write_all(&[1; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
    #[tokio::test]
    async fn who_leaves_while_it_is_answered_is_noticed_behind_what_it_sent() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let is_answering = Arc::new(AtomicBool::new(true));
        let mut guarded = StallGuard::new(near, Duration::from_secs(60), Arc::clone(&is_answering));
        guarded.flush().await.unwrap();
        far.write_all(b"next").await.unwrap();
        guarded.flush().await.unwrap();
        let mut read = [0; 2];
        guarded.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ne");
        far.write_all(b" one").await.unwrap();
        drop(far);
        assert_eq!(guarded.flush().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        is_answering.store(false, Ordering::Relaxed);
        let mut rest = Vec::new();
        guarded.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"xt one");

        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut guarded = StallGuard::new(near, Duration::from_secs(60), Arc::new(AtomicBool::new(true)));
        far.write_all(&[0; MAX_AHEAD]).await.unwrap();
        assert_eq!(guarded.flush().await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
