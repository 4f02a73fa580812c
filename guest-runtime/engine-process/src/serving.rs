// SPDX-License-Identifier: Apache-2.0
//! One client, one engine: commands come in on one thread, work and events happen on the other.

use crate::Worker;
use engine_protocol::{Command, Decoder, EncodeError, Event, Failure, FrameError, PROTOCOL_VERSION, encode};
use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use thiserror::Error;

/// Serves `client` until it closes the connection; what it still waited for is dropped. A client that breaks the
/// protocol is cut off.
///
/// `confine` is called when the last thread that lives as long as the connection was started: the place for a seccomp
/// filter that covers all of them.
///
/// # Errors
/// The client broke the protocol, the socket failed, or `confine` did.
pub fn serve_client<E: From<ServeError>>(
    engine: &mut impl Worker,
    client: UnixStream,
    confine: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let reader = client.try_clone().map_err(ServeError::Socket)?;
    let (sender, commands) = sync_channel(COMMANDS_WAITING);
    // Detached on purpose: it ends when the socket does, which is when the process does.
    drop(
        std::thread::Builder::new()
            .name("commands".into())
            .spawn(move || read_commands(reader, &sender))
            .map_err(ServeError::Socket)?,
    );
    confine()?;
    let result = work(engine, client, &commands);
    Ok(result?)
}

/// Waits for the client and closes the door behind it.
///
/// # Errors
/// The socket failed.
pub fn accept_one(listener: UnixListener) -> io::Result<UnixStream> {
    let (client, _) = listener.accept()?;
    drop(listener);
    Ok(client)
}

/// Why serving a client ended early.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The client sent something that is no command.
    #[error("client broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// The client closed the connection inside a frame.
    #[error("client broke the protocol: connection ended inside a frame")]
    Truncated,
    /// The socket failed.
    #[error("socket of the client failed")]
    Socket(#[from] io::Error),
    /// An event that belongs to no request was too long to send: a bug of this process.
    #[error("event does not fit a frame")]
    Event(#[from] EncodeError),
}

fn work(
    engine: &mut impl Worker,
    mut client: UnixStream,
    commands: &Receiver<Result<Command, ServeError>>,
) -> Result<(), ServeError> {
    send(&mut client, &Event::Hello { version: PROTOCOL_VERSION, model: engine.facts() })?;
    let (mut events, mut inbox) = (Vec::new(), Inbox { commands, held: None, admitted: false });
    // Requests that were told to have failed, and have not ended here yet.
    let mut given_up = HashSet::new();
    loop {
        match inbox.next(engine.is_idle()) {
            Ok(command) => engine.obey(command?, &mut events),
            Err(TryRecvError::Empty) => {
                engine.step(&mut events);
                inbox.admitted = false;
            }
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        let mut too_long = Vec::new();
        for event in events.drain(..) {
            if let Some(id) = event.id().filter(|id| given_up.contains(id)) {
                if event.is_last() {
                    given_up.remove(&id);
                }
                continue;
            }
            let sent = match (send(&mut client, &event), event.id()) {
                // One request's event is no reason to end what others wait for.
                (Err(ServeError::Event(_)), Some(id)) => {
                    if !event.is_last() {
                        given_up.insert(id);
                        too_long.push(id);
                    }
                    send(&mut client, &Event::Failed { id, code: Failure::EngineFailed, prompt_tokens: None })
                }
                (sent, _) => sent,
            };
            match sent {
                Err(ServeError::Socket(error)) if is_hang_up(&error) => return Ok(()),
                sent => sent?,
            }
        }
        too_long.into_iter().for_each(|id| engine.obey(Command::Cancel { id }, &mut events));
    }
}

/// Commands as the work lets them through: between two steps one request at most, since each costs time (its text
/// is tokenised) that all running answers would wait for. Refused ones cost it, too.
struct Inbox<'c> {
    commands: &'c Receiver<Result<Command, ServeError>>,
    /// A request that waits for the next step.
    held: Option<Command>,
    /// Whether a request was let through since the last step.
    admitted: bool,
}

impl Inbox<'_> {
    /// The next command; waits for it where there is nothing else to do. `Empty` when it is time for a step.
    fn next(&mut self, is_idle: bool) -> Result<Result<Command, ServeError>, TryRecvError> {
        if is_idle {
            self.admitted = false;
        }
        if let Some(command) = self.held.take_if(|_| !self.admitted) {
            self.admitted = true;
            return Ok(Ok(command));
        }
        if self.held.is_some() {
            return Err(TryRecvError::Empty);
        }
        let next = if is_idle {
            self.commands.recv().map_err(|RecvError| TryRecvError::Disconnected)
        } else {
            self.commands.try_recv()
        };
        match next? {
            Ok(command @ (Command::Generate(_) | Command::Embed(_))) if self.admitted => {
                self.held = Some(command);
                Err(TryRecvError::Empty)
            }
            Ok(command @ (Command::Generate(_) | Command::Embed(_))) => {
                self.admitted = true;
                Ok(Ok(command))
            }
            other => Ok(other),
        }
    }
}

/// Whether the client closed the connection, though not everything it asked for was said: it may.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn send(client: &mut UnixStream, event: &Event) -> Result<(), ServeError> {
    client.write_all(&encode(event)?)?;
    Ok(())
}

/// Ends with the connection; a full channel holds the client back.
fn read_commands(mut client: UnixStream, sender: &SyncSender<Result<Command, ServeError>>) {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let end = match client.read(&mut buffer) {
            Ok(0) if decoder.is_empty() => return,
            Ok(0) => Err(ServeError::Truncated),
            Ok(length) => {
                decoder.push(buffer.get(..length).unwrap_or_default());
                forward(&mut decoder, sender)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            // The kernel says so when the client left events unread.
            Err(error) if is_hang_up(&error) && decoder.is_empty() => return,
            Err(error) if is_hang_up(&error) => Err(ServeError::Truncated),
            Err(error) => Err(ServeError::Socket(error)),
        };
        if let Err(error) = end {
            // The receiver is gone only when the process ends anyway.
            let _ = sender.send(Err(error));
            return;
        }
    }
}

fn forward(decoder: &mut Decoder<Command>, sender: &SyncSender<Result<Command, ServeError>>) -> Result<(), ServeError> {
    while let Some(command) = decoder.next_message()? {
        if sender.send(Ok(command)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Commands read ahead of the engine. Each may hold a whole conversation, so there are few.
const COMMANDS_WAITING: usize = 8;
const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use batching::{Engine, Refused};
    use engine_protocol::{
        Embed, Failure, FinishReason, Form, Generate, Input, MAX_FRAME, ModelFacts, Prompt, Sampling, Tenant, Work,
    };
    use std::collections::VecDeque;

    /// Says "x" for each token asked for, but request 77 more than fits a frame; refuses ids from 100.
    #[derive(Default)]
    struct Counter {
        waiting: VecDeque<(u64, u32, u32)>,
    }

    impl Engine for Counter {
        fn facts(&self) -> ModelFacts {
            ModelFacts { context: 10, vocab: 2, work: Work::Generate }
        }

        fn admit(&mut self, request: Generate) -> Result<u32, Refused> {
            if request.id >= 100 {
                return Err(Refused { code: Failure::ContextOverflow, prompt_tokens: Some(11) });
            }
            self.waiting.push_back((request.id, request.max_tokens.unwrap_or(1), 0));
            Ok(1)
        }

        fn cancel(&mut self, id: u64, events: &mut Vec<Event>) {
            for (id, ..) in self.waiting.iter().filter(|entry| entry.0 == id) {
                events.push(Event::Failed { id: *id, code: Failure::Cancelled, prompt_tokens: Some(1) });
            }
            self.waiting.retain(|entry| entry.0 != id);
        }

        fn forget(&mut self, _: Tenant) {}

        fn step(&mut self, events: &mut Vec<Event>) {
            let Some((id, left, made)) = self.waiting.front_mut() else { return };
            events.push(if *id == 77 { too_long(*id) } else { x(*id) });
            *left -= 1;
            *made += 1;
            if *left == 0 {
                events.extend(done(*id, *made));
                self.waiting.pop_front();
            }
        }

        fn is_idle(&self) -> bool {
            self.waiting.is_empty()
        }
    }

    fn x(id: u64) -> Event {
        Event::Token { id, choice: 0, text: "x".into(), logprobs: vec![] }
    }

    fn too_long(id: u64) -> Event {
        Event::Token { id, choice: 0, text: "x".repeat(MAX_FRAME + 1), logprobs: vec![] }
    }

    fn done(id: u64, completion_tokens: u32) -> [Event; 2] {
        let reason = FinishReason::Length;
        [
            Event::Ended { id, choice: 0, reason },
            Event::Done { id, prompt_tokens: 1, cached_tokens: 0, completion_tokens },
        ]
    }

    fn generate(id: u64, max_tokens: u32) -> Command {
        Command::Generate(Generate {
            id,
            tenant: Tenant([0; 32]),
            prompt: Prompt::Text("hi".into()),
            choices: 1,
            max_tokens: Some(max_tokens),
            most_tokens: None,
            logit_bias: vec![],
            sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 1 },
            stop: vec![],
            logprobs: None,
            form: Form::Free,
        })
    }

    /// A client that reads events one by one.
    struct Client {
        socket: UnixStream,
        decoder: Decoder<Event>,
    }

    impl Client {
        fn send(&mut self, command: &Command) {
            self.socket.write_all(&encode(command).unwrap()).unwrap();
        }

        fn next(&mut self) -> Option<Event> {
            loop {
                if let Some(event) = self.decoder.next_message().unwrap() {
                    return Some(event);
                }
                let mut buffer = [0; 4096];
                match self.socket.read(&mut buffer).unwrap() {
                    0 => return None,
                    length => self.decoder.push(&buffer[..length]),
                }
            }
        }
    }

    /// Runs an engine for `talk`, and gives how serving ended.
    fn with_engine(talk: impl FnOnce(&mut Client)) -> Result<(), ServeError> {
        let (here, there) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve_client(&mut Counter::default(), there, || Ok(())));
        let mut client = Client { socket: here, decoder: Decoder::new() };
        assert!(matches!(client.next(), Some(Event::Hello { version: PROTOCOL_VERSION, .. })));
        talk(&mut client);
        drop(client);
        server.join().unwrap()
    }

    #[test]
    fn requests_are_answered_in_order_and_refusals_say_why() {
        let ended = with_engine(|client| {
            client.send(&generate(1, 2));
            client.send(&generate(100, 1));
            let mut events: Vec<Event> = (0..6).map(|_| client.next().unwrap()).collect();
            let failed = Event::Failed { id: 100, code: Failure::ContextOverflow, prompt_tokens: Some(11) };
            let position = events.iter().position(|event| *event == failed).unwrap();
            events.remove(position);
            let [ended, all] = done(1, 2);
            assert_eq!(events, [Event::Started { id: 1, prompt_tokens: 1 }, x(1), x(1), ended, all]);
        });
        assert!(ended.is_ok(), "{ended:?}");
    }

    /// Once while it would go on, and once in its last step.
    #[test]
    fn an_event_that_fits_no_frame_ends_its_request_alone_and_once() {
        for max_tokens in [3, 1] {
            let ended = with_engine(|client| {
                client.send(&generate(77, max_tokens));
                client.send(&generate(1, 2));
                let mut events = Vec::new();
                while !events.contains(&done(1, 2)[1]) {
                    events.push(client.next().unwrap());
                }
                let of_long: Vec<_> = events.iter().filter(|event| event.id() == Some(77)).collect();
                let failed = Event::Failed { id: 77, code: Failure::EngineFailed, prompt_tokens: None };
                assert_eq!(of_long, [&Event::Started { id: 77, prompt_tokens: 1 }, &failed]);
                assert_eq!(events.iter().filter(|event| **event == x(1)).count(), 2);
            });
            assert!(ended.is_ok(), "{ended:?}");
        }
    }

    #[test]
    fn an_engine_that_answers_makes_no_vectors() {
        let ended = with_engine(|client| {
            client.send(&Command::Embed(Embed { id: 9, inputs: vec![Input::Text("hi".into())] }));
            let failed = Event::Failed { id: 9, code: Failure::OtherWork, prompt_tokens: None };
            assert_eq!(client.next(), Some(failed));
        });
        assert!(ended.is_ok(), "{ended:?}");
    }

    #[test]
    fn a_running_request_is_cancelled_between_tokens() {
        let ended = with_engine(|client| {
            client.send(&generate(1, u32::MAX));
            assert!(matches!(client.next(), Some(Event::Started { .. })));
            assert!(matches!(client.next(), Some(Event::Token { .. })));
            client.send(&Command::Cancel { id: 1 });
            let end = std::iter::from_fn(|| client.next()).find(|event| !matches!(event, Event::Token { .. }));
            assert!(matches!(end, Some(Event::Failed { code: Failure::Cancelled, .. })), "{end:?}");
            client.send(&generate(2, 1));
            assert!(matches!(client.next(), Some(Event::Started { id: 2, .. })));
        });
        assert!(ended.is_ok(), "{ended:?}");
    }

    /// Requests that are refused, as many as somebody likes to send, do not hold up what runs.
    #[test]
    fn refused_requests_wait_for_steps_too() {
        let ended = with_engine(|client| {
            let mut frames = encode(&generate(1, 500)).unwrap();
            for id in 100..200 {
                frames.extend(encode(&generate(id, 1)).unwrap());
            }
            client.socket.write_all(&frames).unwrap();
            let (mut refused, mut tokens) = (0, 0);
            while refused < 100 {
                match client.next().unwrap() {
                    Event::Failed { .. } => refused += 1,
                    Event::Token { .. } => tokens += 1,
                    _ => {}
                }
                assert!(tokens + 1 >= refused, "{refused} refused before the {tokens}th token");
            }
        });
        assert!(ended.is_ok(), "{ended:?}");
    }

    #[test]
    fn a_client_may_hang_up_while_events_wait_for_it() {
        for _ in 0..200 {
            let ended = with_engine(|client| client.send(&generate(1, u32::MAX)));
            assert!(ended.is_ok(), "{ended:?}");
            let ended = with_engine(|client| {
                client.send(&generate(1, 3));
                assert!(matches!(client.next(), Some(Event::Started { .. })));
            });
            assert!(ended.is_ok(), "{ended:?}");
        }
    }

    #[test]
    fn a_client_that_breaks_the_protocol_is_cut_off() {
        let ended = with_engine(|client| {
            client.socket.write_all(&[0, 0, 0, 2, b'{', b'}']).unwrap();
            assert_eq!(client.next(), None);
        });
        assert!(matches!(ended, Err(ServeError::Protocol(_))), "{ended:?}");
        let ended = with_engine(|client| client.socket.write_all(&[0, 0]).unwrap());
        assert!(matches!(ended, Err(ServeError::Truncated)), "{ended:?}");
    }
}
