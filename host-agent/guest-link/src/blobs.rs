// SPDX-License-Identifier: Apache-2.0
//! Files that others have signed, for a guest that asks for them by kind and name (`docs/protocol.md`, "Blobs").

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blob_protocol::{Answer, MAX_REQUESTS, REQUEST_HEAD, Request};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::listener::{LinkError, LinkListener};

/// Gives the guest files of `directory`, `rim/NAME` and `ocsp/NAME`, on the connections of `listener`: a few at once, a number in
/// all after which nobody is listened to any more (a guest boots once), each for a limited time and number of requests.
///
/// Given are regular files within the size of their kind, no links to any. What they say is not looked at: they are public, and
/// the guest believes signatures alone.
///
/// # Errors
/// [`LinkError::Accept`].
pub async fn serve_blobs(mut listener: LinkListener, directory: PathBuf) -> Result<(), LinkError> {
    let slots = Arc::new(Semaphore::new(MAX_AT_ONCE));
    for _ in 0..MAX_CONNECTIONS {
        let stream = listener.accept().await?;
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let directory = directory.clone();
        tokio::spawn(async move {
            let _slot = slot;
            // How it ends is the guest's matter: what did not come is not there.
            let _ = timeout(MAX_DURATION, answer(stream, &directory)).await;
        });
    }
    Ok(())
}

async fn answer(mut guest: impl AsyncRead + AsyncWrite + Unpin, directory: &Path) -> io::Result<()> {
    for _ in 0..MAX_REQUESTS {
        let mut head = [0; REQUEST_HEAD];
        guest.read_exact(&mut head).await?;
        let (kind, length) = Request::head(head).map_err(invalid)?;
        let mut name = vec![0; length];
        guest.read_exact(&mut name).await?;
        let request = Request::named(kind, &name).map_err(invalid)?;
        let directory = directory.to_owned();
        let found = tokio::task::spawn_blocking(move || read(&directory, &request)).await.ok().flatten();
        let head = found.as_ref().map_or(Answer::Absent, |bytes| Answer::Present(bytes.len()));
        guest.write_all(&head.to_bytes().map_err(invalid)?).await?;
        guest.write_all(found.as_deref().unwrap_or_default()).await?;
        guest.flush().await?;
    }
    Ok(())
}

/// A file, if it is one that may be given.
fn read(directory: &Path, Request { kind, name }: &Request) -> Option<Vec<u8>> {
    let as_directory = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    // A pipe would have its reader wait, a terminal would become this process's own.
    let as_file = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let base = open(directory, as_directory, Mode::empty()).ok()?;
    let of_kind = openat(&base, kind.directory(), as_directory | OFlag::O_NOFOLLOW, Mode::empty()).ok()?;
    let file: OwnedFd = openat(&of_kind, name.as_str(), as_file, Mode::empty()).ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let most = kind.max_len();
    let mut bytes = Vec::new();
    file.take(u64::try_from(most).ok()?.checked_add(1)?).read_to_end(&mut bytes).ok()?;
    (1..=most).contains(&bytes.len()).then_some(bytes)
}

fn invalid(_: blob_protocol::Malformed) -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Connections of one guest at once.
const MAX_AT_ONCE: usize = 2;
/// Connections of one guest in all: a boot needs one.
const MAX_CONNECTIONS: usize = 16;
/// Longest life of one connection: a guest waits for half a minute.
const MAX_DURATION: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use blob_protocol::{ANSWER_HEAD, Kind, Name, PORT};
    use tokio::net::UnixStream;

    use super::*;
    use crate::VsockHost;

    async fn ask(stream: &mut UnixStream, kind: Kind, name: &str) -> Option<Vec<u8>> {
        let request = Request { kind, name: Name::new(name).unwrap() };
        stream.write_all(&request.to_bytes()).await.unwrap();
        let mut head = [0; ANSWER_HEAD];
        stream.read_exact(&mut head).await.unwrap();
        match Answer::head(kind, head).unwrap() {
            Answer::Absent => None,
            Answer::Present(length) => {
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes).await.unwrap();
                Some(bytes)
            }
        }
    }

    struct Serving {
        directory: tempfile::TempDir,
        socket: PathBuf,
        task: tokio::task::JoinHandle<Result<(), LinkError>>,
    }

    /// A directory with `rim` and `ocsp`, served.
    fn serving() -> Serving {
        let directory = tempfile::tempdir().unwrap();
        for kind in Kind::ALL {
            fs::create_dir_all(directory.path().join("blobs").join(kind.directory())).unwrap();
        }
        let host = VsockHost::VhostUser { uds_path: directory.path().join("v") };
        let listener = LinkListener::bind(&host, PORT).unwrap();
        let task = tokio::spawn(serve_blobs(listener, directory.path().join("blobs")));
        Serving { socket: host.unix_path(PORT).unwrap(), directory, task }
    }

    #[tokio::test]
    async fn files_are_given_by_kind_and_name_and_nothing_else_is() {
        let serving = serving();
        let at = |name: &str| serving.directory.path().join("blobs").join(name);
        fs::write(at("rim/good"), b"manifest").unwrap();
        fs::write(at("rim/largest"), vec![7; Kind::Rim.max_len()]).unwrap();
        fs::write(at("rim/larger"), vec![7; Kind::Rim.max_len() + 1]).unwrap();
        fs::write(at("ocsp/larger"), vec![7; Kind::Ocsp.max_len() + 1]).unwrap();
        fs::write(at("rim/empty"), b"").unwrap();
        fs::write(at("secret"), b"secret").unwrap();
        symlink(at("secret"), at("rim/link")).unwrap();
        symlink(at("rim/good"), at("rim/near")).unwrap();
        fs::create_dir(at("rim/directory")).unwrap();
        nix::unistd::mkfifo(&at("rim/pipe"), Mode::S_IRWXU).unwrap();
        let mut guest = UnixStream::connect(&serving.socket).await.unwrap();
        assert_eq!(ask(&mut guest, Kind::Rim, "good").await.as_deref(), Some(b"manifest".as_slice()));
        assert_eq!(ask(&mut guest, Kind::Rim, "largest").await.map(|bytes| bytes.len()), Some(Kind::Rim.max_len()));
        for name in ["larger", "empty", "link", "near", "directory", "pipe", "missing"] {
            assert_eq!(ask(&mut guest, Kind::Rim, name).await, None, "{name}");
        }
        assert_eq!(ask(&mut guest, Kind::Ocsp, "larger").await, None);
        assert_eq!(ask(&mut guest, Kind::Ocsp, "good").await, None, "of another kind");
        // What is there later is given: a provider need not stop a guest to add a file.
        fs::write(at("ocsp/good"), b"answer").unwrap();
        assert_eq!(ask(&mut guest, Kind::Ocsp, "good").await.as_deref(), Some(b"answer".as_slice()));
        // A kind's directory that is a link to another one is none.
        fs::remove_dir_all(at("ocsp")).unwrap();
        symlink(at("rim"), at("ocsp")).unwrap();
        assert_eq!(ask(&mut guest, Kind::Ocsp, "good").await, None);
        serving.task.abort();
    }

    #[tokio::test]
    async fn another_form_ends_its_connection_and_numbers_are_limited() {
        let serving = serving();
        for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"CBLB\x01\x01\x02..", b"CBLB\x01\x01\x03a/b"] {
            let mut guest = UnixStream::connect(&serving.socket).await.unwrap();
            guest.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let _ = guest.read_to_end(&mut rest).await;
            assert!(rest.is_empty(), "{rest:?}");
        }
        let mut guest = UnixStream::connect(&serving.socket).await.unwrap();
        for _ in 0..MAX_REQUESTS {
            assert_eq!(ask(&mut guest, Kind::Rim, "none").await, None);
        }
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0, "the connection's requests are used up");
        // So are a guest's connections, in the end.
        let mut number = 4;
        while let Ok(mut guest) = UnixStream::connect(&serving.socket).await {
            drop(guest.shutdown().await);
            let _ = guest.read(&mut [0]).await;
            number += 1;
            assert!(number < 100, "it listens for ever");
            tokio::task::yield_now().await;
        }
        serving.task.await.unwrap().unwrap();
    }
}
