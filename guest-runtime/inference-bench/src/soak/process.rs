// SPDX-License-Identifier: Apache-2.0
//! Clients that are processes, and are killed in whatever they do.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Upstream, connect};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::World;
use super::random::Random;
use super::talk::{self, Event, Events, chat_body};
use crate::policy;

/// Asks for streams until somebody kills it, and says what it gets: the id of each answer at its beginning and its receipt
/// at its end, a line each.
pub(crate) async fn client(directory: &Path, upstream: SocketAddr, seed: u64) -> anyhow::Result<()> {
    let (verifier, model) = (policy::verifier(directory)?, policy::model()?);
    let upstream = Upstream::new(&upstream.ip().to_string(), upstream.port());
    let mut random = Random::new(seed);
    loop {
        let mut connection = connect(&upstream, &verifier).await?;
        for _ in 0..random.within(1, 4) {
            let (words, tokens) = (random.within(1, 40), random.within(8, 48));
            let mut events = Events::ask(&mut connection, chat_body(&model, words, tokens, &mut random)).await?;
            let mut is_known = false;
            while let Some(event) = events.next().await? {
                match event {
                    Event::Piece(piece) if !is_known => {
                        say(ID, talk::id(&piece).context("an answer without an id")?)?;
                        is_known = true;
                    }
                    Event::Receipt(receipt) => say(RECEIPT, &receipt)?,
                    Event::Piece(_) | Event::Other => {}
                }
            }
        }
    }
}

/// One write: a line is there whole or not at all, whenever the process is killed.
fn say(what: &str, text: &str) -> anyhow::Result<()> {
    let line = format!("{what}{text}\n");
    let mut output = std::io::stdout().lock();
    output.write_all(line.as_bytes())?;
    Ok(output.flush()?)
}

/// Starts one such client after another and kills each after a while.
pub(crate) async fn keep_killing(world: Arc<World>, mut random: Random) {
    while world.goes_on() {
        if let Err(error) = start_and_kill(&world, &mut random).await {
            world.fault("process", &error);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn start_and_kill(world: &Arc<World>, random: &mut Random) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["client", "--seed", &random.next().to_string(), "--upstream"])
        .arg(format!("{}:{}", world.upstream.host(), world.upstream.port()))
        .arg("--directory")
        .arg(&world.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let hearing = Arc::clone(world);
    let listener = tokio::spawn(async move {
        while let Some(line) = lines.next_line().await? {
            if let Some(id) = line.strip_prefix(ID) {
                hearing.left(id.to_owned());
            } else if let Some(receipt) = line.strip_prefix(RECEIPT) {
                hearing.receipt(talk::delivered(receipt)?.signed())?;
            }
        }
        anyhow::Ok(())
    });
    tokio::time::sleep(Duration::from_millis(random.within(300, 9000))).await;
    let ended = child.try_wait()?;
    child.start_kill()?;
    child.wait().await?;
    listener.await??;
    match ended {
        None => world.count("killed"),
        Some(status) => anyhow::bail!("a client ended by itself: {status}"),
    }
    Ok(())
}

const ID: &str = "id ";
const RECEIPT: &str = "receipt ";
