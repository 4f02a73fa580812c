// SPDX-License-Identifier: Apache-2.0
//! Where a guest takes clients, for programs of this host that connect to it for themselves.

use std::net::SocketAddrV4;
use std::path::Path;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use types::config::ClientAddress;

use crate::prepare;

/// A guest's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Door {
    /// Where connections go in.
    pub(crate) address: SocketAddrV4,
    /// They begin with a header that says whose they are.
    pub(crate) header: bool,
}

impl Door {
    /// That of the guest of a run directory. Where its configuration cannot be read, without headers: a guest closes what it
    /// does not take.
    pub(crate) fn of(run_dir: &Path, address: SocketAddrV4) -> Self {
        let header = prepare::client_address(run_dir).unwrap_or_default() == ClientAddress::ProxyProtocol;
        Self { address, header }
    }

    /// A connection that is no client's.
    pub(crate) async fn connect(self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        if self.header {
            stream.write_all(&proxy_protocol::LOCAL).await?;
        }
        Ok(stream)
    }
}
