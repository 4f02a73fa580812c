// SPDX-License-Identifier: Apache-2.0
//! Whose a connection is, where a proxy says it first.

use std::net::{IpAddr, SocketAddr};

use proxy_protocol::{Heard, MAX_BYTES, Source, hear};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Reads a header and not a byte behind it. `None` if there is none: then the connection is worth nothing.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), peer: SocketAddr) -> Option<IpAddr> {
    let mut bytes = [0; MAX_BYTES];
    let mut length = 0_usize;
    loop {
        let wanted = match hear(bytes.get(..length)?).ok()? {
            Heard::Whole(Source::Client(client)) => return Some(client.ip()),
            Heard::Whole(Source::Local) => return Some(peer.ip()),
            Heard::Part(wanted) => wanted,
        };
        match stream.read(bytes.get_mut(length..wanted)?).await.ok()? {
            0 => return None,
            more => length = length.checked_add(more)?,
        }
    }
}
