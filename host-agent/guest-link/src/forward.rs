// SPDX-License-Identifier: Apache-2.0
//! Byte-by-byte forwarding to one allow-listed address. TLS ends in the guest; the host sees ciphertext only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::listener::{LinkError, LinkListener, LinkStream};

/// Forwards every connection of `listener` to `target`, at most `MAX_CONNECTIONS` at once, each for at most
/// `MAX_DURATION`. Runs until accepting fails. Which address that is, the provider decides; a guest cannot choose it.
///
/// # Errors
/// [`LinkError::Accept`].
pub async fn forward(mut listener: LinkListener, target: SocketAddr) -> Result<(), LinkError> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = listener.accept().await?;
        // Over the limit the connection is closed at once: the guest sees an end of stream and tries again.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        tokio::spawn(async move {
            let _slot = slot;
            let _ = tokio::time::timeout(MAX_DURATION, relay(stream, target)).await;
        });
    }
}

async fn relay(mut guest: LinkStream, target: SocketAddr) -> std::io::Result<()> {
    let mut service = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
        .await
        .map_err(|_| std::io::ErrorKind::TimedOut)??;
    tokio::io::copy_bidirectional(&mut guest, &mut service).await.map(|_| ())
}

/// Most connections of one guest at once.
pub(crate) const MAX_CONNECTIONS: usize = 16;
/// Longest life of one connection: a key release takes seconds.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};

    use super::*;
    use crate::{SERVICE_PORT, VsockHost};

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_end_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let host = VsockHost::VhostUser { uds_path: directory.path().join("v") };
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = service.local_addr().unwrap();
        let listener = LinkListener::bind(&host, SERVICE_PORT).unwrap();
        let forwarding = tokio::spawn(forward(listener, target));
        let mut guest = UnixStream::connect(host.unix_path(SERVICE_PORT).unwrap()).await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let (mut accepted, _) = service.accept().await.unwrap();
        let mut question = Vec::new();
        accepted.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        let mut answer = Vec::new();
        guest.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        forwarding.abort();
    }

    #[tokio::test]
    async fn the_socket_file_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let host = VsockHost::VhostUser { uds_path: directory.path().join("v") };
        let path = host.unix_path(SERVICE_PORT).unwrap();
        let listener = LinkListener::bind(&host, SERVICE_PORT).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }
}
