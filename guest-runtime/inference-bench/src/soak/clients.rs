// SPDX-License-Identifier: Apache-2.0
//! Clients of all kinds: those that hear an answer out, those that leave, and those that ask for what is refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use client::{AttestedConnection, chat, connect};
use http::StatusCode;
use serde_json::{Value, json};

use super::World;
use super::random::Random;
use super::talk::{self, Event, Events, chat_body, endless, set};

/// What a client does with one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Act {
    /// Reads a stream to its end and checks everything.
    #[default]
    Stream,
    /// The same, of several choices with log probabilities.
    Choices,
    /// The same, of an answer with a form.
    Form,
    /// Takes the answer as a whole.
    Whole,
    /// Reads slowly.
    Slow,
    /// Leaves in the middle of an answer.
    Leave,
    /// Leaves before it has heard anything.
    Vanish,
    /// Asks for what is refused.
    Refused,
}

impl Act {
    const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Choices => "choices",
            Self::Form => "form",
            Self::Whole => "whole",
            Self::Slow => "slow",
            Self::Leave => "leave",
            Self::Vanish => "vanish",
            Self::Refused => "refused",
        }
    }
}

/// Asks on one connection after another while the load lasts.
pub(crate) async fn client(world: Arc<World>, mut random: Random) {
    let mut bag = Vec::new();
    while world.goes_on() {
        let mut connection = match connect(&world.upstream, &world.verifier).await {
            Ok(connection) => connection,
            Err(error) => {
                world.fault("connect", &error.into());
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        for _ in 0..random.within(1, 8) {
            if !world.goes_on() {
                break;
            }
            let act = draw(&mut bag, &mut random);
            match one(act, &world, &mut connection, &mut random).await {
                Ok(stays) => {
                    world.count(act.name());
                    if !stays || !connection.is_open() {
                        break;
                    }
                }
                Err(error) => {
                    world.fault(act.name(), &error);
                    break;
                }
            }
        }
    }
}

/// Does each thing once, and asks for everything that is refused, so that a short run has tried all of it, too.
pub(crate) async fn each_once(world: &World, mut random: Random) -> anyhow::Result<()> {
    let mut acts: Vec<Act> = ACTS.into();
    acts.dedup();
    acts.extend([Act::Refused; REFUSALS as usize]);
    for act in acts {
        let mut connection = connect(&world.upstream, &world.verifier).await?;
        let done = one(act, world, &mut connection, &mut random).await;
        done.with_context(|| format!("before the load: {}", act.name()))?;
        world.count(act.name());
    }
    Ok(())
}

/// The next act out of a bag that is filled again when it is empty: after as many acts as there are, each was tried.
fn draw(bag: &mut Vec<Act>, random: &mut Random) -> Act {
    if bag.is_empty() {
        bag.extend(ACTS);
    }
    let last = u64::try_from(bag.len()).unwrap_or(1).saturating_sub(1);
    bag.swap_remove(usize::try_from(random.within(0, last)).unwrap_or(0))
}

/// Gives whether the client stays on its connection.
async fn one(
    act: Act,
    world: &World,
    connection: &mut AttestedConnection,
    random: &mut Random,
) -> anyhow::Result<bool> {
    let words = if random.within(0, 9) < 8 { random.within(1, 24) } else { random.within(24, 250) };
    let tokens = if random.within(0, 9) < 8 { random.within(1, 16) } else { random.within(16, 96) };
    let mut body = chat_body(&world.model, words, tokens, random);
    match act {
        Act::Stream | Act::Choices | Act::Form => {
            match act {
                Act::Choices => {
                    set(&mut body, "n", random.within(2, 4));
                    set(&mut body, "logprobs", true);
                    set(&mut body, "top_logprobs", random.within(0, 5));
                }
                Act::Form => body = endless(body),
                _ => {}
            }
            let answer = chat(connection, &body, |_| ()).await?;
            world.receipt(answer.receipt.signed())?;
        }
        Act::Whole => {
            let (_, receipt) = talk::ask(connection, &body).await?;
            world.receipt(receipt.signed())?;
        }
        Act::Slow => {
            let pause = Duration::from_millis(random.within(200, 2000));
            read_slowly(world, Events::ask(connection, body).await?, pause).await?;
        }
        Act::Leave => {
            // One in three hears all of it and leaves before the receipt.
            let most = if random.within(0, 2) == 0 { usize::MAX } else { usize::try_from(random.within(1, 12))? };
            read_in_part(world, Events::ask(connection, body).await?, most).await?;
            return Ok(false);
        }
        Act::Vanish => {
            // Of an answer that would last: what nobody heard of must not have been finished.
            set(&mut body, "max_completion_tokens", 200);
            let patience = Duration::from_millis(random.within(0, 80));
            let _ = tokio::time::timeout(patience, talk::send(connection, endless(body).to_string().into())).await;
            return Ok(false);
        }
        Act::Refused => return refused(world, connection, body).await,
    }
    Ok(true)
}

/// Reads a stream to its end, with a pause after the first piece.
async fn read_slowly(world: &World, mut events: Events, pause: Duration) -> anyhow::Result<()> {
    let (mut has_begun, mut has_receipt) = (false, false);
    while let Some(event) = events.next().await? {
        match event {
            Event::Piece(_) if !has_begun => {
                has_begun = true;
                tokio::time::sleep(pause).await;
            }
            Event::Receipt(receipt) => {
                world.receipt(talk::delivered(&receipt)?.signed())?;
                has_receipt = true;
            }
            Event::Piece(_) | Event::Other => {}
        }
    }
    anyhow::ensure!(has_receipt, "the stream ended without a receipt");
    Ok(())
}

/// Reads at most so many pieces of a stream, and none behind its text: the answer may have a receipt nevertheless.
async fn read_in_part(world: &World, mut events: Events, most: usize) -> anyhow::Result<()> {
    let (mut id, mut pieces) = (None, 0_usize);
    while pieces < most
        && let Some(event) = events.next().await?
    {
        let Event::Piece(piece) = event else { break };
        if id.is_none() {
            id = talk::id(&piece).map(str::to_owned);
        }
        pieces = pieces.saturating_add(1);
        if piece.pointer("/choices/0/finish_reason").is_some_and(|reason| !reason.is_null()) {
            break;
        }
    }
    world.left(id.context("an answer without an id")?);
    Ok(())
}

/// Asks for something that is refused, each kind in its turn, and expects the code.
async fn refused(world: &World, connection: &mut AttestedConnection, mut body: Value) -> anyhow::Result<bool> {
    let long = |words: usize| json!([{ "role": "user", "content": "a stone ".repeat(words / 2) }]);
    let kind = world.refusals.fetch_add(1, Ordering::Relaxed) % REFUSALS;
    let mut bytes = None;
    let expected = match kind {
        0 => {
            bytes = Some(vec![b'x'; 2 << 20]);
            (413, "request_too_large")
        }
        1 => {
            set(&mut body, "messages", long(900));
            (400, "context_length_exceeded")
        }
        2 => {
            set(&mut body, "messages", long(200_000));
            (400, "context_length_exceeded")
        }
        3 => {
            set(&mut body, "max_completion_tokens", 100_000);
            (400, "context_length_exceeded")
        }
        4 => {
            set(&mut body, "n", 1000);
            (400, "invalid_value")
        }
        5 => {
            bytes = Some([b"[".repeat(500_000), b"]".repeat(500_000)].concat());
            (400, "invalid_json")
        }
        6 => {
            bytes = Some(body.to_string().into_bytes().into_iter().map(|b| if b == b'8' { 0xff } else { b }).collect());
            (400, "invalid_json")
        }
        7 => {
            let schema = json!({ "type": "object", "not": {} });
            let form = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
            set(&mut body, "response_format", form);
            (400, "invalid_value")
        }
        8 => {
            set(&mut body, "logit_bias", json!({ "4294967295": 1 }));
            (400, "invalid_value")
        }
        _ => {
            set(&mut body, "modalities", json!(["audio"]));
            (400, "unsupported_parameter")
        }
    };
    let bytes = Bytes::from(bytes.unwrap_or_else(|| body.to_string().into_bytes()));
    match talk::send(connection, bytes).await {
        Ok(response) => {
            let (status, _, answer) = talk::whole(response).await?;
            let found = talk::code(&serde_json::from_slice(&answer)?);
            anyhow::ensure!(
                (status.as_u16(), found.as_str()) == expected && status != StatusCode::OK,
                "{status} {found} instead of {expected:?}"
            );
            world.count(expected.1);
            // What the server did not read stays in its way.
            Ok(kind != 0)
        }
        // The server has closed what it would not read, and the answer was lost on the way.
        Err(_) if kind == 0 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kinds of requests that are refused.
const REFUSALS: u64 = 10;
/// How often each is drawn.
const ACTS: [Act; 24] = [
    Act::Stream,
    Act::Stream,
    Act::Stream,
    Act::Stream,
    Act::Stream,
    Act::Stream,
    Act::Choices,
    Act::Choices,
    Act::Form,
    Act::Form,
    Act::Whole,
    Act::Whole,
    Act::Whole,
    Act::Slow,
    Act::Leave,
    Act::Leave,
    Act::Leave,
    Act::Leave,
    Act::Vanish,
    Act::Vanish,
    Act::Refused,
    Act::Refused,
    Act::Refused,
    Act::Refused,
];
