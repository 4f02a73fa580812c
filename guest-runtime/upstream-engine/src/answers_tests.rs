// SPDX-License-Identifier: Apache-2.0
//! Chunks of a server that keeps its word, and of one that does not.

use super::*;
use engine_protocol::{Form, Prompt, Sampling, Tenant};
use proptest::prelude::*;
use serde_json::{Value, json};

const MAX: u32 = 10;

fn request(choices: u16, form: Form, stop: &[&str], logprobs: Option<u8>) -> Generate {
    Generate {
        id: 7,
        tenant: Tenant([0; 32]),
        prompt: Prompt::Text("hi".into()),
        choices,
        max_tokens: Some(MAX),
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 1 },
        stop: stop.iter().map(ToString::to_string).collect(),
        logprobs,
        form,
    }
}

fn piece(index: u16, text: &str, finish: Option<&str>) -> Value {
    json!({"id": "x", "object": "text_completion", "choices": [
        {"index": index, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null}]})
}

fn usage(prompt: u32, completion: u32) -> Value {
    json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 1}}})
}

/// All events, with the last one, of chunks behind which `[DONE]` follows.
fn run(request: &Generate, chunks: &[Value]) -> Result<Vec<Event>, Failure> {
    let form = batching::form(&request.form).unwrap();
    let mut answers = Answers::new(request, form.as_ref(), 3, MAX);
    let mut events = Vec::new();
    for chunk in chunks {
        answers.take(chunk.to_string().as_bytes(), &mut events)?;
    }
    answers.take(b"[DONE]", &mut events)?;
    assert!(answers.is_done());
    events.push(answers.finish()?);
    Ok(events)
}

fn token(choice: u16, text: &str) -> Event {
    Event::Token { id: 7, choice, text: text.into(), logprobs: vec![] }
}

fn ended(choice: u16, reason: FinishReason) -> Event {
    Event::Ended { id: 7, choice, reason }
}

fn done(completion_tokens: u32) -> Event {
    Event::Done { id: 7, prompt_tokens: 3, cached_tokens: 1, completion_tokens }
}

fn free() -> Generate {
    request(1, Form::Free, &[], None)
}

#[test]
fn chunks_become_events() {
    let chunks = [
        piece(1, "a", None),
        piece(0, "b", None),
        piece(1, "", Some("stop")),
        piece(0, "c", Some("length")),
        usage(3, 12),
    ];
    let events = run(&request(2, Form::Free, &[], None), &chunks).unwrap();
    let expected = [
        token(1, "a"),
        token(0, "b"),
        ended(1, FinishReason::Stop),
        token(0, "c"),
        ended(0, FinishReason::Length),
        done(12),
    ];
    assert_eq!(events, expected);
}

#[test]
fn counts_that_cannot_be_are_refused() {
    let answer = |usages: &[Value]| run(&free(), &[&[piece(0, "a", Some("stop"))], usages].concat());
    assert!(answer(&[usage(3, 1)]).is_ok() && answer(&[usage(3, 1), usage(3, MAX)]).is_ok());
    for usages in [
        &[][..],
        &[usage(4, 1)],
        &[usage(3, MAX + 1)],
        &[usage(3, 2), usage(3, 1)],
        // Text of no token.
        &[usage(3, 0)],
        &[json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": -1}})],
        &[json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 4}}})],
    ] {
        assert_eq!(answer(usages), Err(Failure::EngineFailed), "{usages:?}");
    }
    let cut = |tokens| run(&free(), &[piece(0, "a", Some("length")), usage(3, tokens)]);
    assert!(cut(MAX).is_ok());
    assert_eq!(cut(MAX - 1), Err(Failure::EngineFailed), "cut off too early");
}

#[test]
fn answers_that_cannot_be_are_refused() {
    for chunks in [
        &[piece(1, "a", Some("stop"))][..],
        &[piece(0, "a", None)],
        &[piece(0, "a", Some("stop")), piece(0, "b", None)],
        &[piece(0, "a", Some("stop")), piece(0, "", Some("stop"))],
        &[piece(0, "a", Some("content_filter"))],
        &[piece(0, "a", Some(""))],
        &[json!({"error": {"message": "a prompt", "code": 500}})],
        &[json!({"choices": [{"index": 0}]})],
        &[json!({"choices": [{"index": 0, "text": 5}]})],
        &[json!([])],
    ] {
        let all = [chunks, &[usage(3, 2)]].concat();
        assert_eq!(run(&free(), &all), Err(Failure::EngineFailed), "{chunks:?}");
    }
    let mut answers = Answers::new(&free(), None, 3, MAX);
    assert_eq!(answers.take(b"{\"choices\":[]} x", &mut vec![]), Err(Failure::EngineFailed));
    answers.take(b"[DONE]", &mut vec![]).unwrap();
    assert_eq!(answers.take(b"[DONE]", &mut vec![]), Err(Failure::EngineFailed));
}

#[test]
fn a_stop_text_never_passes() {
    let stops = request(1, Form::Free, &["END"], None);
    let said = |pieces: &[&str]| {
        let mut chunks: Vec<_> = pieces.iter().map(|text| piece(0, text, None)).collect();
        chunks.extend([piece(0, "", Some("stop")), usage(3, 5)]);
        run(&stops, &chunks)
    };
    assert_eq!(said(&["a EN", "D b"]), Err(Failure::EngineFailed));
    let events = said(&["a EN", "T"]).unwrap();
    assert_eq!(events[..2], [token(0, "a "), token(0, "ENT")]);
    // What was held back comes with the end.
    assert_eq!(said(&["a EN"]).unwrap()[1], token(0, "EN"));
}

const CITY: &str = r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;

#[test]
fn a_form_is_followed_byte_by_byte() {
    let schema = |stop: &[&str]| request(1, Form::JsonSchema(CITY.into()), stop, None);
    let said = |request: &Generate, pieces: &[&str], finish: &str, tokens: u32| {
        let mut chunks: Vec<_> = pieces.iter().map(|text| piece(0, text, None)).collect();
        chunks.extend([piece(0, "", Some(finish)), usage(3, tokens)]);
        run(request, &chunks)
    };
    assert!(said(&schema(&[]), &["{\"ci", "ty\": \"Par", "is\"}"], "stop", 5).is_ok());
    // Cut off, which is what `length` says.
    assert!(said(&schema(&[]), &["{\"ci"], "length", MAX).is_ok());
    for pieces in [
        &["{\"ci"][..],
        &["[1]"],
        &["{\"city\": 5}"],
        &["{\"town\": \"x\"}"],
        &["{\"city\": \"x\"} and more"],
        &["Here you are: {\"city\": \"x\"}"],
        &[],
    ] {
        assert_eq!(said(&schema(&[]), pieces, "stop", 5), Err(Failure::FormStuck), "{pieces:?}");
    }
    // A text that ends the answer is part of the form, not of the answer.
    assert!(said(&schema(&["is\"}"]), &["{\"city\": \"Par"], "stop", 5).is_ok());
    assert_eq!(said(&schema(&["9"]), &["{\"ci"], "stop", 5), Err(Failure::FormStuck));
    let calls = request(1, Form::ToolCalls(CITY.into()), &["</tool_call>"], None);
    assert!(said(&calls, &["I ask.\n<tool_call>\n{\"city\": \"x\"}\n"], "stop", 5).is_ok());
    assert!(said(&calls, &["no call"], "stop", 5).is_ok());
    assert_eq!(said(&calls, &["<tool_call>\n{\"city\": 5}"], "stop", 5), Err(Failure::FormStuck));
    let object = request(1, Form::JsonObject, &[], None);
    assert!(said(&object, &["{\"a\": [1, 2]}"], "stop", 5).is_ok());
    assert_eq!(said(&object, &["[]"], "stop", 5), Err(Failure::FormStuck));
}

#[test]
fn what_breaks_the_form_is_not_passed_on() {
    let request = request(1, Form::JsonSchema(CITY.into()), &[], None);
    let form = batching::form(&request.form).unwrap();
    let (mut answers, mut events) = (Answers::new(&request, form.as_ref(), 3, MAX), Vec::new());
    let bad = piece(0, "{\"city\": evil", None).to_string();
    assert_eq!(answers.take(bad.as_bytes(), &mut events), Err(Failure::FormStuck));
    assert_eq!(events, []);
}

fn with_logprobs(text: &str, logprobs: Value) -> Value {
    json!({"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "stop"}]})
}

#[test]
fn logprobs_are_sorted_and_bounded() {
    let wants = request(1, Form::Free, &[], Some(2));
    let told = json!({"tokens": ["ab", "c"], "token_logprobs": [-0.5, -1e300], "text_offset": [0, 2],
        "top_logprobs": [{"x": -3.0, "ab": -0.5, "y": 0.0000001}, null]});
    let events = run(&wants, &[with_logprobs("abc", told), usage(3, 2)]).unwrap();
    let entry = |text: &str, logprob| TokenLogprob { bytes: text.into(), logprob };
    let logprobs = vec![
        TokenLogprobs { token: entry("ab", -0.5), top: vec![entry("y", 0.0), entry("ab", -0.5)] },
        TokenLogprobs { token: entry("c", -9999.0), top: vec![] },
    ];
    assert_eq!(events[0], Event::Token { id: 7, choice: 0, text: "abc".into(), logprobs });
    for told in [
        json!(null),
        json!({"tokens": ["a"], "token_logprobs": []}),
        json!({"tokens": ["a"], "token_logprobs": [null]}),
        json!({"tokens": ["a"], "token_logprobs": [0.5]}),
        json!({"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": 2.0}]}),
        json!({"tokens": vec!["a"; 11], "token_logprobs": vec![-1.0; 11]}),
    ] {
        let chunks = [with_logprobs("a", told.clone()), usage(3, 2)];
        assert_eq!(run(&wants, &chunks), Err(Failure::EngineFailed), "{told}");
    }
    // Nobody asked.
    let told = json!({"tokens": ["a"], "token_logprobs": [-1.0]});
    assert_eq!(run(&free(), &[with_logprobs("a", told), usage(3, 2)]).unwrap()[0], token(0, "a"));
}

proptest! {
    #[test]
    fn arbitrary_chunks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Answers::new(&free(), None, 3, MAX).take(&bytes, &mut vec![]);
    }

    /// However the text is cut, what is passed on is the text.
    #[test]
    fn pieces_joined_are_the_text(text in "[a-cE-N ]{1,40}", cut in 1_usize..7) {
        let wants = request(1, Form::Free, &["ZZ", "EF"], None);
        prop_assume!(!text.contains("EF"));
        let mut chunks: Vec<_> = text.as_bytes().chunks(cut).map(|c| piece(0, std::str::from_utf8(c).unwrap(), None)).collect();
        chunks.extend([piece(0, "", Some("stop")), usage(3, 5)]);
        let events = run(&wants, &chunks).unwrap();
        let joined: String = events.iter().filter_map(|event| match event {
            Event::Token { text, .. } => Some(text.as_str()),
            _ => None,
        }).collect();
        prop_assert_eq!(joined, text);
    }
}
