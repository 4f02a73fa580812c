// SPDX-License-Identifier: Apache-2.0
//! Limits, floods and changes beside a running service, over the wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use std::sync::atomic::Ordering;

use attestation_service::Limits;
use release_client::ClientError;
use store::{AuditEntry, OpenOptions, Store};
use types::Sha384Digest;
use world::{NOW, World, reasons};

fn beside(world: &World) -> Store {
    Store::open_with(&world.store_dir(), &OpenOptions { sequencer: false, ..OpenOptions::default() }).unwrap()
}

fn code<T>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(reasons)) => reasons[0].code.clone(),
        Err(other) => panic!("{other}"),
        Ok(_) => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_too_often_is_told_so() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { client_rate: 1, ..Limits::default() };
    world.launch().await;
    let mut connection = world.connect().await;
    let mut refused = 0;
    for _ in 0..40 {
        match code(connection.challenge().await).as_str() {
            "" => {}
            "rate_limited" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((refused, world.count("rate_limited")), (30, 30), "ten at once");
    world.clock.store(NOW + 2, Ordering::SeqCst);
    for expected in ["", "", "rate_limited"] {
        assert_eq!(code(connection.challenge().await), expected, "and one a second");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_challenges_have_a_limit_and_end() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { open_challenges: 5, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let mut connection = world.connect().await;
    for _ in 0..5 {
        connection.challenge().await.unwrap();
    }
    assert_eq!(code(connection.challenge().await), "challenges_exhausted");
    world.clock.store(NOW + 60, Ordering::SeqCst);
    assert!(world.ask(&guest).await.is_ok(), "they ended");
    // A redemption makes place: any number, one after the other.
    for _ in 0..8 {
        assert!(world.ask(&guest).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_one_model_have_a_limit() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { model_rate: 1, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let mut refused = 0;
    for _ in 0..25 {
        match reasons(world.ask(&guest).await).as_slice() {
            [] => {}
            [(code, field)] if code == "rate_limited" && field == "model" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 15, "ten at once");
    world.clock.store(NOW + 1, Ordering::SeqCst);
    assert!(world.ask(&guest).await.is_ok(), "and one a second");
    assert_eq!(reasons(world.ask(&guest).await)[0].0, "rate_limited");
}

/// A flood of refusals: every one is on the log, most of them as a number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refusals_is_summed_up() {
    const FLOOD: u64 = 150;
    let mut world = World::start().await;
    let guest = world.guest_with(|_| (), |registers| registers.mr_td = Sha384Digest::of(b"x")).await;
    for _ in 0..FLOOD {
        assert_eq!(reasons(world.ask(&guest).await)[0].0, "register_mismatch");
    }
    world.service.take().unwrap().end().await;
    let (mut single, mut summed) = (0, Vec::new());
    let store = beside(&world);
    let summary = store.verify_audit_with(|_, entry| match entry {
        AuditEntry::Refusals(entry) => summed.push(entry.clone()),
        AuditEntry::Refusal(_) => single += 1,
        other => panic!("{other:?}"),
    });
    assert_eq!(summary.unwrap().refusals, FLOOD);
    // The service's clock stands still: no place comes back.
    assert_eq!((single, summed.len()), (60, 1));
    assert_eq!((summed[0].refusals, summed[0].codes["register_mismatch"]), (FLOOD - 60, FLOOD - 60));
}

/// Attack 52: what somebody revokes, or a policy that somebody sets, counts from the very next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_beside_the_service_count_at_once() {
    let world = World::start().await;
    let guest = world.guest().await;
    let store = beside(&world);
    let deny = br#"{"schema":"chrysalis/appraisal-policy/v1","platform":{"min_tcb_evaluation_data_number":99}}"#;
    let allow = br#"{"schema":"chrysalis/appraisal-policy/v1","platform":{}}"#;
    for _ in 0..3 {
        assert!(world.ask(&guest).await.is_ok());
        store.set_policy("appraisal", deny).unwrap();
        assert_eq!(world.refusal(&guest).await[0].0, "collateral_rollback");
        store.set_policy("appraisal", allow).unwrap();
    }
    assert!(world.ask(&guest).await.is_ok());
    store.revoke_release(&world.release).unwrap();
    assert_eq!(world.refusal(&guest).await[0].0, "release_revoked");
}
