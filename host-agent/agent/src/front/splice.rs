// SPDX-License-Identifier: Apache-2.0
//! One connection, byte by byte both ways.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection may keep its place for nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the guest's part once the client's has ended.
    pub(super) last: Duration,
    /// For the client's part once the guest's has ended: a guest ends both at once.
    pub(super) leaving: Duration,
    /// For a client to take the next bytes.
    pub(super) taking: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { last: Duration::from_secs(30), leaving: Duration::from_secs(2), taking: Duration::from_secs(120) }
    }
}

/// Passes bytes on until both sides are done, one is broken, or only one is left and takes too long. With `from` the guest is
/// told first that the client has this address.
pub(super) async fn splice(mut client: TcpStream, address: SocketAddrV4, from: Option<SocketAddr>, patience: Patience) {
    let connected = timeout(CONNECT, TcpStream::connect(address)).await;
    let Ok(Ok(mut guest)) = connected else { return };
    // A token at a time: nothing waits for more. Without the option it is only slower.
    let _ = (client.set_nodelay(true), guest.set_nodelay(true));
    if let Some(from) = from {
        let Ok(listening) = client.local_addr() else { return };
        // A few bytes on a connection that has carried none: they wait for nobody.
        let header = proxy_protocol::header(from, listening);
        if !matches!(timeout(CONNECT, guest.write_all(&header)).await, Ok(Ok(()))) {
            return;
        }
    }
    let (from_client, to_client) = client.split();
    let (from_guest, to_guest) = guest.split();
    // A guest may let its clients wait; a client that takes nothing holds a place that others need.
    let up = pass(from_client, to_guest, None);
    let down = pass(from_guest, to_client, Some(patience.taking));
    tokio::pin!(up, down);
    // How a connection ends is its two sides' matter.
    let _ = tokio::select! {
        ended = &mut up => match ended {
            Ok(()) => timeout(patience.last, down).await.unwrap_or(Ok(())),
            broken => broken,
        },
        ended = &mut down => match ended {
            Ok(()) => timeout(patience.leaving, up).await.unwrap_or(Ok(())),
            broken => broken,
        },
    };
}

/// Passes bytes on until `from` ends, and its end, too.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    patience: Option<Duration>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        let part = buffer.get(..length).unwrap_or_default();
        match (length, patience) {
            (0, _) => return to.shutdown().await,
            (_, Some(patience)) => timeout(patience, to.write_all(part)).await??,
            (_, None) => to.write_all(part).await?,
        }
    }
}

const CONNECT: Duration = Duration::from_secs(10);
const BUFFER: usize = 8 * 1024;
