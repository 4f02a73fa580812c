// SPDX-License-Identifier: Apache-2.0
//! An engine that plays its part over a real socket.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
};

use engine_protocol::{Command, Decoder, Event, Failure, FinishReason, Generate, ModelFacts, PROTOCOL_VERSION, encode};

/// What the engine was told, and a way to end it.
pub(crate) struct FakeEngine {
    pub(crate) commands: Arc<Mutex<Vec<Command>>>,
    pub(crate) client: Arc<Mutex<Option<UnixStream>>>,
}

impl FakeEngine {
    /// Answers "Par", "is", "." to everything but the prompts `overflow` (refused) and `hang` (starts and says no
    /// more until it is cancelled).
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (commands, client) = (Arc::new(Mutex::new(vec![])), Arc::new(Mutex::new(None)));
        let (seen, slot) = (Arc::clone(&commands), Arc::clone(&client));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            *slot.lock().unwrap() = Some(stream.try_clone().unwrap());
            say(&mut stream, &Event::Hello { version: PROTOCOL_VERSION, model: ModelFacts { context: 512, vocab: 3 } });
            let mut decoder = Decoder::<Command>::new();
            let mut buffer = [0; 4096];
            let mut hanging = Vec::new();
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                decoder.push(&buffer[..length]);
                while let Some(command) = decoder.next_message().unwrap() {
                    seen.lock().unwrap().push(command.clone());
                    obey(&mut stream, command, &mut hanging);
                }
            }
        });
        Self { commands, client }
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.commands.lock().unwrap().iter().any(|command| matches!(command, Command::Cancel { .. }))
    }

    pub(crate) fn stop(&self) {
        self.client.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn say(stream: &mut UnixStream, event: &Event) {
    // The other side may be gone already.
    let _ = stream.write_all(&encode(event).unwrap());
}

fn obey(stream: &mut UnixStream, command: Command, hanging: &mut Vec<u64>) {
    let (id, prompt) = match command {
        Command::Cancel { id } => {
            if let Some(index) = hanging.iter().position(|hanging| *hanging == id) {
                hanging.remove(index);
                let finish_reason = FinishReason::Cancelled;
                say(stream, &Event::Done { id, finish_reason, prompt_tokens: 3, completion_tokens: 0 });
            }
            return;
        }
        Command::Generate(Generate { id, messages, .. }) => (id, messages.last().unwrap().content.clone()),
    };
    if prompt == "overflow" {
        return say(stream, &Event::Failed { id, code: Failure::ContextOverflow, prompt_tokens: Some(900) });
    }
    say(stream, &Event::Started { id, prompt_tokens: 3 });
    if prompt == "hang" {
        return hanging.push(id);
    }
    for text in ["Par", "is", "."] {
        say(stream, &Event::Token { id, text: text.into() });
    }
    let finish_reason = FinishReason::Stop;
    say(stream, &Event::Done { id, finish_reason, prompt_tokens: 3, completion_tokens: 4 });
}
