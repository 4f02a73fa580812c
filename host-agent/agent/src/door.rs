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
    /// That of a guest that learns so whose its connections are.
    pub(crate) fn new(address: SocketAddrV4, form: ClientAddress) -> Self {
        Self { address, header: form == ClientAddress::ProxyProtocol }
    }

    /// That of the guest of a run directory. Where its configuration cannot be read, without headers: a guest closes what it
    /// does not take.
    pub(crate) fn of(run_dir: &Path, address: SocketAddrV4) -> Self {
        Self::new(address, prepare::client_address(run_dir).unwrap_or_default())
    }

    /// A connection on which nothing was said yet: somebody listens.
    pub(crate) async fn knock(self) -> std::io::Result<Visit> {
        let stream = TcpStream::connect(self.address).await?;
        Ok(Visit { stream, header: self.header })
    }

    /// A connection that is no client's.
    pub(crate) async fn connect(self) -> std::io::Result<TcpStream> {
        self.knock().await?.say_whose().await
    }
}

/// A connection that a guest has to be told of.
#[derive(Debug)]
pub(crate) struct Visit {
    stream: TcpStream,
    header: bool,
}

impl Visit {
    /// Tells the guest, where it wants to know, that the connection is no client's.
    pub(crate) async fn say_whose(mut self) -> std::io::Result<TcpStream> {
        if self.header {
            self.stream.write_all(&proxy_protocol::LOCAL).await?;
        }
        Ok(self.stream)
    }
}
