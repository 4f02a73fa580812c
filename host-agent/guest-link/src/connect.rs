// SPDX-License-Identifier: Apache-2.0
//! Connecting to a Unix socket in a directory that somebody else can write.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use tokio::net::UnixStream;

/// Connects to the socket `path` of the user `owner`: `path` is no link, the socket is that user's, and so is the process
/// that listens. Who can exchange the socket for a link to another, or for another's, connects nobody to it.
///
/// Directories on the way are followed: they must not be that user's. Which process of the user listens is not established.
///
/// # Errors
/// `PermissionDenied` for a link, another kind of file and another user's; otherwise what the kernel says.
pub async fn connect_owned(path: &Path, owner: u32) -> io::Result<UnixStream> {
    // What is opened is what is looked at and connected to, whatever its name stands for by then. Nothing is read or
    // awaited by opening it so (open(2), O_PATH).
    let careful = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
    let socket = OpenOptions::new().read(true).custom_flags(careful).open(path)?;
    let metadata = socket.metadata()?;
    if !metadata.file_type().is_socket() || metadata.uid() != owner {
        return Err(denied("it is no socket of the user who is to listen there"));
    }
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await?;
    if stream.peer_cred()?.uid() != owner {
        return Err(denied("who listens there is another user than the one who is to"));
    }
    Ok(stream)
}

fn denied(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use nix::unistd::geteuid;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    const NOBODY: u32 = 65_534;

    async fn refused(path: &Path, owner: u32) -> bool {
        connect_owned(path, owner).await.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[tokio::test]
    async fn ones_own_socket_is_connected_to_and_no_link_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("socket"), directory.path().join("link"));
        let own = geteuid().as_raw();
        let listener = UnixListener::bind(&path).unwrap();
        symlink(&path, &link).unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(refused(&link, own).await, "a link");
        assert!(refused(&directory.path().join("file"), own).await, "a file");
        assert!(refused(&path, own + 1).await, "another user's");
        nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refused(&directory.path().join("pipe"), own).await, "a pipe, which is not waited for");
        let missing = connect_owned(&directory.path().join("missing"), own).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // The first that ever came is the one that was let through.
        let mut near = connect_owned(&path, own).await.unwrap();
        near.write_all(b"x").await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_socket_is_nothing_worth_without_its_user_behind_it() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root gives files to another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // Theirs by the file's owner, but root listens: a hard link to a socket that was given away, say.
        chown(&path, Some(NOBODY), None).unwrap();
        assert!(refused(&path, NOBODY).await);
        let (mut far, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert!(heard.is_empty(), "nothing was said");
    }
}
