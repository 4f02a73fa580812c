// SPDX-License-Identifier: Apache-2.0
//! `serve`'s side: one connection, many requests on it.

use crate::{
    Model, Places, Server,
    child::Supervisor,
    work::{Alive, Desk, TOKENIZING},
};
use batching::Refused;
use engine_protocol::{
    Command, Decoder, Event, Failure, FrameError, Generate, ModelFacts, PROTOCOL_VERSION, Work, encode,
};
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    io,
    pin::pin,
    rc::Rc,
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::spawn_local,
};
use zeroize::Zeroizing;

/// Why the process ended, other than by its client.
#[derive(Debug, Error)]
pub enum RunError {
    /// The server could not be started.
    #[error("the server cannot be started: {0}")]
    Start(io::ErrorKind),
    /// It was started several times and never became healthy.
    #[error(
        "the server never became healthy: it must answer GET /health, list one model, and make tokens below vocab_size \
         with room for the context"
    )]
    NeverHealthy,
    /// The client's socket failed.
    #[error("socket of the client failed")]
    Socket(#[from] io::Error),
    /// The client sent something that is no command.
    #[error("client broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// The client closed the connection inside a frame.
    #[error("client broke the protocol: connection ended inside a frame")]
    Truncated,
}

/// Starts the server, waits until it is healthy, takes one client and serves it until it closes the connection.
///
/// To be run within a [`tokio::task::LocalSet`]. The server ends with it.
///
/// # Errors
/// [`RunError`].
pub async fn run(server: Server, places: Places, model: Model, listener: UnixListener) -> Result<(), RunError> {
    let facts = ModelFacts { context: places.context, vocab: model.vocab, work: Work::Generate };
    let desk = Rc::new(Desk {
        model,
        context: places.context,
        silence: server.silence(),
        tokenizing: Semaphore::new(TOKENIZING),
        suspects: Notify::new(),
    });
    let (alive, mut current) = watch::channel(None);
    let mut supervised = pin!(Supervisor { server, places, desk: Rc::clone(&desk), alive }.run());
    tokio::select! {
        error = &mut supervised => return Err(error),
        // The sender is as old as the supervisor.
        _ = current.wait_for(Option::is_some) => {}
    }
    tokio::select! {
        error = &mut supervised => Err(error),
        served = serve(listener, facts, desk, current) => served,
    }
}

async fn serve(
    listener: UnixListener,
    facts: ModelFacts,
    desk: Rc<Desk>,
    current: watch::Receiver<Option<Rc<Alive>>>,
) -> Result<(), RunError> {
    let (client, _) = listener.accept().await?;
    drop(listener);
    let (reader, writer) = client.into_split();
    let (events, waiting) = mpsc::channel(EVENTS_AHEAD);
    let _ = events.send(Event::Hello { version: PROTOCOL_VERSION, model: facts }).await;
    let counter = Counter { desk, current, events, running: Rc::default() };
    tokio::select! {
        read = read(reader, &counter) => read,
        written = write(writer, waiting) => written,
    }
}

/// Where requests are taken.
struct Counter {
    desk: Rc<Desk>,
    current: watch::Receiver<Option<Rc<Alive>>>,
    events: mpsc::Sender<Event>,
    running: Running,
}

/// How each request in work can be cancelled.
type Running = Rc<RefCell<HashMap<u64, oneshot::Sender<()>>>>;

impl Counter {
    fn obey(&self, command: Command) {
        match command {
            Command::Generate(request) => self.take(request),
            Command::Embed(embed) => self.fail(embed.id, Failure::OtherWork),
            Command::Cancel { id } => {
                if let Some(cancel) = self.running.borrow_mut().get_mut(&id) {
                    let (unused, _) = oneshot::channel();
                    // Its task may just have ended.
                    let _ = std::mem::replace(cancel, unused).send(());
                }
            }
            // The server drops what it keeps when it needs the room; the salt, which nobody else has, is never used again.
            Command::Forget { .. } => {}
        }
    }

    fn take(&self, request: Generate) {
        let id = request.id;
        let (is_known, count) = {
            let running = self.running.borrow();
            (running.contains_key(&id), running.len())
        };
        if is_known {
            return self.fail(id, Failure::DuplicateId);
        }
        if count >= MAX_REQUESTS {
            return self.fail(id, Failure::QueueFull);
        }
        let Some(alive) = self.current.borrow().clone() else { return self.fail(id, Failure::EngineFailed) };
        let (cancel, mut cancelled) = oneshot::channel();
        self.running.borrow_mut().insert(id, cancel);
        let (desk, events, running) = (Rc::clone(&self.desk), self.events.clone(), Rc::clone(&self.running));
        spawn_local(async move {
            let last = tokio::select! {
                biased;
                // The other end of the channel lives until this task takes it out.
                _ = &mut cancelled => Err(Failure::Cancelled.into()),
                answered = desk.answer(&alive, request, &events) => answered,
            };
            let last = last.unwrap_or_else(|Refused { code, prompt_tokens }| Event::Failed { id, code, prompt_tokens });
            running.borrow_mut().remove(&id);
            // Nobody hears it when the client is gone.
            let _ = events.send(last).await;
        });
    }

    fn fail(&self, id: u64, code: Failure) {
        let events = self.events.clone();
        spawn_local(async move {
            let _ = events.send(Event::Failed { id, code, prompt_tokens: None }).await;
        });
    }
}

async fn read(mut reader: OwnedReadHalf, counter: &Counter) -> Result<(), RunError> {
    let mut decoder = Decoder::new();
    let mut buffer = Zeroizing::new([0; 16 << 10]);
    loop {
        let length = match reader.read(buffer.as_mut_slice()).await {
            Ok(length) => length,
            Err(error) if is_hang_up(&error) => 0,
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            return if decoder.is_empty() { Ok(()) } else { Err(RunError::Truncated) };
        }
        decoder.push(buffer.get(..length).unwrap_or_default());
        while let Some(command) = decoder.next_message()? {
            counter.obey(command);
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut events: mpsc::Receiver<Event>) -> Result<(), RunError> {
    // Requests that were told to have failed, and have not ended here yet.
    let mut given_up = HashSet::new();
    while let Some(event) = events.recv().await {
        if let Some(id) = event.id().filter(|id| given_up.contains(id)) {
            if event.is_last() {
                given_up.remove(&id);
            }
            continue;
        }
        let frame = match (encode(&event), event.id()) {
            (Err(_), Some(id)) => {
                if !event.is_last() {
                    given_up.insert(id);
                }
                encode(&Event::Failed { id, code: Failure::EngineFailed, prompt_tokens: None })
            }
            (frame, _) => frame,
        };
        let frame = Zeroizing::new(frame.map_err(|_| io::Error::other("an event is too long"))?);
        match writer.write_all(&frame).await {
            Err(error) if is_hang_up(&error) => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

/// Whether the client closed the connection, though not everything it asked for was said: it may.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Requests at once; `serve` lets in fewer.
const MAX_REQUESTS: usize = 512;
/// Events that may wait for a client before the server has to.
const EVENTS_AHEAD: usize = 256;
