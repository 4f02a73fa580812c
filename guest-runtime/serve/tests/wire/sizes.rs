// SPDX-License-Identifier: Apache-2.0
//! Attack 66: what somebody on the wire sees of an answer's length. TLS records are counted as they pass.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{Guest, support::Client};

/// Passes connections on, and keeps what the guest sends.
struct Wire {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    async fn to(guest: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, sent) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
        let kept = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(guest).await.unwrap();
                let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_far).await });
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(length @ 1..) = from_far.read(&mut bytes).await {
                        kept.lock().unwrap().extend_from_slice(&bytes[..length]);
                        if to_near.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, sent }
    }

    /// Bytes of the application data that the guest has sent since it was asked last: their sum, since how often the server
    /// writes depends on who is faster.
    fn taken(&self) -> usize {
        let bytes = std::mem::take(&mut *self.sent.lock().unwrap());
        let (mut rest, mut sum) = (bytes.as_slice(), 0);
        while let [kind, _, _, high, low, ..] = *rest {
            let length = usize::from(u16::from_be_bytes([high, low]));
            // RFC 8446, section 5.2: 16 bytes of tag and a byte of type belong to the record.
            sum += if kind == 23 { length - 17 } else { 0 };
            rest = rest.get(5 + length..).expect("whole records");
        }
        sum
    }
}

/// What the guest sends for an answer whose pieces are so long.
async fn sizes(wire: &Wire, client: &mut Client, pieces: &[usize], extra: &str) -> usize {
    let text: Vec<String> = pieces.iter().map(|length| "x".repeat(*length)).collect();
    wire.taken();
    let (status, _, body) = client.chat(&format!("say {}", text.join("|")), extra).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&body).contains("xx"));
    wire.taken()
}

/// The HTTP framing around the answer's bytes is some hundred bytes and depends on how often the server writes: what counts
/// is that the lengths of the pieces make no difference beyond that, and without filling do.
#[tokio::test(flavor = "multi_thread")]
async fn the_wire_does_not_show_how_long_the_pieces_are() {
    let guest = Guest::start().await;
    let wire = Wire::to(guest.address).await;
    let (mut client, _) = Client::proven(wire.address).await;
    let (stream, plain) = (r#","stream":true"#, r#","stream":true,"stream_options":{"include_obfuscation":false}"#);
    let (short, long) = ([2; 12], [150; 12]);
    let mut seen = [0; 6];
    for (at, (pieces, extra)) in
        [(&short, stream), (&long, stream), (&short, ""), (&[3; 12], ""), (&short, plain), (&long, plain)]
            .into_iter()
            .enumerate()
    {
        seen[at] = sizes(&wire, &mut client, pieces, extra).await;
    }
    let apart = |a: usize, b: usize| seen[a].abs_diff(seen[b]);
    assert!(apart(0, 1) < FRAMING, "{seen:?}");
    assert!(apart(2, 3) < FRAMING, "{seen:?}");
    // The same pieces, told: 12 × 148 bytes.
    assert!(apart(4, 5) > 12 * 148 - FRAMING, "{seen:?}");
}

/// Lengths of chunks and their line ends (RFC 9112, section 7.1), for some fourteen events that may be written together.
const FRAMING: usize = 160;
