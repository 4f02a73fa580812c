// SPDX-License-Identifier: Apache-2.0
//! Several guests behind the kernel's vsock.
//!
//! All guests reach the host at the same context identifier and the same ports, and one process alone can listen there. It
//! passes each connection on to the Unix socket of the guest that the kernel says it is from, named as
//! `vhost-device-vsock` names them, so that who waits for one guest need not know how its vsock is carried.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::sync::Semaphore;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::connect::connect_owned;
use crate::forward::{MAX_CONNECTIONS, MAX_DURATION};
use crate::listener::{LinkError, VsockHost};

/// Listens on `port` for all guests and passes each connection on to the `uds-path` that `route` has for its guest's context
/// identifier; others are closed, and so is what is not for a socket of the user `owner`, at which that user listens: guests'
/// user could put a link to any other service there. Runs until accepting fails.
///
/// # Errors
/// [`LinkError`].
pub async fn switch(
    port: u32,
    owner: u32,
    route: impl Fn(u32) -> Option<PathBuf> + Send + Sync,
) -> Result<(), LinkError> {
    let address = VsockAddr::new(VMADDR_CID_HOST, port);
    let listener = VsockListener::bind(address).map_err(|source| LinkError::Bind { port, source })?;
    // Each guest has its own number of connections: none takes those of others.
    let mut slots: HashMap<u32, Arc<Semaphore>> = HashMap::new();
    loop {
        let (stream, peer) = listener.accept().await.map_err(|source| LinkError::Accept { port, source })?;
        let Some(uds_path) = route(peer.cid()) else { continue };
        slots.retain(|_, slots| slots.available_permits() < SLOTS);
        let of_guest = slots.entry(peer.cid()).or_insert_with(|| Arc::new(Semaphore::new(SLOTS)));
        let Ok(slot) = Arc::clone(of_guest).try_acquire_owned() else { continue };
        tokio::spawn(async move {
            let _slot = slot;
            pass(stream, &uds_path, port, owner).await;
        });
    }
}

async fn pass(mut guest: impl AsyncRead + AsyncWrite + Unpin, uds_path: &Path, port: u32, owner: u32) {
    let Some(path) = (VsockHost::VhostUser { uds_path: uds_path.to_owned() }).unix_path(port) else { return };
    let Ok(mut host) = connect_owned(&path, owner).await else { return };
    // How it ends is the matter of its two sides; status lines keep theirs open as long as the guest lives.
    let copying = copy_bidirectional(&mut guest, &mut host);
    if port == crate::STATUS_PORT {
        let _ = copying.await;
    } else {
        let _ = tokio::time::timeout(MAX_DURATION.saturating_add(Duration::from_secs(5)), copying).await;
    }
}

/// Connections of one guest; its keeper has a smaller limit of its own.
const SLOTS: usize = MAX_CONNECTIONS * 2;

#[cfg(test)]
mod tests {
    use nix::unistd::geteuid;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;
    use crate::{SERVICE_PORT, STATUS_PORT};

    #[tokio::test]
    async fn a_connection_reaches_its_own_guests_socket() {
        let directory = tempfile::tempdir().unwrap();
        for (guest, port) in [("one", SERVICE_PORT), ("two", STATUS_PORT)] {
            let uds_path = directory.path().join(guest);
            let listener = UnixListener::bind(format!("{}_{port}", uds_path.display())).unwrap();
            let (mut near, far) = tokio::io::duplex(64);
            let passing = tokio::spawn(async move { pass(far, &uds_path, port, geteuid().as_raw()).await });
            near.write_all(guest.as_bytes()).await.unwrap();
            let (mut accepted, _) = listener.accept().await.unwrap();
            let mut found = [0; 3];
            accepted.read_exact(&mut found).await.unwrap();
            assert_eq!(&found, guest.as_bytes());
            drop((accepted, near));
            passing.await.unwrap();
        }
        // Nobody waits there: the connection ends.
        let (_near, far) = tokio::io::duplex(64);
        pass(far, &directory.path().join("three"), SERVICE_PORT, geteuid().as_raw()).await;
    }

    #[tokio::test]
    async fn no_link_leads_a_guest_to_another_service() {
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("private");
        let service = UnixListener::bind(&other).unwrap();
        let uds_path = directory.path().join("vsock");
        std::os::unix::fs::symlink(&other, format!("{}_{STATUS_PORT}", uds_path.display())).unwrap();
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(b"hello").await.unwrap();
        let passing = pass(far, &uds_path, STATUS_PORT, geteuid().as_raw());
        assert!(tokio::time::timeout(Duration::from_secs(5), passing).await.is_ok(), "it was passed on");
        let nobody = tokio::time::timeout(Duration::from_millis(50), service.accept()).await;
        assert!(nobody.is_err(), "somebody connected");
        // Nor to a socket of another user than the one who is to listen.
        let path = format!("{}_{SERVICE_PORT}", uds_path.display());
        let _foreign = UnixListener::bind(path).unwrap();
        let (_near, far) = tokio::io::duplex(64);
        pass(far, &uds_path, SERVICE_PORT, geteuid().as_raw() + 1).await;
    }
}
