// SPDX-License-Identifier: Apache-2.0
//! A server that plays its part: as vLLM's API, as far as it is asked, with a tokenizer of bytes and a model that does what the
//! last message says. It is this test's own program, started again by the adapter.

use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    sync::atomic::{AtomicUsize, Ordering},
};

/// Control tokens; bytes come behind them.
const CONTROLS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
const FIRST_BYTE: u64 = 10;
pub(crate) const VOCAB: u64 = FIRST_BYTE + 256;
/// The longest context that it offers.
pub(crate) const MOST: u64 = 4096;

static COMPLETIONS: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Does not return where the environment says that this is the server.
pub(crate) fn serve_if_told() {
    let Some(path) = std::env::var_os("STAND_IN") else { return };
    let listener = UnixListener::bind(path).unwrap();
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || talk(stream));
    }
}

fn talk(mut stream: UnixStream) {
    let Some((line, body)) = read(&mut stream) else { return };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match line.split(' ').nth(1).unwrap() {
        "/health" => whole(&mut stream, "200 OK", &json!({})),
        "/v1/models" => whole(&mut stream, "200 OK", &json!({"object": "list", "data": [{"id": "stand-in"}]})),
        "/tokenize" => tokenize(&mut stream, &body),
        "/v1/completions" => complete(stream, &body),
        _ => whole(&mut stream, "404 Not Found", &json!({})),
    }
}

fn read(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let head = loop {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        all.extend_from_slice(&buffer[..length]);
        if let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8(all[..head].to_vec()).unwrap().to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    let mut body = all.split_off(head + 4);
    let have = body.len();
    body.resize(length, 0);
    stream.read_exact(&mut body[have..]).ok()?;
    Some((text.lines().next()?.to_owned(), body))
}

fn whole(stream: &mut UnixStream, status: &str, body: &Value) {
    let body = body.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    // The other side may be gone already.
    let _ = stream.write_all((head + &body).as_bytes());
}

fn tokenize(stream: &mut UnixStream, body: &Value) {
    let text = match body["messages"].as_array() {
        Some(messages) => {
            let turn = |m: &Value| {
                format!("<|im_start|>{}\n{}<|im_end|>\n", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())
            };
            messages.iter().map(turn).collect::<String>() + "<|im_start|>assistant\n"
        }
        None => body["prompt"].as_str().unwrap().to_owned(),
    };
    if text.contains("misordered") {
        return whole(stream, "400 Bad Request", &json!({"error": {"message": text}}));
    }
    let mut tokens = tokens(&text);
    match text.contains("strange tokens") {
        true => tokens.push(VOCAB),
        false if text.contains("miscounted tokens") => drop(tokens.pop()),
        false => {}
    }
    let count = tokens.len() + usize::from(text.contains("miscounted tokens"));
    whole(stream, "200 OK", &json!({"count": count, "max_model_len": MOST, "tokens": tokens, "token_strs": null}));
}

/// As common tokenizers: a control token's name becomes that token, whoever wrote it.
fn tokens(text: &str) -> Vec<u64> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    'text: while let Some(first) = rest.bytes().next() {
        for (number, control) in (1..).zip(CONTROLS) {
            if let Some(after) = rest.strip_prefix(control) {
                tokens.push(number);
                rest = after;
                continue 'text;
            }
        }
        tokens.push(FIRST_BYTE + u64::from(first));
        let mut end = 1;
        while !rest.is_char_boundary(end) {
            tokens.push(FIRST_BYTE + u64::from(rest.as_bytes()[end]));
            end += 1;
        }
        rest = &rest[end..];
    }
    tokens
}

/// What was said last, in a conversation or in a text.
fn said_last(tokens: &[Value]) -> String {
    let mut text = Vec::new();
    for token in tokens {
        match token.as_u64().unwrap() {
            control @ 1..=2 => text.extend_from_slice(CONTROLS[control as usize - 1].as_bytes()),
            byte => text.push((byte - FIRST_BYTE) as u8),
        }
    }
    let text = String::from_utf8(text).unwrap();
    match text.strip_suffix("<|im_end|>\n<|im_start|>assistant\n") {
        Some(text) => text.rsplit_once("<|im_start|>").unwrap().1.split_once('\n').unwrap().1.to_owned(),
        None => text,
    }
}

/// A stream of events.
struct Stream {
    stream: UnixStream,
    logprobs: bool,
    pieces: u64,
    prompt: u64,
}

impl Stream {
    fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn event(&mut self, event: &Value) {
        self.say(format!("data: {event}\n\n").as_bytes());
    }

    fn piece(&mut self, index: u64, text: &str, finish: Option<&str>) {
        self.pieces += 1;
        let logprobs = self.logprobs.then(|| {
            json!({"tokens": [text], "token_logprobs": [-0.5], "text_offset": [0], "top_logprobs": [{text: -0.5, "other": -2.0}]})
        });
        let choice =
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": null});
        self.event(&json!({"id": "cmpl-1", "object": "text_completion", "model": "stand-in", "choices": [choice]}));
    }

    fn end(&mut self, prompt: u64, completion: u64) {
        let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 2}});
        self.event(&json!({"id": "cmpl-1", "choices": [], "usage": usage}));
        self.say(b"data: [DONE]\n\n");
    }

    /// A text in pieces of a few bytes, for each choice, and a proper end.
    fn answer(&mut self, choices: u64, text: &str) {
        for choice in 0..choices {
            for piece in text.as_bytes().chunks(5) {
                self.piece(choice, std::str::from_utf8(piece).unwrap(), None);
            }
            self.piece(choice, "", Some("stop"));
        }
        self.end(self.prompt, self.pieces);
    }
}

fn complete(mut stream: UnixStream, body: &Value) {
    COMPLETIONS.fetch_add(1, Ordering::SeqCst);
    let prompt = body["prompt"].as_array().unwrap();
    let told = said_last(prompt);
    // What it prints must reach nobody.
    eprintln!("prompt: {told}");
    println!("prompt: {told}");
    if told == "bad request" {
        return whole(&mut stream, "400 Bad Request", &json!({"error": {"message": told}}));
    }
    if told == "too busy" {
        return whole(&mut stream, "503 Service Unavailable", &json!({"error": {"message": told}}));
    }
    if told == "no stream" {
        return whole(&mut stream, "200 OK", &json!({"choices": []}));
    }
    if told == "silent from the start" {
        return std::thread::sleep(std::time::Duration::from_secs(600));
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";
    let _ = stream.write_all(head);
    let logprobs = !body["logprobs"].is_null();
    let mut stream = Stream { stream, logprobs, pieces: 0, prompt: prompt.len() as u64 };
    play(&mut stream, &told, body);
}

fn play(stream: &mut Stream, told: &str, body: &Value) {
    let choices = body["n"].as_u64().unwrap();
    let form = &body["structured_outputs"];
    let prompt = stream.prompt;
    match told {
        "die" => {
            stream.piece(0, "I am", None);
            std::process::exit(3);
        }
        "hang up" => stream.piece(0, "I am", None),
        "garbage" => stream.say(&[0xff; 4096]),
        "no json" => stream.say(b"data: {\"choices\":[\n\n"),
        "long line" => {
            stream.say(b"data: ");
            for _ in 0..160 {
                stream.say(&[b'x'; 64 << 10]);
            }
        }
        "silent" => {
            stream.piece(0, "I am", None);
            std::thread::sleep(std::time::Duration::from_secs(600));
        }
        "hang" => {
            stream.piece(0, "I am", None);
            // Ends when the other side closes.
            while stream.stream.read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
            CLOSED.fetch_add(1, Ordering::SeqCst);
        }
        "miscounted prompt" => {
            stream.piece(0, "a", Some("stop"));
            stream.end(prompt + 1, 1);
        }
        "miscounted answer" => {
            stream.piece(0, "a", Some("stop"));
            stream.end(prompt, body["max_tokens"].as_u64().unwrap() + 1);
        }
        "other choice" => stream.piece(choices, "a", Some("stop")),
        "error" => stream.event(&json!({"error": {"message": "a secret", "code": 500}})),
        "no form" => stream.answer(choices, "Certainly! Here is your JSON."),
        "how many" => stream.answer(choices, &COMPLETIONS.load(Ordering::SeqCst).to_string()),
        "how many closed" => stream.answer(choices, &CLOSED.load(Ordering::SeqCst).to_string()),
        "who" => stream.answer(choices, &std::process::id().to_string()),
        "what" => {
            let mut asked = body.clone();
            asked["prompt"] = json!(prompt);
            stream.answer(choices, &asked.to_string());
        }
        "call" => stream.answer(
            choices,
            "I ask.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
        ),
        "network" => {
            let made = std::net::TcpListener::bind("127.0.0.1:0").is_ok();
            stream.answer(choices, if made { "made a socket" } else { "refused" });
        }
        _ if told.starts_with("read ") => {
            let file = std::fs::read(told.strip_prefix("read ").unwrap());
            stream.answer(choices, if file.is_ok() { "read" } else { "refused" });
        }
        _ if form.is_object() && form["structural_tag"].is_null() => stream.answer(choices, "{\"city\": \"Paris\"}"),
        _ => stream.answer(choices, "Paris."),
    }
}
