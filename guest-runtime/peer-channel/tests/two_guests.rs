// SPDX-License-Identifier: Apache-2.0
//! Two guests, each with an attester of its own, over real sockets; hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]
#![allow(dead_code, reason = "the support has more than these tests need")]

mod mirror;
#[path = "../../client/tests/world/mod.rs"]
mod world;

use std::sync::Arc;

use attested_channel::tls::{client_config, exporter, peer_client_config, peer_server_config};
use attester_protocol::{ServingAnswer, ServingRequest, call};
use client::{GuestProof, GuestSide, Verifier};
use peer_channel::{MAX_MESSAGE, Own, Peer, PeerError, accept, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use types::{Document as _, FreshnessKind, Hex32};
use world::World;

/// A guest, and how the other one judges it.
struct Guest {
    world: World,
    own: Own,
    judge: Arc<Verifier>,
}

impl Guest {
    async fn start() -> Self {
        let world = World::start().await;
        let own = Own::new(world.directory.path().join("attester.sock"));
        let judge = world.verifier(|_| ());
        Self { world, own, judge }
    }

    fn ask(&self, request: &ServingRequest) -> ServingAnswer {
        let socket = self.world.directory.path().join("attester.sock");
        call(&mut std::os::unix::net::UnixStream::connect(socket).unwrap(), 1, request).unwrap()
    }
}

type Connected = Result<Peer<DuplexStream>, PeerError>;

/// Guest `a` connects to guest `b`.
async fn meet(a: &Guest, b: &Guest) -> (Connected, Connected) {
    let (near, far) = duplex(1 << 12);
    tokio::join!(connect(near, &a.own, &b.judge), accept(far, &b.own, &a.judge))
}

fn codes<T>(result: Result<T, PeerError>) -> Vec<String> {
    match result {
        Err(PeerError::Refused(reasons)) => reasons.into_iter().map(|reason| reason.code).collect(),
        Err(error) => panic!("{error}"),
        Ok(_) => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_know_the_other_and_exchange_data() {
    let (a, b) = (Guest::start().await, Guest::start().await);
    let (at_a, at_b) = meet(&a, &b).await;
    let (mut at_a, mut at_b) = (at_a.unwrap(), at_b.unwrap());
    assert!(at_a.verdict().is_accepted() && at_b.verdict().is_accepted());
    assert_eq!(at_a.evidence().instance_key, b.world.instance_key);
    assert_eq!(at_b.evidence().instance_key, a.world.instance_key);
    let large = vec![7; MAX_MESSAGE];
    let (sent, received) = tokio::join!(at_a.send(&large), at_b.receive());
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap(), large);
    at_b.send(b"").await.unwrap();
    at_b.send(b"answer").await.unwrap();
    assert_eq!(at_a.receive().await.unwrap().unwrap(), b"");
    assert_eq!(at_a.receive().await.unwrap().unwrap(), b"answer");
    assert!(matches!(at_a.send(&vec![0; MAX_MESSAGE + 1]).await, Err(PeerError::TooLong(_))));
    // Its key is renewed; the connection goes on with the one that it began with.
    let key = at_b.evidence().spki_sha256;
    a.world.renewer.renew();
    let ServingAnswer::Identity(newer) = a.ask(&ServingRequest::Successor { key }) else { panic!("no successor") };
    assert_ne!(newer.spki_sha256, key);
    let (renewed_a, renewed_b) = tokio::join!(at_a.renew(), at_b.renew());
    renewed_a.unwrap();
    renewed_b.unwrap();
    assert_eq!(at_b.evidence().spki_sha256, key);
    at_a.send(b"question").await.unwrap();
    assert_eq!(at_b.receive().await.unwrap().unwrap(), b"question");
    drop(at_a);
    assert!(!matches!(at_b.receive().await, Ok(Some(_))));
}

/// Neither side has a connection when one of them does not accept the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_each_side_counts() {
    let (mut a, mut b) = (Guest::start().await, Guest::start().await);
    let strict = |guest: &Guest| guest.world.verifier(|p| p.appraisal.instances = Some(vec![Hex32::default()]));
    let (strict_a, strict_b) = (strict(&a), strict(&b));
    let usual = std::mem::replace(&mut a.judge, strict_a);
    let (at_a, at_b) = meet(&a, &b).await;
    assert_eq!(codes(at_b), ["instance_not_allowed"]);
    assert!(matches!(at_a, Err(PeerError::RefusedByPeer)), "{at_a:?}");
    a.judge = usual;
    b.judge = strict_b;
    let (at_a, at_b) = meet(&a, &b).await;
    assert_eq!(codes(at_a), ["instance_not_allowed"]);
    assert!(matches!(at_b, Err(PeerError::RefusedByPeer)), "{at_b:?}");
}

/// Attack 33 between guests: the very proof that one side made, for the same challenge on the same connection, is not
/// the other side's.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_one_side_is_not_one_of_the_other() {
    let guest = Guest::start().await;
    let ServingAnswer::Identity(identity) = guest.ask(&ServingRequest::Identity {}) else { panic!("no identity") };
    let (challenge, exporter) = ([5; 32], [6; 32]);
    for (kind, own, other) in [
        (FreshnessKind::Tls, GuestSide::Server, GuestSide::Client),
        (FreshnessKind::TlsClient, GuestSide::Client, GuestSide::Server),
    ] {
        let ServingAnswer::Proof { proof } = guest.ask(&ServingRequest::Prove {
            key: identity.spki_sha256,
            kind,
            challenge: Hex32::new(challenge),
            binding: Hex32::new(exporter),
        }) else {
            panic!("no proof")
        };
        let mut relabelled = proof.clone();
        relabelled.freshness.kind =
            if kind == FreshnessKind::Tls { FreshnessKind::TlsClient } else { FreshnessKind::Tls };
        let judge = |side, proof: &types::ConnectionProof| {
            let proof = proof.to_canonical().unwrap();
            let given = GuestProof {
                evidence: identity.evidence.as_slice(),
                proof: &proof,
                challenge: &challenge,
                exporter: &exporter,
                spki_sha256: &identity.spki_sha256,
            };
            let judged = guest.judge.judge_guest(side, given, world::now());
            judged.err().map(|error| error.reasons().into_iter().map(|reason| reason.code).collect::<Vec<_>>())
        };
        assert_eq!(judge(own, &proof), None);
        assert_eq!(judge(other, &proof).unwrap(), ["freshness_kind", "binding_mismatch"]);
        // Another word on it does not help: leaf and REPORTDATA have the kind.
        assert_eq!(judge(other, &relabelled).unwrap(), ["binding_mismatch", "report_data_mismatch"]);
    }
}

/// A mirror has no key of a guest. Everything that it is told it says back.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_refused_at_its_first_word() {
    let guest = Guest::start().await;
    let (near, far) = duplex(1 << 16);
    let config = peer_client_config(Arc::new(mirror::Shown::new())).unwrap();
    let mirror = tokio::spawn(mirror::reflect(config, far));
    assert_eq!(codes(accept(near, &guest.own, &guest.judge).await), ["challenge_reflected"]);
    mirror.await.unwrap();
    let (near, far) = duplex(1 << 16);
    let config = peer_server_config(Arc::new(mirror::Shown::new())).unwrap();
    let mirror = tokio::spawn(mirror::reflect_as_server(config, far));
    assert_eq!(codes(connect(near, &guest.own, &guest.judge).await), ["challenge_reflected"]);
    mirror.await.unwrap();
}

/// Attacks 32a, 35 between guests: whoever stands between two of them passes their words on.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_refused_on_both_sides() {
    let (a, b) = (Guest::start().await, Guest::start().await);
    let ((near, left), (right, far)) = (duplex(1 << 16), duplex(1 << 16));
    let relay = tokio::spawn(mirror::relay(left, right));
    let (at_a, at_b) = tokio::join!(connect(near, &a.own, &b.judge), accept(far, &b.own, &a.judge));
    for refused in [codes(at_a), codes(at_b)] {
        assert_eq!(refused, ["certificate_key_mismatch", "binding_mismatch"]);
    }
    relay.abort();
}

/// A guest that is led back to itself is told so, though every proof is genuine.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_meet_itself() {
    let guest = Guest::start().await;
    let (near, far) = meet(&guest, &guest).await;
    assert_eq!((codes(near), codes(far)), (vec!["peer_is_self".to_owned()], vec!["peer_is_self".to_owned()]));
}

/// Nobody gets less than both proofs: not without a certificate, not by the protocol of clients, not by speaking first.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_one_sided_connection() {
    let (a, b) = (Guest::start().await, Guest::start().await);
    // A usual client of the API, at a guest that awaits guests: neither certificate nor protocol.
    let (near, far) = duplex(1 << 16);
    let usual = tokio::spawn(mirror::handshake(client_config().unwrap(), far));
    assert!(matches!(accept(near, &b.own, &a.judge).await, Err(PeerError::Handshake(_))));
    assert!(usual.await.unwrap().is_err());
    // The right protocol, and no certificate.
    let (near, far) = duplex(1 << 16);
    let mut config = client_config().unwrap();
    config.alpn_protocols = vec![attested_channel::tls::PEER_ALPN.to_vec()];
    let bare = tokio::spawn(async move {
        let mut stream = mirror::handshake(config, far).await?;
        stream.read_u8().await.map(drop)
    });
    assert!(matches!(accept(near, &b.own, &a.judge).await, Err(PeerError::Handshake(_))));
    assert!(bare.await.unwrap().is_err());
    // A guest at the API of another: that one asks for no certificate, and speaks no such protocol.
    let tcp = tokio::net::TcpStream::connect((b.world.upstream.host(), b.world.upstream.port())).await.unwrap();
    assert!(matches!(connect(tcp, &a.own, &b.judge).await, Err(PeerError::Handshake(_))));
    // A certificate, the protocol, and a request where the proof is due.
    let (near, far) = duplex(1 << 16);
    let eager = tokio::spawn(async move {
        let config = peer_client_config(Arc::new(mirror::Shown::new())).unwrap();
        let mut stream = mirror::handshake(config, far).await?;
        // Length, "data", four bytes.
        stream.write_all(&[0, 0, 0, 5, 0, b'd', b'a', b't', b'a']).await?;
        stream.flush().await?;
        let mut heard = Vec::new();
        // Its challenge is all that it hears.
        let _ = stream.read_to_end(&mut heard).await;
        Ok::<_, std::io::Error>(heard)
    });
    assert!(matches!(accept(near, &b.own, &a.judge).await, Err(PeerError::Protocol(_))));
    let heard = String::from_utf8_lossy(&eager.await.unwrap().unwrap()).into_owned();
    assert!(heard.matches("challenge").count() <= 2 && !heard.contains("evidence"), "{heard}");
}

/// What both ends compute for themselves is the same, and another on each connection: no proof is of use elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_bound_to_its_connection() {
    let mut bindings: Vec<[u8; 32]> = Vec::new();
    for _ in 0..2 {
        let (near, far) = duplex(1 << 16);
        let server = peer_server_config(Arc::new(mirror::Shown::new())).unwrap();
        let client = peer_client_config(Arc::new(mirror::Shown::new())).unwrap();
        let (near, far) = tokio::join!(mirror::handshake(client, near), mirror::answer(server, far));
        let (near, far) = (near.unwrap(), far.unwrap());
        let binding = exporter(near.get_ref().1, &[1; 32]).unwrap();
        assert_eq!(binding, exporter(far.get_ref().1, &[1; 32]).unwrap());
        bindings.push(binding);
    }
    assert_ne!(bindings[0], bindings[1]);
}
