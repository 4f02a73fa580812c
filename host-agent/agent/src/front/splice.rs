// SPDX-License-Identifier: Apache-2.0
//! One connection, byte by byte both ways.

use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Passes bytes on until both sides are done, or one is broken.
pub(super) async fn splice(mut client: TcpStream, address: SocketAddrV4) {
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let Ok(Ok(mut guest)) = connected else { return };
    // A token at a time: nothing waits for more. Without the option it is only slower.
    let _ = (client.set_nodelay(true), guest.set_nodelay(true));
    // How a connection ends is its two sides' matter.
    let _ = copy_bidirectional(&mut client, &mut guest).await;
}

const CONNECT: Duration = Duration::from_secs(10);
