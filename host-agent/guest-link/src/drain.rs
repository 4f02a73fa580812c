// SPDX-License-Identifier: Apache-2.0
//! Telling a guest that it shall finish.

use std::io;
use std::time::Duration;

use drain_protocol::{ANSWER, PORT, REQUEST};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::connect::connect_owned;
use crate::listener::{LinkStream, VsockHost};

/// Why a guest was not told.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Nobody listens: it does not serve yet, has ended, or runs an image from before there was such a message.
    #[error("the guest does not listen on vsock port {PORT}: {0}")]
    Connect(#[source] io::Error),
    /// It said something else than that it drains, or nothing.
    #[error("the guest does not answer that it drains")]
    Answer,
    /// It took too long.
    #[error("the guest does not answer in time")]
    Time,
}

/// Tells a guest to finish what runs, and waits for its word that it does. Telling it again does no harm.
///
/// The word is the guest's alone: connections show when it is done. Where a helper carries its vsock, `owner` is the user
/// who runs it ([`connect_owned`]).
///
/// # Errors
/// [`DrainError`]; then it may have been told nevertheless.
pub async fn tell_to_drain(guest: &VsockHost, owner: u32) -> Result<(), DrainError> {
    tokio::time::timeout(PATIENCE, tell(guest, owner)).await.map_err(|_| DrainError::Time)?
}

async fn tell(guest: &VsockHost, owner: u32) -> Result<(), DrainError> {
    let mut stream = connect(guest, owner).await.map_err(DrainError::Connect)?;
    let mut answer = [0; ANSWER.len()];
    let exchange = async {
        stream.write_all(&REQUEST).await?;
        stream.read_exact(&mut answer).await
    };
    match exchange.await {
        Ok(_) if answer == ANSWER => Ok(()),
        _ => Err(DrainError::Answer),
    }
}

async fn connect(guest: &VsockHost, owner: u32) -> io::Result<LinkStream> {
    match guest {
        VsockHost::Kernel { cid } => Ok(LinkStream::Kernel(VsockStream::connect(VsockAddr::new(*cid, PORT)).await?)),
        VsockHost::VhostUser { uds_path } => {
            let mut stream = connect_owned(uds_path, owner).await?;
            stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
            read_ok(&mut stream).await?;
            Ok(LinkStream::Unix(stream))
        }
    }
}

/// Reads `OK NUMBER`, with which `vhost-device-vsock` says that the guest has taken the connection, and not a byte more.
async fn read_ok(stream: &mut UnixStream) -> io::Result<()> {
    let mut line = Vec::new();
    while line.len() < MAX_OK {
        match stream.read_u8().await? {
            b'\n' if line.starts_with(b"OK ") => return Ok(()),
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is not connected"))
}

const PATIENCE: Duration = Duration::from_secs(3);
const MAX_OK: usize = 32;

#[cfg(test)]
mod tests {
    use nix::unistd::geteuid;
    use tokio::net::UnixListener;

    use super::*;

    /// What is said to whom says `ok` to the connection and then `answer`, and what came of it.
    async fn told(ok: &'static [u8], answer: &'static [u8]) -> (Vec<u8>, Result<(), DrainError>) {
        let directory = tempfile::tempdir().unwrap();
        let uds_path = directory.path().join("vsock");
        let listener = UnixListener::bind(&uds_path).unwrap();
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut said = vec![0; b"CONNECT 7003\n".len()];
            stream.read_exact(&mut said).await.unwrap();
            let _ = stream.write_all(ok).await;
            let mut request = [0; REQUEST.len()];
            if stream.read_exact(&mut request).await.is_ok() {
                said.extend(request);
                let _ = stream.write_all(answer).await;
            }
            said
        });
        let result = tell_to_drain(&VsockHost::VhostUser { uds_path }, geteuid().as_raw()).await;
        (guest.await.unwrap(), result)
    }

    #[tokio::test]
    async fn a_guest_is_told_and_believed_in_one_form_only() {
        let (said, result) = told(b"OK 1024\n", &ANSWER).await;
        result.unwrap();
        assert_eq!(said, [b"CONNECT 7003\n".as_slice(), &REQUEST].concat());
        for answer in [b"".as_slice(), b"draining", b"DRAINING\n", b"\0\0\0\0\0\0\0\0\0"] {
            assert!(matches!(told(b"OK 1\n", answer).await.1, Err(DrainError::Answer)), "{answer:?}");
        }
        for ok in [b"NO\n".as_slice(), b"OK\n", b"OK 11111111111111111111111111111111111111111\n"] {
            let (said, result) = told(ok, &ANSWER).await;
            assert!(matches!(result, Err(DrainError::Connect(_))), "{ok:?}");
            assert_eq!(said.len(), b"CONNECT 7003\n".len(), "nothing more is said");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let guest = VsockHost::VhostUser { uds_path: directory.path().join("vsock") };
        assert!(matches!(tell_to_drain(&guest, geteuid().as_raw()).await, Err(DrainError::Connect(_))));
    }
}
