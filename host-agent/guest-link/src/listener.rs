// SPDX-License-Identifier: Apache-2.0
//! Listening for one guest's connections, whichever way its vsock is carried.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// Who carries the guest's vsock.
#[derive(Debug, Clone)]
pub enum VsockHost {
    /// The host kernel; only the guest with this context identifier is answered.
    Kernel {
        /// The guest's context identifier.
        cid: u32,
    },
    /// `vhost-device-vsock` with this `uds-path`: a connection to port N arrives at the Unix socket `<path>_N`.
    VhostUser {
        /// The `uds-path`.
        uds_path: PathBuf,
    },
}

impl VsockHost {
    /// Path of the Unix socket for `port` where Unix sockets carry the link.
    #[must_use]
    pub fn unix_path(&self, port: u32) -> Option<PathBuf> {
        match self {
            Self::Kernel { .. } => None,
            Self::VhostUser { uds_path } => Some(suffixed(uds_path, port)),
        }
    }
}

/// Why a link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket could not be bound.
    #[error("vsock port {port}: cannot listen: {source}")]
    Bind {
        /// The vsock port.
        port: u32,
        /// What the system said.
        source: std::io::Error,
    },
    /// A connection could not be accepted.
    #[error("vsock port {port}: cannot accept: {source}")]
    Accept {
        /// The vsock port.
        port: u32,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A listener on one port of one guest.
#[derive(Debug)]
pub struct LinkListener {
    port: u32,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Kernel { listener: VsockListener, cid: u32 },
    Unix { listener: UnixListener, path: PathBuf },
}

/// A connection from the guest.
#[derive(Debug)]
pub enum LinkStream {
    /// Carried by the kernel.
    Kernel(VsockStream),
    /// Carried by a Unix socket.
    Unix(UnixStream),
}

impl LinkListener {
    /// Listens on `port`.
    ///
    /// # Errors
    /// [`LinkError::Bind`].
    pub fn bind(host: &VsockHost, port: u32) -> Result<Self, LinkError> {
        let bind_error = |source| LinkError::Bind { port, source };
        let inner = match host {
            VsockHost::Kernel { cid } => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_HOST, port)).map_err(bind_error)?;
                Inner::Kernel { listener, cid: *cid }
            }
            VsockHost::VhostUser { uds_path } => {
                let path = suffixed(uds_path, port);
                let listener = UnixListener::bind(&path).map_err(bind_error)?;
                Inner::Unix { listener, path }
            }
        };
        Ok(Self { port, inner })
    }

    /// The next connection of this guest. Connections of other guests are closed.
    ///
    /// # Errors
    /// [`LinkError::Accept`].
    pub async fn accept(&mut self) -> Result<LinkStream, LinkError> {
        let port = self.port;
        let accept_error = |source| LinkError::Accept { port, source };
        match &mut self.inner {
            Inner::Kernel { listener, cid } => loop {
                let (stream, peer) = listener.accept().await.map_err(accept_error)?;
                if peer.cid() == *cid {
                    return Ok(LinkStream::Kernel(stream));
                }
            },
            Inner::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await.map_err(accept_error)?;
                Ok(LinkStream::Unix(stream))
            }
        }
    }
}

impl Drop for LinkListener {
    fn drop(&mut self) {
        if let Inner::Unix { path, .. } = &self.inner {
            // A socket file that is already gone needs no removal; nothing else can be done about a failure here.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn suffixed(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    PathBuf::from(name)
}
