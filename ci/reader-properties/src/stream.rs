// SPDX-License-Identifier: Apache-2.0
//! What a client reads of a guest's answers: streams of events, and whole answers.

use attested_channel::receipt::SaidChoice;
use client::{Blocks, Streamed, read_streamed, response_of};
use serde_json::{Value, json};

/// `w` and a whole answer, else the body of a streamed one.
///
/// A stream means the same however it is cut, and what a receipt must cover of it is what it must cover of a whole answer that says
/// the same.
pub fn stream(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'w', answer)) => whole(answer),
        _ => streamed(bytes),
    }
}

fn whole(answer: &[u8]) -> bool {
    let response = response_of(answer);
    assert_eq!(response, response_of(&[b" ", answer, b"\n"].concat()), "white space around an answer");
    response.is_some()
}

fn streamed(bytes: &[u8]) -> bool {
    blocks(bytes);
    let read = read_streamed([bytes]).ok();
    let cut = 1 + bytes.len() % 11;
    assert_eq!(read, read_streamed(bytes.chunks(cut)).ok(), "cut at every {cut} bytes");
    let Some(Streamed { choices, response, receipt: _, failed }) = read else { return false };
    if !choices.is_empty() {
        let answer = json!({ "choices": choices.iter().enumerate().map(choice).collect::<Vec<_>>() });
        assert_eq!(response_of(answer.to_string().as_bytes()), Some(response), "{answer}");
    }
    failed.is_none() && !choices.is_empty()
}

/// A choice in the form of a whole answer.
fn choice((index, said): (usize, &SaidChoice)) -> Value {
    let calls: Vec<Value> = said
        .tool_calls
        .iter()
        .map(|call| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}))
        .collect();
    let mut message = json!({ "role": "assistant", "content": said.content });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    json!({ "index": index, "message": message, "finish_reason": said.finish_reason })
}

/// Blocks are the stream's bytes, in order, each up to an empty line.
fn blocks(bytes: &[u8]) {
    let mut blocks = Blocks::default();
    blocks.push(bytes);
    let mut raw = Vec::new();
    while let Ok(Some(block)) = blocks.next_block() {
        assert!(block.raw.ends_with(b"\n\n"), "a block without its end");
        let inside = &block.raw[..block.raw.len() - 1];
        assert!(!inside.windows(2).any(|pair| pair == b"\n\n"), "two blocks in one");
        let text = block.data.iter().chain(&block.comments).map(String::len).sum::<usize>();
        assert!(text <= block.raw.len(), "more text than bytes");
        raw.extend(block.raw);
    }
    assert!(bytes.starts_with(&raw), "bytes that did not come, or in another order");
}
