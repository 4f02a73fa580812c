// SPDX-License-Identifier: Apache-2.0
//! Limits, floods and changes beside a running service, over the wire.

use crate::world;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use attestation_service::Limits;
use key_release::KeyReleaseRequest;
use release_client::{ClientError, ServiceConnection, key_release_protocol::is_solution};
use store::{AuditEntry, OpenOptions, Store};
use types::{Base64, Document as _, Sha384Digest};
use world::{NOW, World, key_pair, model, reasons};

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
            "" => assert_eq!(connection.retry_after(), None),
            "rate_limited" => {
                refused += 1;
                assert_eq!(connection.retry_after(), Some(Duration::from_secs(1)));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((refused, world.count("rate_limited")), (30, 30), "ten at once");
    world.clock.store(NOW + 2, Ordering::SeqCst);
    for expected in ["", "", "rate_limited"] {
        assert_eq!(code(connection.challenge().await), expected, "and one a second");
    }
}

/// One address holds as many challenges as it can get: another one gets its key, for some work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_challenges_costs_others_some_work_and_no_key() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { open_challenges: 64, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let mut flood = world.connect().await;
    let mut asked = Vec::new();
    let refused = loop {
        match flood.challenge().await {
            Ok(challenge) => asked.push(challenge.work_bits()),
            Err(ClientError::Refused(reasons)) => break reasons,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((refused[0].code.as_str(), refused[0].field.as_str()), ("challenges_exhausted", "client"));
    assert_eq!(asked, [[0; 8].as_slice(), &[16; 8], &[18; 16]].concat(), "half of all, dearer and dearer");

    let mut other = world.connect_from([127, 0, 0, 2].into()).await;
    let challenge = other.challenge().await.unwrap();
    assert_eq!(challenge.work_bits(), 16);
    let key = key_pair();
    let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
    // Without a solution, or with another token's, nothing is looked at, and the challenge is still good.
    let service = &world.service.as_ref().unwrap().service;
    let binding = *challenge.binding();
    for work in [None, (0..).find(|number| !is_solution(challenge.token(), 16, *number))] {
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.into(),
            token: *challenge.token(),
            model: model(),
            evidence: Base64::new(evidence.clone()).unwrap(),
            work,
        };
        let request = request.to_canonical().unwrap();
        assert_eq!(service.look_at(&request).unwrap_err().codes(), ["work_required"], "before the rest is read");
        let refused = service.release([127, 0, 0, 2].into(), &request, &move |_| Ok(binding));
        let (refused, note) = refused.unwrap_err();
        assert_eq!((refused.codes(), refused.status.as_u16(), note.is_none()), (vec!["work_required"], 403, true));
    }
    assert!(other.release(challenge, &model(), evidence, key).await.is_ok());
    world.clock.store(NOW + 60, Ordering::SeqCst);
    assert_eq!(flood.challenge().await.unwrap().work_bits(), 0, "a minute later all are gone");
}

/// A key makes place, a refusal does not: what failed counts to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_key_makes_place_for_another_challenge() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { open_challenges: 64, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let bad = world.guest_with(|_| (), |registers| registers.mr_td = Sha384Digest::of(b"x")).await;
    let service = Arc::clone(&world.service.as_ref().unwrap().service);
    for _ in 0..20 {
        assert!(world.ask(&guest).await.is_ok());
    }
    assert_eq!(service.open_challenges(), 0);
    for _ in 0..8 {
        assert_eq!(world.refusal(&bad).await[0].0, "register_mismatch");
    }
    assert_eq!(service.open_challenges(), 8);
    assert_eq!(world.connect().await.challenge().await.unwrap().work_bits(), 16, "an eighth of all is one client's");
    assert!(world.ask(&guest).await.is_ok(), "which works for its key");
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
        AuditEntry::Operator(_) => {}
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

/// A trust policy that can't be read now leaves no release out: the guest waits, and nothing of it is remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_for_a_moment_refuses_no_release() {
    let world = World::start().await;
    let guest = world.guest().await;
    let database = rusqlite::Connection::open(world.store_dir().join("store.sqlite")).unwrap();
    // No change that the service could see by its counter.
    let broken = "ALTER TABLE policies RENAME TO kept; CREATE VIEW policies AS SELECT name, 5 AS document FROM kept";
    database.execute_batch(broken).unwrap();
    for _ in 0..2 {
        assert_eq!(world.refusal(&guest).await, [("store_unavailable".to_owned(), "service".to_owned())]);
    }
    database.execute_batch("DROP VIEW policies; ALTER TABLE kept RENAME TO policies").unwrap();
    assert!(world.ask(&guest).await.is_ok());
}

/// One client has so many connections and no more; another one gets its own all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_client_have_a_limit() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { client_connections: 2, ..Limits::default() };
    world.launch().await;
    let held = (world.connect().await, world.connect().await);
    let address = world.service.as_ref().unwrap().address;
    let connect =
        async || ServiceConnection::connect(tokio::net::TcpStream::connect(address).await.unwrap(), world.pin).await;
    assert!(matches!(connect().await, Err(ClientError::Tls(_))));
    assert_eq!(world.count("client_connections"), 1);
    assert!(world.connect_from([127, 0, 0, 2].into()).await.challenge().await.is_ok());
    drop(held);
    // The service learns of the end when it reads it.
    while let Err(error) = connect().await {
        assert!(matches!(error, ClientError::Tls(_)), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
