// SPDX-License-Identifier: Apache-2.0
//! The engine's side of `serve`: one connection, many requests on it.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use engine_protocol::{
    Command, Decoder, Embed, EncodeError, Event, Failure, FrameError, Generate, Input, ModelFacts, PROTOCOL_VERSION,
    Prompt, Tenant, TokenLogprobs, Work, encode,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, mpsc::error::TrySendError},
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    accounts::Charge,
    limits::Limits,
    shares::{Holder, NoPlace, Place, Shares},
};

/// Why the engine's connection ended or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The socket failed.
    #[error("the engine's socket failed")]
    Socket(#[from] io::Error),
    /// Frames that are none.
    #[error("the engine broke the protocol")]
    Frame(#[from] FrameError),
    /// A command did not fit into a frame.
    #[error("a command does not fit into a frame")]
    Encode(#[from] EncodeError),
    /// The engine closed the connection.
    #[error("the engine closed the connection")]
    Closed,
    /// First message missing, of another version, or later messages out of place.
    #[error("the engine sent an event out of place")]
    OutOfPlace,
}

/// A connection to the engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    facts: ModelFacts,
    commands: mpsc::UnboundedSender<Zeroizing<Vec<u8>>>,
    requests: Mutex<HashMap<u64, Entry>>,
    slots: Arc<Shares>,
    next: AtomicU64,
}

/// A request that the engine holds. Its slot is free again, and its cost known, only when the engine is done with it.
#[derive(Debug)]
struct Entry {
    events: Option<mpsc::Sender<Event>>,
    _slot: Place,
    charge: Option<Charge>,
}

/// Who asks.
#[derive(Debug)]
pub(crate) struct Asker {
    /// Whose requests these are to the engine: a connection's, or those of a tenant over all of its connections.
    pub(crate) lease: Arc<Lease>,
    /// Whether the engine works for the connection, which has one request at a time.
    pub(crate) is_answering: Arc<AtomicBool>,
    /// What the request may cost, where its tenant has an API key.
    pub(crate) charge: Option<Charge>,
}

/// Why the engine did not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Too few slots are free, for this address or at all.
    Busy,
    /// It is gone, or the request has no form for it.
    Broken,
}

impl Engine {
    /// Connects and waits for the engine's first message. The future beside it runs the connection and ends with it.
    pub(crate) async fn connect(
        path: &Path,
        limits: &Limits,
    ) -> Result<(Self, impl Future<Output = EngineError> + Send + use<>), EngineError> {
        let (mut reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut decoder = Decoder::new();
        let Event::Hello { version: PROTOCOL_VERSION, model } = next_event(&mut reader, &mut decoder).await? else {
            return Err(EngineError::OutOfPlace);
        };
        let (commands, frames) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            facts: model,
            commands,
            requests: Mutex::default(),
            slots: Shares::new(match model.work {
                Work::Generate => limits.generations,
                Work::Embed { .. } => limits.embeddings,
            }),
            next: AtomicU64::new(1),
        });
        let engine = Self { shared: Arc::clone(&shared) };
        Ok((engine, run(shared, reader, decoder, writer, frames)))
    }

    /// What the loaded model can do.
    pub(crate) fn facts(&self) -> ModelFacts {
        self.shared.facts
    }

    /// A tenant of the engine's, whose places are this holder's.
    pub(crate) fn tenant(&self, tenant: [u8; 32], holder: Holder) -> Arc<Lease> {
        let was_used = AtomicBool::new(false);
        Arc::new(Lease { tenant: Tenant(tenant), holder, was_used, shared: Arc::clone(&self.shared) })
    }

    /// Hands a request of a tenant to the engine. Its text is wiped from memory as soon as it is on its way.
    pub(crate) fn generate(&self, mut request: Generate, asker: Asker) -> Result<Generation, NotTaken> {
        let slot = self.slot(&asker.lease, request.choices.into())?;
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        request.id = id;
        request.tenant = asker.lease.tenant;
        asker.lease.was_used.store(true, Ordering::Relaxed);
        let command = Command::Generate(request);
        let frame = encode(&command).map(Zeroizing::new);
        if let Command::Generate(request) = command {
            wipe(request.prompt);
        }
        self.send(id, slot, frame, EVENTS_AHEAD, asker)
    }

    /// Hands texts to the engine, to be made vectors. They are wiped as in [`Self::generate`].
    pub(crate) fn embed(&self, inputs: Vec<Input>, asker: Asker) -> Result<Generation, NotTaken> {
        let slot = self.slot(&asker.lease, 1)?;
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        // One event for each text, and those at both ends: what is asked for always finds room.
        let events_ahead = inputs.len().saturating_add(EVENTS_AHEAD);
        let command = Command::Embed(Embed { id, inputs });
        let frame = encode(&command).map(Zeroizing::new);
        if let Command::Embed(Embed { inputs, .. }) = command {
            inputs.into_iter().for_each(|input| match input {
                Input::Text(mut text) => text.zeroize(),
                Input::Tokens(mut tokens) => tokens.zeroize(),
            });
        }
        self.send(id, slot, frame, events_ahead, asker)
    }

    fn slot(&self, lease: &Lease, weight: usize) -> Result<Place, NotTaken> {
        self.shared.slots.take(lease.holder, weight).map_err(|error| match error {
            NoPlace::Busy => NotTaken::Busy,
            NoPlace::Closed => NotTaken::Broken,
        })
    }

    fn send(
        &self,
        id: u64,
        slot: Place,
        frame: Result<Zeroizing<Vec<u8>>, EncodeError>,
        events_ahead: usize,
        asker: Asker,
    ) -> Result<Generation, NotTaken> {
        let Asker { lease, is_answering, charge } = asker;
        is_answering.store(true, Ordering::Relaxed);
        let (sender, events) = mpsc::channel(events_ahead);
        self.shared.lock().insert(id, Entry { events: Some(sender), _slot: slot, charge });
        let shared = Arc::clone(&self.shared);
        let generation = Generation { id, events, shared, ended: false, is_answering, _lease: lease };
        let sent = frame.map_err(drop).and_then(|frame| self.shared.commands.send(frame).map_err(drop));
        if sent.is_err() {
            self.shared.lock().remove(&id);
            return Err(NotTaken::Broken);
        }
        Ok(generation)
    }
}

fn wipe(prompt: Prompt) {
    match prompt {
        Prompt::Chat(mut messages) => messages.iter_mut().for_each(|message| message.content.zeroize()),
        Prompt::Text(mut text) => text.zeroize(),
    }
}

/// Whose requests some are. When whoever holds it and the requests are gone, the engine forgets what it kept of them.
#[derive(Debug)]
pub(crate) struct Lease {
    tenant: Tenant,
    holder: Holder,
    was_used: AtomicBool,
    shared: Arc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.was_used.load(Ordering::Relaxed)
            && let Ok(frame) = encode(&Command::Forget { tenant: self.tenant })
        {
            // A closed channel means that the engine is gone, and with it what it kept.
            let _ = self.shared.commands.send(Zeroizing::new(frame));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, id: u64) {
        if let Ok(frame) = encode(&Command::Cancel { id }) {
            // A closed channel means that the engine is gone, and with it the request.
            let _ = self.commands.send(Zeroizing::new(frame));
        }
    }

    /// Passes an event to its request.
    fn dispatch(&self, event: Event) -> Result<(), EngineError> {
        let (id, last) = match &event {
            Event::Hello { .. } => return Err(EngineError::OutOfPlace),
            Event::Started { id, .. }
            | Event::Token { id, .. }
            | Event::Ended { id, .. }
            | Event::Vector { id, .. } => (*id, false),
            Event::Done { id, .. } | Event::Failed { id, .. } => (*id, true),
        };
        let mut requests = self.lock();
        let entry = requests.get_mut(&id).ok_or(EngineError::OutOfPlace)?;
        if let Some(charge) = &mut entry.charge {
            count(charge, &event);
        }
        let sent = entry.events.as_ref().map(|events| events.try_send(event));
        if let Some(Err(TrySendError::Full(_))) = sent {
            // The reader is too slow. Its channel closes, and the request ends.
            entry.events = None;
            self.cancel(id);
        }
        if last {
            requests.remove(&id);
        }
        Ok(())
    }
}

/// What an event says of the cost of its request, whether anybody reads it or not.
fn count(charge: &mut Charge, event: &Event) {
    match event {
        Event::Started { prompt_tokens, .. } => charge.started(*prompt_tokens),
        // A piece has the text of one token as a rule; where its tokens are told, they are counted.
        Event::Token { logprobs, .. } => charge.said(logprobs.len().max(1)),
        Event::Done { prompt_tokens, completion_tokens, .. } => {
            charge.ended(u64::from(*prompt_tokens).saturating_add((*completion_tokens).into()));
        }
        // What was computed until then was computed.
        Event::Failed { code: Failure::Cancelled | Failure::FormStuck, .. } => {}
        Event::Failed { .. } => charge.ended(0),
        Event::Hello { .. } | Event::Ended { .. } | Event::Vector { .. } => {}
    }
}

/// A request in work. Dropping it before its end cancels it.
#[derive(Debug)]
pub(crate) struct Generation {
    id: u64,
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
    ended: bool,
    is_answering: Arc<AtomicBool>,
    /// Dropped after the request was cancelled.
    _lease: Arc<Lease>,
}

/// What a generation gives next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The engine has admitted the request.
    Started,
    /// A piece of an answer.
    Text { choice: u16, text: Zeroizing<String>, logprobs: Vec<TokenLogprobs> },
    /// An answer is complete.
    Ended { choice: u16, reason: engine_protocol::FinishReason },
    /// The vector of a text.
    Vector { index: u32, values: Zeroizing<Vec<f32>> },
    /// The end.
    Done { prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32 },
    /// There is no (further) answer.
    Failed(Failure),
    /// The reader was too slow, or the engine is gone.
    Lost,
}

impl Generation {
    /// The next step. After `Done`, `Failed` and `Lost` there is none: it says `Lost` then.
    pub(crate) async fn next(&mut self) -> Step {
        let step = match self.events.recv().await {
            Some(Event::Started { .. }) => return Step::Started,
            Some(Event::Token { choice, text, logprobs, .. }) => {
                return Step::Text { choice, text: Zeroizing::new(text), logprobs };
            }
            Some(Event::Ended { choice, reason, .. }) => return Step::Ended { choice, reason },
            Some(Event::Vector { index, values, .. }) => {
                return Step::Vector { index, values: Zeroizing::new(values) };
            }
            Some(Event::Done { prompt_tokens, cached_tokens, completion_tokens, .. }) => {
                Step::Done { prompt_tokens, cached_tokens, completion_tokens }
            }
            Some(Event::Failed { code, .. }) => Step::Failed(code),
            Some(Event::Hello { .. }) | None => Step::Lost,
        };
        self.ended = true;
        step
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.is_answering.store(false, Ordering::Relaxed);
        if !self.ended {
            self.shared.cancel(self.id);
        }
    }
}

/// Reads and writes until either fails.
async fn run(
    shared: Arc<Shared>,
    reader: OwnedReadHalf,
    decoder: Decoder<Event>,
    writer: OwnedWriteHalf,
    frames: mpsc::UnboundedReceiver<Zeroizing<Vec<u8>>>,
) -> EngineError {
    let error = tokio::select! {
        error = read(&shared, reader, decoder) => error,
        error = write(writer, frames) => error,
    };
    // Closes every request's channel: all of them are lost.
    shared.slots.close();
    shared.lock().clear();
    error
}

async fn read(shared: &Shared, mut reader: OwnedReadHalf, mut decoder: Decoder<Event>) -> EngineError {
    loop {
        let event = next_event(&mut reader, &mut decoder).await;
        if let Err(error) = event.and_then(|event| shared.dispatch(event)) {
            return error;
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Zeroizing<Vec<u8>>>) -> EngineError {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = writer.write_all(&frame).await {
            return error.into();
        }
    }
    EngineError::Closed
}

async fn next_event(reader: &mut OwnedReadHalf, decoder: &mut Decoder<Event>) -> Result<Event, EngineError> {
    loop {
        if let Some(event) = decoder.next_message()? {
            return Ok(event);
        }
        let mut buffer = Zeroizing::new([0; 16 << 10]);
        let length = reader.read(buffer.as_mut_slice()).await?;
        if length == 0 {
            return Err(EngineError::Closed);
        }
        decoder.push(buffer.get(..length).unwrap_or_default());
    }
}

/// Events that may wait for a slow reader before its request is cancelled.
const EVENTS_AHEAD: usize = 1024;
