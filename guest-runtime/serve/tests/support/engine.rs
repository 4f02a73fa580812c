// SPDX-License-Identifier: Apache-2.0
//! An engine that plays its part over a real socket.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
};

use engine_protocol::{
    Command, Decoder, Embed, Event, Failure, FinishReason, Form, Generate, Input, ModelFacts, PROTOCOL_VERSION,
    TokenLogprob, TokenLogprobs, Work, encode,
};

/// What the engine was told, and a way to end it.
pub(crate) struct FakeEngine {
    pub(crate) commands: Arc<Mutex<Vec<Command>>>,
    pub(crate) client: Arc<Mutex<Option<UnixStream>>>,
    /// Requests that it has started and says no more of.
    hanging: Arc<Mutex<Vec<u64>>>,
}

impl FakeEngine {
    /// Answers "Par", "is", "." to everything but the prompts `overflow` (refused), `hang` (starts and says no more until it
    /// is cancelled), `flood` (says more than a connection holds, then hangs), and those that begin with `say `: what follows,
    /// in pieces that `|` ends.
    pub(crate) fn start(path: &Path) -> Self {
        Self::working(path, Work::Generate)
    }

    /// Makes the vector `[index + 0.5, -1e-7]` of each text, but refuses `overflow`, `many` and `unknown`, numbers the
    /// vectors of `misnumbered` wrongly, makes too long ones of `long`, and starts `hang` and says no more.
    #[allow(dead_code, reason = "tests of the proxy ask for answers only")]
    pub(crate) fn embedder(path: &Path) -> Self {
        Self::working(path, Work::Embed { dimensions: 2 })
    }

    fn working(path: &Path, work: Work) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let this = Self::absent();
        let (seen, slot, hanging) = (Arc::clone(&this.commands), Arc::clone(&this.client), Arc::clone(&this.hanging));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            *slot.lock().unwrap() = Some(stream.try_clone().unwrap());
            let model = ModelFacts { context: 512, vocab: 3, work };
            say(&mut stream, &Event::Hello { version: PROTOCOL_VERSION, model });
            let mut decoder = Decoder::<Command>::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                decoder.push(&buffer[..length]);
                while let Some(command) = decoder.next_message().unwrap() {
                    seen.lock().unwrap().push(command.clone());
                    obey(&mut stream, command, &hanging);
                }
            }
        });
        this
    }

    /// Another engine has its place.
    pub(crate) fn absent() -> Self {
        Self { commands: Arc::default(), client: Arc::default(), hanging: Arc::default() }
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.commands.lock().unwrap().iter().any(|command| matches!(command, Command::Cancel { .. }))
    }

    /// Gives the answer to every prompt `hang` that it was told, when it has started it.
    #[allow(dead_code, reason = "not every test lets one hang")]
    pub(crate) fn answer_hanging(&self) {
        let commands = self.commands.lock().unwrap().clone();
        let mut stream = self.client.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        for command in commands {
            let Command::Generate(request) = command else { continue };
            if request.prompt.texts().last().is_some_and(|prompt| prompt == "hang") {
                self.until_hanging(request.id);
                answer(&mut stream, &request, "hang");
            }
        }
    }

    fn until_hanging(&self, id: u64) {
        for _ in 0..6000 {
            if self.hanging.lock().unwrap().contains(&id) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("request {id} does not hang");
    }

    pub(crate) fn stop(&self) {
        self.client.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn say(stream: &mut UnixStream, event: &Event) {
    // The other side may be gone already.
    let _ = stream.write_all(&encode(event).unwrap());
}

fn obey(stream: &mut UnixStream, command: Command, hanging: &Mutex<Vec<u64>>) {
    let request = match command {
        Command::Cancel { id } => {
            let mut hanging = hanging.lock().unwrap();
            if let Some(index) = hanging.iter().position(|hanging| *hanging == id) {
                hanging.remove(index);
                say(stream, &Event::Failed { id, code: Failure::Cancelled, prompt_tokens: Some(3) });
            }
            return;
        }
        Command::Forget { .. } => return,
        Command::Embed(embed) => return make_vectors(stream, &embed, hanging),
        Command::Generate(request) => request,
    };
    let (id, prompt) = (request.id, request.prompt.texts().last().unwrap().to_owned());
    if prompt == "overflow" {
        return say(stream, &Event::Failed { id, code: Failure::ContextOverflow, prompt_tokens: Some(900) });
    }
    say(stream, &Event::Started { id, prompt_tokens: 3 });
    if prompt == "flood" {
        let text = "x".repeat(4000);
        (0..6000).for_each(|_| say(stream, &Event::Token { id, choice: 0, text: text.clone(), logprobs: vec![] }));
    }
    if prompt == "hang" || prompt == "flood" {
        return hanging.lock().unwrap().push(id);
    }
    answer(stream, &request, &prompt);
}

fn answer(stream: &mut UnixStream, request: &Generate, prompt: &str) {
    let id = request.id;
    let pieces = pieces(request, prompt);
    for choice in 0..request.choices {
        for text in &pieces {
            let token = TokenLogprob { bytes: text.as_bytes().to_vec(), logprob: -0.5 };
            let top = vec![token.clone(); request.logprobs.unwrap_or(0).into()];
            let logprobs = request.logprobs.map(|_| TokenLogprobs { token, top }).into_iter().collect();
            say(stream, &Event::Token { id, choice, text: text.clone(), logprobs });
        }
        say(stream, &Event::Ended { id, choice, reason: FinishReason::Stop });
    }
    let completion_tokens = 4 * u32::from(request.choices);
    say(stream, &Event::Done { id, prompt_tokens: 3, cached_tokens: 1, completion_tokens });
}

fn make_vectors(stream: &mut UnixStream, embed: &Embed, hanging: &Mutex<Vec<u64>>) {
    let id = embed.id;
    let first = if let Some(Input::Text(text)) = embed.inputs.first() { text.as_str() } else { "" };
    let refused = match first {
        "overflow" => Some(Failure::ContextOverflow),
        "many" => Some(Failure::TooManyTokens),
        "unknown" => Some(Failure::UnknownToken),
        _ => None,
    };
    if let Some(code) = refused {
        return say(stream, &Event::Failed { id, code, prompt_tokens: None });
    }
    let prompt_tokens = 3 * u32::try_from(embed.inputs.len()).unwrap();
    say(stream, &Event::Started { id, prompt_tokens });
    if first == "hang" {
        return hanging.lock().unwrap().push(id);
    }
    for index in 0..u32::try_from(embed.inputs.len()).unwrap() {
        let index = index + u32::from(first == "misnumbered");
        let mut values = vec![index as f32 + 0.5, -1e-7];
        values.extend((first == "long").then_some(1.0));
        say(stream, &Event::Vector { id, index, values });
    }
    say(stream, &Event::Done { id, prompt_tokens, cached_tokens: 0, completion_tokens: 0 });
}

/// What a model would say that obeys: the first tool that the schema names, or a sentence.
fn pieces(request: &Generate, prompt: &str) -> Vec<String> {
    let name = |schema: &str| {
        let (_, rest) = schema.split_once("\"const\":\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let text = match &request.form {
        Form::JsonSchema(schema) if schema.contains("\"arguments\"") => {
            format!("{{\"name\":\"{}\",\"arguments\":{{\"a\": 1}}}}", name(schema))
        }
        Form::JsonSchema(_) | Form::JsonObject => "{\"city\": \"Paris\"}".to_owned(),
        Form::ToolCalls(schema) if prompt == "call" => {
            let call = format!("<tool_call>\n{{\"name\":\"{}\",\"arguments\":{{}}}}\n</tool_call>", name(schema));
            format!("I ask.\n{call}\n{call}")
        }
        Form::Free | Form::ToolCalls(_) => {
            let said = prompt.strip_prefix("say ").unwrap_or("Par|is|.");
            return said.split('|').map(str::to_owned).collect();
        }
    };
    // In pieces of a few bytes, as tokens are.
    text.as_bytes().chunks(5).map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect()
}
