// SPDX-License-Identifier: Apache-2.0
//! The real program killed (SIGKILL) again and again while guests take keys: no key without its entry on the audit log,
//! no challenge twice, no policy lost that was set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use attestation_bench::{Guest, Scene};
use release_client::{Challenge, ClientError};
use support::{Got, compare, got, starter};
use types::Sha256Digest;

const KILLS: u32 = 200;
const CLIENTS: usize = 4;

/// Takes keys until the service dies; the last challenge that was asked for, too.
async fn take_keys(
    guest: Guest,
    address: std::net::SocketAddr,
    pin: Sha256Digest,
    given: Arc<AtomicUsize>,
) -> (Vec<Got>, Option<Challenge>) {
    let (mut keys, mut last) = (Vec::new(), None);
    let Ok(mut connection) = Guest::connect(address, pin).await else { return (keys, last) };
    loop {
        let Ok(challenge) = connection.challenge().await else { return (keys, last) };
        last = Some(challenge.clone());
        match guest.answer(&mut connection, challenge.clone()).await {
            Ok(released) => {
                keys.push(got(&challenge, &released));
                given.fetch_add(1, Ordering::SeqCst);
            }
            Err(ClientError::Refused(reasons)) => panic!("{reasons:?}"),
            Err(_) => return (keys, last),
        }
        // The same challenge again, with new evidence: never a second key.
        match guest.answer(&mut connection, challenge).await {
            Ok(_) => panic!("a challenge was redeemed twice"),
            Err(ClientError::Refused(reasons)) => assert_eq!(reasons[0].code, "challenge_replayed"),
            Err(_) => return (keys, last),
        }
    }
}

/// A number below `below` from the system.
fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes) % below
}

fn policy(number: u32) -> String {
    format!(
        "{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"platform\":{{\"min_tcb_evaluation_data_number\":{}}}}}",
        number % 17
    )
}

/// Sets a policy by the program, which may be killed on the way; whether it said that it did.
fn set_policy(scene: &Scene, number: u32, kill_after: Option<Duration>) -> bool {
    let file = scene.dir().join("policy.json");
    std::fs::write(&file, policy(number)).unwrap();
    let mut command: Command = starter().command(scene);
    command.args(["policy", "set", "--store"]).arg(scene.store_dir()).arg("--file").arg(&file);
    let mut child = command.spawn().unwrap();
    if let Some(after) = kill_after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    child.wait().unwrap().success()
}

#[test]
fn killed_at_any_point_nothing_is_lost_and_nothing_is_given_twice() {
    let scene = Scene::new_in(&std::env::temp_dir()).unwrap();
    let guest = Guest::boot(&scene).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pin = scene.pin();
    let (mut keys, mut old, mut in_force, mut set) = (Vec::new(), None::<Challenge>, 0, 0);
    // Written by a program that was killed before it could say so: it may show only when the log is read anew.
    let mut unsaid = None;
    set_policy(&scene, in_force, None);
    let started = Instant::now();
    for round in 1..=KILLS {
        let service = starter().start(&scene).unwrap();
        let address = service.address;
        if let Some(old) = old.take() {
            runtime.block_on(refuse_old(&guest, address, pin, old));
        }
        let given = Arc::new(AtomicUsize::new(0));
        let client = |_| runtime.spawn(take_keys(guest.clone(), address, pin, Arc::clone(&given)));
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        // Sometimes the operator's program is killed as well, in the middle of setting a policy.
        if round % 4 == 0 {
            let killed = (round % 8 == 0).then(|| Duration::from_millis(random(30)));
            let done = set_policy(&scene, round, killed);
            let found = scene.beside().unwrap().policy("appraisal").unwrap().unwrap();
            let found = String::from_utf8(found).unwrap();
            assert!(found == policy(round) || (!done && found == policy(in_force)), "round {round}: {found}");
            if found == policy(round) {
                (in_force, set) = (round, set + 1);
            } else {
                unsaid = Some(round);
            }
        } else {
            // However slow the machine is, some rounds give keys.
            while round % 4 == 1 && given.load(Ordering::SeqCst) == 0 && !clients.iter().all(|c| c.is_finished()) {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(40 + random(240)));
        }
        service.kill();
        for client in clients {
            let (got, last) = runtime.block_on(client).unwrap();
            keys.extend(got);
            old = old.or(last);
        }
        let found = String::from_utf8(scene.beside().unwrap().policy("appraisal").unwrap().unwrap()).unwrap();
        in_force = unsaid.take().filter(|unsaid| found == policy(*unsaid)).unwrap_or(in_force);
        assert_eq!(found, policy(in_force), "round {round}: a policy was lost");
        if round % 25 == 0 {
            compare(&scene, &keys);
        }
    }
    let logged = compare(&scene, &keys);
    assert!(keys.len() > 20 && set > 20, "{} keys, {set} policies: too few to say anything", keys.len());
    println!(
        "{KILLS} kills in {:?}: {} keys given, {logged} entries, {set} policies set",
        started.elapsed(),
        keys.len()
    );
}

/// A challenge of before the kill is void, whether it was redeemed or not.
async fn refuse_old(guest: &Guest, address: std::net::SocketAddr, pin: Sha256Digest, challenge: Challenge) {
    let mut connection = Guest::connect(address, pin).await.unwrap();
    match guest.answer(&mut connection, challenge).await {
        Err(ClientError::Refused(reasons)) => assert_eq!(reasons[0].code, "challenge_unknown"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a challenge outlived its service"),
    }
}
