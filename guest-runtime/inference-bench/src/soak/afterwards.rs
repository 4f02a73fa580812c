// SPDX-License-Identifier: Apache-2.0
//! What must be true when all clients have gone.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::{AttestedConnection, connect};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use tokio::sync::Barrier;
use types::{ConnectionProof, Document as _, Hex32};

use super::random::Random;
use super::talk::{self, Event, Events, chat_body, endless, set};
use super::{Check, ROOM, World};
use crate::programs::Program;

/// Nothing is computed for nobody: the engine takes no processor time.
pub(crate) async fn engine_is_idle(engine: &Program) -> anyhow::Result<Check> {
    let started = Instant::now();
    loop {
        let before = engine.ticks()?;
        tokio::time::sleep(LOOK).await;
        let taken = engine.ticks()?.saturating_sub(before);
        let passed = taken <= 1;
        if passed || started.elapsed() > PATIENCE {
            let seconds = started.elapsed().as_secs();
            let detail = format!("after {seconds} s it took {taken} hundredths of a second in {} s", LOOK.as_secs());
            return Ok(Check { name: "engine_idle", passed, detail });
        }
    }
}

/// How many descriptors `serve` has when it has answered once and its client has gone: some it opens for its first
/// connection, and keeps.
pub(crate) async fn settled(world: &World, serve: &Program) -> anyhow::Result<usize> {
    let mut connection = connect(&world.upstream, &world.verifier).await?;
    let (_, receipt) = talk::ask(&mut connection, &chat_body(&world.model, 1, 1, &mut Random::new(0))).await?;
    world.receipt(receipt.signed())?;
    let with_client = serve.descriptors()?;
    drop(connection);
    let started = Instant::now();
    loop {
        let now = serve.descriptors()?;
        if now < with_client {
            return Ok(now);
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "serve does not close the connection of a client that has gone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `serve` has as many descriptors as before the first client.
pub(crate) async fn descriptors_are_closed(serve: &Program, before: usize) -> anyhow::Result<Check> {
    let started = Instant::now();
    loop {
        let now = serve.descriptors()?;
        if now <= before || started.elapsed() > PATIENCE {
            let detail = format!("{before} before, {now} now");
            return Ok(Check { name: "descriptors", passed: now <= before, detail });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As many answers run beside each other as ever: all have begun before the first one ends. Each has the same number of
/// tokens, whatever the model would say; one place that is not free would have the last one wait for the first.
pub(crate) async fn all_places_are_free(world: &World) -> anyhow::Result<Check> {
    let begin = std::sync::Arc::new(Barrier::new(PLACES));
    let mut asking = tokio::task::JoinSet::new();
    for place in 0..PLACES {
        let connection = connect(&world.upstream, &world.verifier).await?;
        let mut body = chat_body(&world.model, 1, 60, &mut Random::new(u64::try_from(place)?));
        set(&mut body, "temperature", 0);
        asking.spawn(first_and_last(connection, endless(body), std::sync::Arc::clone(&begin)));
    }
    let mut times = Vec::new();
    while let Some(answer) = asking.join_next().await {
        let (first, last, receipt) = answer??;
        world.receipt(receipt.signed())?;
        times.push((first, last));
    }
    let newest = times.iter().map(|(first, _)| *first).max().context("no answer")?;
    let ended = times.iter().map(|(_, last)| *last).min().context("no answer")?;
    let begun = times.iter().filter(|(first, _)| *first < ended).count();
    let detail = format!("{begun} of {PLACES} answers had begun when the first one ended");
    Ok(Check { name: "places_free", passed: newest < ended, detail })
}

/// When the first and the last piece of an answer came.
async fn first_and_last(
    mut connection: AttestedConnection,
    body: Value,
    begin: std::sync::Arc<Barrier>,
) -> anyhow::Result<(Instant, Instant, attested_channel::DeliveredReceipt)> {
    begin.wait().await;
    let mut events = Events::ask(&mut connection, body).await?;
    let (mut first, mut last, mut receipt) = (None, None, None);
    while let Some(event) = events.next().await? {
        match event {
            Event::Piece(piece) => {
                let text = piece.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default();
                if !text.is_empty() {
                    first.get_or_insert_with(Instant::now);
                    last = Some(Instant::now());
                }
            }
            Event::Receipt(base64) => receipt = Some(talk::delivered(&base64)?),
            Event::Other => {}
        }
    }
    Ok((first.context("no text")?, last.context("no text")?, receipt.context("no receipt")?))
}

/// The cache has room for as much as it ever had: conversations that together fill it, one after the other, are all still
/// there when each is asked again. Cells that nobody gave back would have one of them pushed out.
pub(crate) async fn all_cells_are_free(world: &World) -> anyhow::Result<Check> {
    let conversations = ROOM.cache / ROOM.context;
    let mut connections = Vec::new();
    for _ in 0..conversations {
        connections.push(connect(&world.upstream, &world.verifier).await?);
    }
    // So many words that the prompt nearly fills the context, each a token.
    let (some, _) = ask_among(world, &mut connections, 0, 100).await?;
    let words = u64::from(ROOM.context).saturating_sub(SPARE).saturating_sub(some).saturating_add(100);
    let (mut taken, mut found) = (0, Vec::new());
    for number in 0..connections.len() {
        taken += ask_among(world, &mut connections, number, words).await?.0;
    }
    for number in 0..connections.len() {
        found.push(ask_among(world, &mut connections, number, words).await?);
    }
    let kept = found.iter().filter(|(prompt, cached)| cached.saturating_add(AGAIN) >= *prompt).count();
    let most = u64::from(ROOM.cache);
    let fills = taken <= most && taken.saturating_add(u64::from(conversations) * 2 * SPARE) >= most;
    let detail =
        format!("{kept} of {} conversations are still there; together they have {taken} of {most} tokens", found.len());
    Ok(Check { name: "cells_free", passed: fills && kept == found.len(), detail })
}

/// Asks on one of the connections, and keeps the others open meanwhile: `serve` closes one that waits too long.
async fn ask_among(
    world: &World,
    connections: &mut Vec<AttestedConnection>,
    number: usize,
    words: u64,
) -> anyhow::Result<(u64, u64)> {
    let mut own = connections.remove(number);
    let answer = {
        let asking = ask(world, &mut own, number, words);
        tokio::pin!(asking);
        loop {
            tokio::select! {
                answer = &mut asking => break answer?,
                () = tokio::time::sleep(STAY) => {}
            }
            for other in connections.iter_mut() {
                let models = other.send(Method::GET, "/v1/models", HeaderMap::new(), bytes::Bytes::new()).await?;
                talk::whole(models).await?;
            }
        }
    };
    connections.insert(number, own);
    Ok(answer)
}

/// Asks for one token behind so many words, and gives the prompt's tokens and how many of them were there already.
async fn ask(
    world: &World,
    connection: &mut AttestedConnection,
    number: usize,
    words: u64,
) -> anyhow::Result<(u64, u64)> {
    let text: Vec<&str> = (0..words).map(|at| if at == 0 && number % 2 == 1 { "tree" } else { "ship" }).collect();
    let mut body = chat_body(&world.model, 1, 1, &mut Random::new(0));
    set(&mut body, "messages", serde_json::json!([{ "role": "user", "content": text.join(" ") }]));
    let (answer, receipt) = talk::ask(connection, &body).await?;
    world.receipt(receipt.signed())?;
    let of = |path: &str| answer.pointer(path).and_then(Value::as_u64).context("no usage");
    Ok((of("/usage/prompt_tokens")?, of("/usage/prompt_tokens_details/cached_tokens")?))
}

/// Each receipt is here, up to the number that stands in a quote that is made now.
pub(crate) async fn receipts_are_complete(world: &World) -> anyhow::Result<Check> {
    for _ in 0..ROUNDS {
        collect(world).await?;
    }
    let mut connection = connect(&world.upstream, &world.verifier).await?;
    let body = format!("{{\"challenge\":\"{}\"}}", Hex32::new([3; 32]));
    let response = connection.send(Method::POST, "/v1/attestation", HeaderMap::new(), body.into()).await?;
    let (_, _, proof) = talk::whole(response).await?;
    let proof = ConnectionProof::from_canonical(&proof)?;
    let ledger = world.ledger();
    let faults = ledger.faults(proof.receipt_count, proof.receipt_head);
    let detail = if faults.is_empty() {
        format!(
            "{} receipts: {} came with answers, {} were fetched after their clients had left",
            proof.receipt_count, ledger.delivered, ledger.fetched
        )
    } else {
        faults.join("; ")
    };
    Ok(Check { name: "receipts_complete", passed: faults.is_empty(), detail })
}

/// Asks for the receipts of answers that were left, on a connection of its own: one that waits is closed after a while.
pub(crate) async fn collect(world: &World) -> anyhow::Result<()> {
    let wanted = world.ledger().wanted();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut connection = connect(&world.upstream, &world.verifier).await?;
    for (id, asked) in wanted {
        let path = format!("/v1/receipts/{id}");
        let response = connection.send(Method::GET, &path, HeaderMap::new(), bytes::Bytes::new()).await?;
        let (status, _, bytes) = talk::whole(response).await?;
        if status == StatusCode::OK {
            let signed = attested_channel::SignedReceipt::from_canonical(&bytes)?;
            let mut ledger = world.ledger();
            if ledger.take(signed)? {
                ledger.fetched += 1;
            }
        } else {
            anyhow::ensure!(status == StatusCode::NOT_FOUND, "a receipt was answered with {status}");
            world.ledger().not_found(id, asked);
        }
    }
    Ok(())
}

/// Answers that the engine computes at once where it is not told otherwise.
const PLACES: usize = 16;
/// How long the engine is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long what was left may go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tokens of a context that a prompt leaves for its answer and for an error of the estimate.
const SPARE: u64 = 12;
/// Tokens of a known prompt that are computed again.
const AGAIN: u64 = 8;
/// How often a connection that waits is used; `serve` closes one after 75 s.
const STAY: Duration = Duration::from_secs(15);
/// How often receipts are asked for at the end.
const ROUNDS: usize = 3;
