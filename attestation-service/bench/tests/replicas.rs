// SPDX-License-Identifier: Apache-2.0
//! Two real services on one database server behind a load balancer: guests get keys from both, a challenge is redeemed
//! once, an owner's command counts at both, and neither a killed replica nor a server that goes away gives a key without
//! its entry.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation_bench::{Guest, Program, Scene, Starter, model};
use key_release::{OwnerAction, OwnerCommand, Revoke, owner_public_key};
use release_client::ClientError;
use store::AuditEntry;
use support::{Got, codes, compare, got, starter};
use test_postgres::Server;
use tokio::net::{TcpListener, TcpStream};
use types::{Base64, Document as _, Sha256Digest};

const KILLS: usize = 12;
const RACES: usize = 200;

fn named(name: &str) -> Starter {
    let mut starter = starter();
    starter.arguments = vec!["--replica".into(), name.into()];
    starter
}

/// Forwards each connection to the next of the services; gives where it listens.
async fn balancer(behind: Arc<Mutex<Vec<SocketAddr>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut next = 0_usize;
        while let Ok((mut client, _)) = listener.accept().await {
            let behind = Arc::clone(&behind);
            next += 1;
            let turn = next;
            tokio::spawn(async move {
                let all = behind.lock().unwrap().clone();
                // The first that takes the connection, from whose turn it is.
                for offset in 0..all.len() {
                    if let Ok(mut service) = TcpStream::connect(all[(turn + offset) % all.len()]).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut service).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn ask(guest: &Guest, address: SocketAddr, pin: Sha256Digest) -> Vec<String> {
    let mut connection = Guest::connect(address, pin).await.unwrap();
    codes(guest.ask(&mut connection).await)
}

async fn command(address: SocketAddr, pin: Sha256Digest, sequence: u64, action: OwnerAction) -> Result<u64, String> {
    let command =
        OwnerCommand { schema: OwnerCommand::SCHEMA.into(), service: pin, model: model().unwrap(), sequence, action };
    let bytes = command.sign(&[0x11; 32]).unwrap().to_canonical().unwrap();
    match Guest::connect(address, pin).await.unwrap().owner_command(bytes).await {
        Ok(answer) => Ok(answer.audit_index),
        Err(ClientError::Refused(reasons)) => Err(reasons[0].code.clone()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn two_replicas_are_as_one_service() {
    let Some(server) = Server::start("two replicas").unwrap() else { return };
    let scene = Scene::new_on(&std::env::temp_dir(), Some(server.database().unwrap())).unwrap();
    let guest = Guest::boot(&scene).unwrap();
    let pin = scene.pin();
    scene.beside().unwrap().register_owner(&model().unwrap(), &owner_public_key(&[0x11; 32])).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (one, two) =
        (named("one").start_named(&scene, "one").unwrap(), named("two").start_named(&scene, "two").unwrap());
    let addresses = [one.address, two.address];
    runtime.block_on(async {
        let balanced = balancer(Arc::new(Mutex::new(addresses.to_vec()))).await;
        for _ in 0..4 {
            assert_eq!(ask(&guest, balanced, pin).await, Vec::<String>::new());
        }
        // A challenge of one is known at the other one: what is wrong is the connection, and it is redeemed by that.
        let mut first = Guest::connect(addresses[0], pin).await.unwrap();
        let mut second = Guest::connect(addresses[1], pin).await.unwrap();
        let challenge = first.challenge().await.unwrap();
        assert_eq!(codes(guest.answer(&mut second, challenge.clone()).await), ["binding_mismatch"]);
        assert_eq!(codes(guest.answer(&mut first, challenge).await), ["challenge_replayed"]);
        // At both at once: one redemption, wherever it was made and whoever comes first.
        let mut released = 0;
        for round in 0..RACES {
            let challenge = first.challenge().await.unwrap();
            let here = guest.answer(&mut first, challenge.clone());
            let there = guest.answer(&mut second, challenge);
            let (here, there) = if round % 2 == 0 {
                tokio::join!(here, there)
            } else {
                let (there, here) = tokio::join!(there, here);
                (here, there)
            };
            let mut both = [codes(here), codes(there)].concat();
            both.sort();
            assert!(both == ["challenge_replayed"] || both == ["binding_mismatch", "challenge_replayed"], "{both:?}");
            released += usize::from(both.len() == 1);
        }
        assert!(released > 0, "the right one was never first: a race that says nothing");
        println!("{RACES} races: {released} keys");
        // What the owner commands at one counts at both from the next request on, in one order.
        let demand = |number: u32| {
            let text = format!(
                "{{\"schema\":\"chrysalis/appraisal-policy/v1\",\"platform\":{{\"min_tcb_evaluation_data_number\":{number}}}}}"
            );
            OwnerAction::SetPolicy(Base64::new(text.into_bytes()).unwrap())
        };
        command(addresses[0], pin, 1, demand(99)).await.unwrap();
        for address in addresses {
            assert_eq!(ask(&guest, address, pin).await, ["collateral_rollback"]);
        }
        assert_eq!(command(addresses[1], pin, 1, demand(1)).await, Err("owner_sequence".to_owned()));
        command(addresses[1], pin, 2, demand(1)).await.unwrap();
        for address in addresses {
            assert_eq!(ask(&guest, address, pin).await, Vec::<String>::new());
        }
        // Of two commands with one sequence at both, one is entered and carried out.
        let both = tokio::join!(
            command(addresses[0], pin, 3, demand(1)),
            command(addresses[1], pin, 3, demand(1)),
        );
        assert!(both.0.is_ok() != both.1.is_ok(), "{both:?}");
    });
    // While a command is carried out somewhere, what is refused anyway waits for nothing.
    let beside = scene.beside().unwrap();
    let held = beside.hold_commands().unwrap();
    runtime.block_on(async {
        for address in addresses {
            assert_eq!(
                command(address, pin, 1, OwnerAction::Revoke(Revoke {})).await,
                Err("owner_sequence".to_owned())
            );
        }
    });
    drop(held);
    drop(beside);
    // A replica that ended takes its challenges with it; the other one goes on.
    let left = runtime.block_on(async { Guest::connect(addresses[0], pin).await.unwrap().challenge().await.unwrap() });
    assert_eq!(one.terminate().unwrap(), Some(0));
    runtime.block_on(async {
        let mut second = Guest::connect(addresses[1], pin).await.unwrap();
        assert_eq!(codes(guest.answer(&mut second, left).await), ["challenge_unknown"]);
        assert_eq!(ask(&guest, addresses[1], pin).await, Vec::<String>::new());
        let made_by_two = Guest::connect(addresses[1], pin).await.unwrap().challenge().await.unwrap();
        // Killed and started again under its name: void at once.
        two.kill();
        let again = named("two").start_named(&scene, "two").unwrap();
        let mut connection = Guest::connect(again.address, pin).await.unwrap();
        assert_eq!(codes(guest.answer(&mut connection, made_by_two).await), ["challenge_unknown"]);
        command(again.address, pin, 4, OwnerAction::Revoke(Revoke {})).await.unwrap();
        let first = named("one").start_named(&scene, "one").unwrap();
        assert_eq!(ask(&guest, first.address, pin).await, ["model_revoked"]);
    });
    let mut commands = Vec::new();
    let listed = scene.beside().unwrap().verify_audit_with(|_, entry| {
        if let AuditEntry::Owner(entry) = entry {
            commands.push(entry.sequence);
        }
    });
    listed.unwrap();
    assert_eq!(commands, [1, 2, 3, 4], "each once");
}

/// Takes keys through the load balancer until told to stop, over whatever breaks off on the way.
async fn take_keys(
    guest: Guest,
    balanced: SocketAddr,
    pin: Sha256Digest,
    given: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> (Vec<Got>, BTreeSet<String>) {
    let (mut keys, mut refusals) = (Vec::new(), BTreeSet::new());
    'connections: while !stop.load(Ordering::SeqCst) {
        let Ok(mut connection) = Guest::connect(balanced, pin).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            let Ok(challenge) = connection.challenge().await else { continue 'connections };
            match guest.answer(&mut connection, challenge.clone()).await {
                Ok(released) => {
                    keys.push(got(&challenge, &released));
                    given.fetch_add(1, Ordering::SeqCst);
                }
                Err(ClientError::Refused(reasons)) => {
                    refusals.extend(reasons.into_iter().map(|reason| reason.code));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(_) => continue 'connections,
            }
        }
    }
    (keys, refusals)
}

async fn more(given: &AtomicUsize, count: usize) {
    let before = given.load(Ordering::SeqCst);
    while given.load(Ordering::SeqCst) < before + count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn killed_replicas_and_a_server_that_goes_away_lose_nothing() {
    let Some(mut server) = Server::start("killed replicas").unwrap() else { return };
    let scene = Scene::new_on(&std::env::temp_dir(), Some(server.database().unwrap())).unwrap();
    let guest = Guest::boot(&scene).unwrap();
    let pin = scene.pin();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut replicas: Vec<Program> =
        ["one", "two"].iter().map(|name| named(name).start_named(&scene, name).unwrap()).collect();
    let behind = Arc::new(Mutex::new(replicas.iter().map(|replica| replica.address).collect::<Vec<_>>()));
    let (given, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (keys, refusals) = runtime.block_on(async {
        let balanced = balancer(Arc::clone(&behind)).await;
        let clients: Vec<_> = (0..4)
            .map(|_| tokio::spawn(take_keys(guest.clone(), balanced, pin, Arc::clone(&given), Arc::clone(&stop))))
            .collect();
        for round in 0..KILLS {
            more(&given, 5).await;
            let turn = round % 2;
            let name = ["one", "two"][turn];
            replicas.remove(turn).kill();
            let again = named(name).start_named(&scene, name).unwrap();
            behind.lock().unwrap()[turn] = again.address;
            replicas.insert(turn, again);
        }
        more(&given, 5).await;
        // The same processes go on when the server is back.
        for _ in 0..2 {
            server.crash().unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.start_again().unwrap();
            more(&given, 5).await;
        }
        stop.store(true, Ordering::SeqCst);
        let (mut keys, mut refusals) = (Vec::new(), BTreeSet::new());
        for client in clients {
            let (got, refused) = client.await.unwrap();
            keys.extend(got);
            refusals.extend(refused);
        }
        (keys, refusals)
    });
    let expected: BTreeSet<_> = ["store_unavailable", "audit_unavailable"].map(str::to_owned).into();
    assert!(refusals.is_subset(&expected), "{refusals:?}");
    assert!(refusals.contains("store_unavailable"), "a lost database is said by its code");
    eprintln!("{} keys, {KILLS} kills", keys.len());
    for replica in replicas {
        assert_eq!(replica.terminate().unwrap(), Some(0));
    }
    compare(&scene, &keys);
}
