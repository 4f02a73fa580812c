// SPDX-License-Identifier: Apache-2.0
//! The host says that the guest shall finish: what runs is answered to its end, and every connection is closed when
//! nothing runs on it.
//!
//! The host can take the guest away at any time. It is heard without proof, because all it can get by this is less: no
//! answer changes, and nobody is let in.

use std::{convert::Infallible, io, os::fd::OwnedFd, time::Duration};

use drain_protocol::{ANSWER, Heard, REQUEST, hear};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    sync::watch,
    time::timeout,
};

/// Whether the guest shall finish. Once it shall, it does.
#[derive(Debug, Default)]
pub(crate) struct Drain(watch::Sender<bool>);

impl Drain {
    pub(crate) fn begin(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when the guest shall finish.
    pub(crate) async fn begun(&self) {
        // The sender is in our hands: there is an end to wait for.
        let _ = self.0.subscribe().wait_for(|begun| *begun).await;
    }
}

/// The socket on which the host is heard. Typed as a stream: the runtime has no type for a listener of any family, and
/// waiting until it is ready is all that is done with it as such.
#[derive(Debug)]
pub struct DrainLink(UnixStream);

impl DrainLink {
    /// Takes a listening stream socket on which nothing waits (`linux_sys::vsock::listen`). Needs a runtime.
    ///
    /// # Errors
    /// It cannot be waited on.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        UnixStream::from_std(listener.into()).map(Self)
    }

    /// Hears connection after connection. One at a time: there is one host.
    pub(crate) async fn listen(self, drain: &Drain) -> Infallible {
        loop {
            if self.hear(|| drain.begin()).await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Hears one connection, for a second at most. It is answered, after `told`, if it brings the one request, and closed
    /// without a word otherwise.
    ///
    /// # Errors
    /// No connection could be taken.
    pub async fn hear(&self, told: impl FnOnce()) -> io::Result<()> {
        let stream = self.accept().await?;
        // How it ends is the host's matter.
        let _ = timeout(PATIENCE, answer(stream, told)).await;
        Ok(())
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            self.0.readable().await?;
            match self.0.try_io(Interest::READABLE, || linux_sys::vsock::accept(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return UnixStream::from_std(accepted?),
            }
        }
    }
}

async fn answer(mut stream: UnixStream, told: impl FnOnce()) -> io::Result<()> {
    // One byte more than a request has.
    let mut buffer = [0; REQUEST.len() + 1];
    let mut length = 0;
    loop {
        let rest = buffer.get_mut(length..).unwrap_or_default();
        let read = stream.read(rest).await?;
        length = length.saturating_add(read);
        match hear(buffer.get(..length).unwrap_or_default()) {
            Heard::Part if read > 0 => {}
            Heard::Part | Heard::Other => return Ok(()),
            Heard::Drain => break,
        }
    }
    told();
    stream.write_all(&ANSWER).await?;
    stream.shutdown().await
}

const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;

    /// A link below a directory, and whether it has been told.
    fn link(directory: &Path) -> Arc<Drain> {
        let listener = std::os::unix::net::UnixListener::bind(directory.join("drain")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let link = DrainLink::new(listener.into()).unwrap();
        let drain = Arc::new(Drain::default());
        let heard = Arc::clone(&drain);
        tokio::spawn(async move { link.listen(&heard).await });
        drain
    }

    /// Says something and ends; gives the answer.
    async fn say(directory: &Path, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(directory.join("drain")).await.unwrap();
        // It may be closed before all is said.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn nothing_but_the_request_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let drain = link(directory.path());
        let long = [REQUEST.as_slice(), REQUEST.as_slice()].concat();
        let endless = vec![b'd'; 1 << 20];
        for bytes in [b"".as_slice(), b"drain", b"drain 1", b"drain 2\n", b"DRAIN 1\n", b"undrain\n", &long, &endless] {
            assert!(say(directory.path(), bytes).await.is_empty());
            assert!(!drain.has_begun(), "{:?}", &bytes[..bytes.len().min(16)]);
        }
        assert_eq!(say(directory.path(), &REQUEST).await, ANSWER);
        assert!(drain.has_begun());
        // Nothing takes it back, and it is answered whenever it comes.
        assert!(say(directory.path(), b"drain 0\n").await.is_empty());
        assert_eq!(say(directory.path(), &REQUEST).await, ANSWER);
        assert!(drain.has_begun());
    }

    #[tokio::test]
    async fn a_byte_at_a_time_is_heard_and_silence_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let drain = link(directory.path());
        let _silent = UnixStream::connect(directory.path().join("drain")).await.unwrap();
        let mut stream = UnixStream::connect(directory.path().join("drain")).await.unwrap();
        for byte in REQUEST {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, ANSWER);
        drain.begun().await;
    }
}
