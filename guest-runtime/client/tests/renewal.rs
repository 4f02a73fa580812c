// SPDX-License-Identifier: Apache-2.0
//! The guest renews its TLS key while it answers: nothing is dropped, over real sockets; hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use attester_protocol::serving::OLD_KEYS;
use client::{AttestedConnection, Verifier, chat, connect, question};
use engine_protocol::Command;
use types::{Document as _, Sha256Digest};
use world::{World, model};

/// Has the key renewed, and waits for a new connection that begins with it.
async fn renewed(world: &World, verifier: &Arc<Verifier>, before: Sha256Digest) -> AttestedConnection {
    world.renewer.renew();
    loop {
        let connection = connect(&world.upstream, verifier).await.unwrap();
        if key(&connection) != before {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn key(connection: &AttestedConnection) -> Sha256Digest {
    connection.evidence().spki_sha256
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_on_while_the_key_is_renewed() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let mut old = connect(&world.upstream, &verifier).await.unwrap();
    let first = key(&old);
    let ends = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let (upstream, verifier, ends) = (world.upstream.clone(), Arc::clone(&verifier), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut connection = connect(&upstream, &verifier).await.unwrap();
                let mut answers = 0;
                while !ends.load(Ordering::Relaxed) || answers == 0 {
                    connection.renew().await.unwrap();
                    let request = question(&model(), "capital of France?", 16);
                    assert_eq!(chat(&mut connection, &request, |_| ()).await.unwrap().text, "Paris.");
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    // One answer is under way from before the first renewal until after the last.
    let (upstream, other) = (world.upstream.clone(), Arc::clone(&verifier));
    let long = tokio::spawn(async move {
        let mut connection = connect(&upstream, &other).await.unwrap();
        let answer = chat(&mut connection, &question(&model(), "hang", 16), |_| ()).await.unwrap();
        (key(&connection), connection.evidence().digest().unwrap(), answer)
    });
    let hangs = || world.engine.commands.lock().unwrap().iter().any(is_hanging);
    while !hangs() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut before = first;
    // As many as an open connection outlives.
    for _ in 1..OLD_KEYS {
        let mut new = renewed(&world, &verifier, before).await;
        before = key(&new);
        assert!(new.verdict().is_accepted());
        assert_eq!(new.evidence().instance_key, world.instance_key);
        // The old connection proves itself by the evidence that names its key; the new one by its own.
        old.renew().await.unwrap();
        assert_eq!(key(&old), first);
        for connection in [&mut old, &mut new] {
            let answer = chat(connection, &question(&model(), "capital of France?", 16), |_| ()).await.unwrap();
            assert_eq!(answer.receipt.receipt.evidence, connection.evidence().digest().unwrap());
        }
    }
    world.engine.answer_hanging();
    let (held, evidence, answer) = long.await.unwrap();
    assert_eq!((held, answer.receipt.receipt.evidence, answer.text.as_str()), (first, evidence, "Paris."));
    ends.store(true, Ordering::Relaxed);
    for stream in streams {
        assert!(stream.await.unwrap() > 0);
    }
}

/// Long before the attester forgets the key, and with nothing lost: what runs is answered to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_outlived_its_key_ends_between_answers() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let idle = connect(&world.upstream, &verifier).await.unwrap();
    let first = key(&idle);
    let mut busy = connect(&world.upstream, &verifier).await.unwrap();
    let asked = tokio::spawn(async move {
        let answer = chat(&mut busy, &question(&model(), "hang", 16), |_| ()).await.unwrap();
        (answer, busy)
    });
    let hangs = || world.engine.commands.lock().unwrap().iter().any(is_hanging);
    while !hangs() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut before = first;
    // More renewals than the attester keeps the key for: it is gone when the answer ends.
    for _ in 0..OLD_KEYS + 2 {
        before = key(&renewed(&world, &verifier, before).await);
    }
    while idle.is_open() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.engine.answer_hanging();
    let (answer, busy) = asked.await.unwrap();
    assert_eq!(answer.text, "Paris.");
    assert_eq!(answer.receipt.receipt.instance_key, world.instance_key);
    while busy.is_open() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_hanging(command: &Command) -> bool {
    matches!(command, Command::Generate(request) if request.prompt.texts().last().is_some_and(|prompt| prompt == "hang"))
}
