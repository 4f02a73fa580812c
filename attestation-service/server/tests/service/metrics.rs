// SPDX-License-Identifier: Apache-2.0
//! Metrics, health and readiness.

use crate::world;

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering};

use store::{OpenOptions, Store};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use types::Sha384Digest;
use world::{NOW, World};

async fn metrics(world: &World) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Arc::clone(&world.service.as_ref().unwrap().service);
    tokio::spawn(attestation_service::metrics::serve(service, listener));
    address
}

async fn read(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted() {
    let world = World::start().await;
    let address = metrics(&world).await;
    let good = world.guest().await;
    let bad = world.guest_with(|_| (), |registers| registers.mr_td = Sha384Digest::of(b"x")).await;
    for _ in 0..3 {
        world.ask(&good).await.map(drop).unwrap();
    }
    assert!(world.ask(&bad).await.is_err());
    let mut connection = world.connect().await;
    connection.challenge().await.unwrap();
    let (status, text) = read(address, "/metrics").await;
    assert_eq!(status, 200);
    for expected in [
        "chrysalis_attestation_outcomes_total{code=\"released\"} 3".to_owned(),
        "chrysalis_attestation_outcomes_total{code=\"register_mismatch\"} 1".to_owned(),
        "chrysalis_attestation_key_release_seconds_count 4".to_owned(),
        "chrysalis_attestation_appraisal_seconds_count 4".to_owned(),
        "chrysalis_attestation_audit_append_seconds_count 3".to_owned(),
        format!(
            "chrysalis_attestation_build_info{{version=\"{}\",hardware=\"simulated\"}} 1",
            env!("CARGO_PKG_VERSION")
        ),
        // Two guests asked for the time, four requests each had a challenge and an answer, and one challenge was left.
        "chrysalis_attestation_requests_total 11".to_owned(),
        "chrysalis_attestation_work_asked_total 0".to_owned(),
        "chrysalis_attestation_open_challenges 2".to_owned(),
        "chrysalis_attestation_ready 1".to_owned(),
        format!("chrysalis_attestation_collateral_expires_seconds{{fmspc=\"53494d000000\"}} {}", NOW + 30 * 86_400),
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} in {text}");
    }
    // Every line is of the text format: a comment, or a name and a number.
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("chrysalis_attestation_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(read(address, "/").await.0, 404);
    assert_eq!(read(address, "/v1/time").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_is_who_can_give_keys() {
    let world = World::start().await;
    let address = metrics(&world).await;
    assert_eq!(read(address, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(read(address, "/readyz").await, (200, "ready\n".into()));
    world.clock.store(NOW + 31 * 86_400, Ordering::SeqCst);
    assert_eq!(read(address, "/readyz").await, (503, "no collateral is valid\n".into()));
    world.clock.store(NOW, Ordering::SeqCst);
    let store =
        Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() }).unwrap();
    let not_ready = |reason: &str| (503, format!("{reason}\n"));
    let no_release = not_ready("no release is imported that is valid, accepted and not revoked");
    let listed = |digest| format!(r#"{{"schema":"chrysalis/appraisal-policy/v1","releases":["{digest}"]}}"#);
    store.set_policy("appraisal", listed(types::Sha256Digest::of(b"another")).as_bytes()).unwrap();
    assert_eq!(read(address, "/readyz").await, no_release);
    store.set_policy("appraisal", b"not a policy").unwrap();
    assert_eq!(read(address, "/readyz").await, not_ready("the policy or the releases can't be read"));
    store.set_policy("appraisal", listed(world.release).as_bytes()).unwrap();
    assert_eq!(read(address, "/readyz").await, (200, "ready\n".into()));
    store.revoke_release(&world.release).unwrap();
    assert_eq!(read(address, "/readyz").await, no_release);
    let world = World::start().await;
    let address = metrics(&world).await;
    let store =
        Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() }).unwrap();
    store.revoke_model(&world::model()).unwrap();
    assert_eq!(read(address, "/readyz").await, not_ready("no key is imported of a model that is not revoked"));
    assert_eq!(read(address, "/healthz").await.0, 200);
}
