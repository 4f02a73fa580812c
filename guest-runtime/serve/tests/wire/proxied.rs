// SPDX-License-Identifier: Apache-2.0
//! Connections that begin with a header of the PROXY protocol, and those that should.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use proxy_protocol::{LOCAL, header};
use serve::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Guest, code, content,
    support::{Client, chat_body},
};

const CHAT: &str = "/v1/chat/completions";
const FIRST: &str = "192.0.2.1:50000";

fn of(client: &str) -> Vec<u8> {
    header(client.parse().unwrap(), "198.51.100.4:443".parse().unwrap())
}

/// Says `first`, then does what clients do.
async fn enter(guest: &Guest, first: &[u8]) -> Option<Client> {
    let mut tcp = TcpStream::connect(guest.address).await.unwrap();
    tcp.write_all(first).await.ok()?;
    let mut client = Client::over(tcp).await?;
    client.attest([7; 32]).await;
    Some(client)
}

/// As many connections as are taken.
async fn fill(guest: &Guest, client: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    while let Some(client) = enter(guest, &of(client)).await {
        clients.push(client);
    }
    clients
}

/// Bytes that are answered by nothing but the end of the connection, and how long that took.
async fn closed(guest: &Guest, first: &[u8]) -> Duration {
    let mut tcp = TcpStream::connect(guest.address).await.unwrap();
    let begun = Instant::now();
    tcp.write_all(first).await.unwrap();
    let mut answer = Vec::new();
    // It may be reset, since it was not read to its end.
    let _ = tokio::time::timeout(Duration::from_secs(30), tcp.read_to_end(&mut answer)).await.expect("closed");
    assert!(answer.is_empty(), "{answer:?}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_one_proxy_share_connections_by_their_own_addresses() {
    let guest = Guest::start_behind_proxy(Limits { connections: 16, ..Limits::default() }).await;
    let first = fill(&guest, FIRST).await;
    assert_eq!(first.len(), 12, "three quarters");
    // Other ports of the same address find no place, other addresses do.
    assert!(enter(&guest, &of("192.0.2.1:50001")).await.is_none());
    let mut other = enter(&guest, &of("192.0.2.2:50000")).await.unwrap();
    assert_eq!(content(&other.chat("hi", "").await.2), "Paris.");
    assert!(enter(&guest, &of("[2001:db8::1]:50000")).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_one_proxy_share_answers_by_their_own_addresses() {
    let guest = Guest::start_behind_proxy(Limits { generations: 4, ..Limits::default() }).await;
    let mut hanging = enter(&guest, &of(FIRST)).await.unwrap();
    let response = hanging.start(Method::POST, CHAT, chat_body("hang", r#","stream":true,"n":3"#)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut same = enter(&guest, &of(FIRST)).await.unwrap();
    let (status, _, body) = same.chat("hi", "").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "server_busy"));
    let mut other = enter(&guest, &of("192.0.2.2:50000")).await.unwrap();
    assert_eq!(content(&other.chat("hi", "").await.2), "Paris.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_come_in_any_pieces_and_be_the_proxys_own() {
    let guest = Guest::start_behind_proxy(Limits { connections: 4, ..Limits::default() }).await;
    for first in [of(FIRST), of("[2001:db8::1]:50000"), LOCAL.to_vec()] {
        let mut tcp = TcpStream::connect(guest.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        for byte in &first {
            tcp.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut client = Client::over(tcp).await.unwrap();
        client.attest([7; 32]).await;
        assert_eq!(content(&client.chat("hi", "").await.2), "Paris.");
    }
    // The proxy's own are of its address: here, of one.
    let mut own = Vec::new();
    while let Some(client) = enter(&guest, &LOCAL).await {
        own.push(client);
    }
    assert_eq!(own.len(), 3);
    assert!(enter(&guest, &of(FIRST)).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_header_is_closed_without_an_answer() {
    let guest = Guest::start_behind_proxy(Limits::default()).await;
    let soon = Duration::from_secs(5);
    let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 506]].concat();
    let mut long = of(FIRST);
    long[14..16].copy_from_slice(&217_u16.to_be_bytes());
    let mut datagram = of(FIRST);
    datagram[13] = 0x12;
    let text = b"PROXY TCP4 192.0.2.1 198.51.100.4 50000 443\r\n".to_vec();
    for refused in [hello, long, datagram, text, b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 4096], b"G".to_vec()] {
        let took = closed(&guest, &refused).await;
        assert!(took < soon, "{took:?} {refused:?}");
    }
    assert!(enter(&guest, &[]).await.is_none());
    assert!(enter(&guest, &of(FIRST)).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_holds_no_place_beyond_the_handshakes_time() {
    let handshake = Duration::from_millis(600);
    let guest = Guest::start_behind_proxy(Limits { handshake, nameless: 2, ..Limits::default() }).await;
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut tcp = TcpStream::connect(guest.address).await.unwrap();
        tcp.write_all(&of(FIRST)[..20]).await.unwrap();
        silent.push(tcp);
    }
    // No place is left for who has still to say his name, until theirs are over.
    let mut late = TcpStream::connect(guest.address).await.unwrap();
    late.write_all(&of("192.0.2.2:50000")).await.unwrap();
    assert!(Client::over(late).await.is_some());
    assert!(begun.elapsed() >= handshake);
    for mut tcp in silent {
        assert!(matches!(tcp.read(&mut [0]).await, Ok(0) | Err(_)), "closed");
    }
    // The header's time and the handshake's are one.
    let mut slow = TcpStream::connect(guest.address).await.unwrap();
    let begun = Instant::now();
    tokio::time::sleep(handshake / 2).await;
    slow.write_all(&of(FIRST)).await.unwrap();
    assert!(matches!(slow.read(&mut [0]).await, Ok(0) | Err(_)), "closed");
    assert!(begun.elapsed() < handshake * 3 / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_shall_say_it_a_header_is_garbage() {
    let guest = Guest::start().await;
    assert!(enter(&guest, &of(FIRST)).await.is_none());
    assert!(enter(&guest, &LOCAL).await.is_none());
    guest.is_unharmed().await;
}
