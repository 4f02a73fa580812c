// SPDX-License-Identifier: Apache-2.0
//! The program itself, confined, over its socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use engine_protocol::{
    Command, Decoder, Embed, Event, Failure, Form, Generate, Input, PROTOCOL_VERSION, Prompt, Sampling, Tenant, Work,
    encode,
};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};
use support::{Oracle, write};

struct Client {
    socket: UnixStream,
    decoder: Decoder<Event>,
}

impl Client {
    /// Connects as soon as the socket is there.
    fn connect(path: &Path, child: &mut Child) -> Self {
        loop {
            if let Ok(socket) = UnixStream::connect(path) {
                return Self { socket, decoder: Decoder::new() };
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn send(&mut self, command: &Command) {
        self.socket.write_all(&encode(command).unwrap()).unwrap();
    }

    fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.decoder.next_message().unwrap() {
                return event;
            }
            let mut buffer = [0; 4096];
            let length = self.socket.read(&mut buffer).unwrap();
            assert!(length > 0, "the connection was closed");
            self.decoder.push(&buffer[..length]);
        }
    }
}

#[test]
fn a_confined_process_answers_one_client_and_ends_with_it() {
    answers_one_client_and_ends_with_it(Path::new(env!("CARGO_BIN_EXE_embedder")));
}

/// Linked statically a program reaches the system by other ways, and its filter must know them.
#[test]
fn the_program_of_an_image_does_as_well() {
    let Some(program) = std::env::var_os("CHRYSALIS_EMBEDDER") else {
        eprintln!("SKIPPED: CHRYSALIS_EMBEDDER does not name an image's program");
        return;
    };
    answers_one_client_and_ends_with_it(Path::new(&program));
}

fn answers_one_client_and_ends_with_it(program: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let oracle = Oracle::random(11);
    write(&oracle, directory.path());
    let path = directory.path().join("socket");
    let mut child = std::process::Command::new(program)
        .args(["--context", "512", "--threads", "2", "--model"])
        .arg(directory.path())
        .arg("--socket")
        .arg(&path)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut client = Client::connect(&path, &mut child);
    let Event::Hello { version: PROTOCOL_VERSION, model } = client.next() else { panic!() };
    assert_eq!((model.work, model.context, model.vocab), (Work::Embed { dimensions: 12 }, 16, 12));

    client.send(&Command::Embed(Embed { id: 5, inputs: vec![Input::Text("a b".into()), Input::Tokens(vec![6])] }));
    assert_eq!(client.next(), Event::Started { id: 5, prompt_tokens: 7 });
    for (index, tokens) in [vec![2, 4, 5, 3], vec![2, 6, 3]].into_iter().enumerate() {
        let Event::Vector { id: 5, index: found, values } = client.next() else { panic!() };
        assert_eq!(found as usize, index);
        let expected = oracle.vector(&tokens, false);
        assert!(values.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{values:?} {expected:?}");
    }
    assert_eq!(client.next(), Event::Done { id: 5, prompt_tokens: 7, cached_tokens: 0, completion_tokens: 0 });

    client.send(&Command::Generate(Generate {
        id: 6,
        tenant: Tenant([0; 32]),
        prompt: Prompt::Text("a".into()),
        choices: 1,
        max_tokens: None,
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 0 },
        stop: vec![],
        logprobs: None,
        form: Form::Free,
    }));
    assert_eq!(client.next(), Event::Failed { id: 6, code: Failure::OtherWork, prompt_tokens: None });
    // The door is closed behind the client.
    assert!(UnixStream::connect(&path).is_err());
    drop(client);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_usage_and_a_missing_model_have_codes_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_embedder"));
        let output = command.current_dir(directory.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["--modle", "x"]).0, Some(64));
    let (code, text) = run(&["--model", ".", "--socket", "socket"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("config.json"), "{text}");
}
