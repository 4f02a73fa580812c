// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};

use super::*;

fn decide(request: &[u8]) -> Value {
    serde_json::from_slice(&verify(&Anchors::genuine(), request)).unwrap()
}

fn codes(answer: &Value) -> Vec<&str> {
    assert_eq!(answer["accepted"], json!(false), "{answer}");
    assert!(answer.get("result").is_none(), "{answer}");
    answer["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

fn request(subject: &Value) -> Value {
    json!({"schema": Request::SCHEMA, "at": 1_750_377_600, "subject": subject})
}

#[test]
fn what_is_no_request_is_refused() {
    let quote = request(&json!({"quote": {"quote": "", "collateral": []}}));
    assert_eq!(codes(&decide(quote.to_string().as_bytes())), ["quote_truncated"], "the form is right");
    let text = quote.to_string();
    let odd = [
        String::new(),
        "[]".to_owned(),
        format!("{text}x"),
        text.replace("/v1", "/v2"),
        text.replace("\"at\"", "\"time\""),
        text.replace("1750377600", "-1"),
        text.replace("\"at\"", "\"root\":\"\",\"at\""),
        text.replace("\"at\"", "\"at\":1,\"at\""),
        text.replace("\"collateral\"", "\"root\":\"\",\"collateral\""),
        request(&json!({"other": {}})).to_string(),
        request(&json!({})).to_string(),
    ];
    for odd in odd {
        assert_eq!(codes(&decide(odd.as_bytes())), ["request_malformed"], "{odd}");
    }
    assert_eq!(codes(&decide(&[0xff, 0xfe])), ["request_malformed"]);
    assert_eq!(codes(&decide(&vec![b' '; MAX_REQUEST + 1])), ["request_malformed"]);
}

#[test]
fn a_platform_without_collateral_and_collateral_without_form() {
    let bad = request(&json!({"quote": {"quote": "", "collateral": ["{}"]}}));
    assert_eq!(codes(&decide(bad.to_string().as_bytes())), ["collateral_malformed"]);
    let many = request(&json!({"quote": {"quote": "", "collateral": vec!["{}"; 17]}}));
    assert_eq!(codes(&decide(many.to_string().as_bytes())), ["collateral_malformed"]);
    let trust = request(&json!({"release": {"bundle": "{}", "trust": "{}"}}));
    assert_eq!(codes(&decide(trust.to_string().as_bytes())), ["release_policy_malformed"]);
}

#[test]
fn no_gpu_is_not_accepted() {
    let policy = serde_json::to_value(gpu_verify::GpuPolicy::files_only()).unwrap();
    let none = request(&json!({"gpus": {"gpus": [], "rims": [], "policy": policy}}));
    let answer = decide(none.to_string().as_bytes());
    assert_eq!((&answer["accepted"], &answer["result"]["accepted"]), (&json!(false), &json!(false)));
    assert!(answer["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{answer}");
}

#[test]
fn bytes_cross_in_words() {
    for len in 0..11_u8 {
        let request: Vec<u8> = (1..=len).collect();
        let mut exchange = Exchange::new();
        exchange.give(7, 1);
        exchange.begin();
        for chunk in request.chunks(4) {
            let mut word = [0xee; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            exchange.give(u32::from_le_bytes(word), u32::try_from(chunk.len()).unwrap());
        }
        let answered = exchange.decide(|given| {
            assert_eq!(given, request);
            given.iter().map(|byte| byte + 100).collect()
        });
        assert_eq!(answered, u32::from(len));
        let taken: Vec<u8> = (0..answered).step_by(4).flat_map(|at| exchange.answer(at).to_le_bytes()).collect();
        assert!(taken.iter().take(len.into()).copied().eq((1..=len).map(|byte| byte + 100)));
        assert!(taken.iter().skip(len.into()).all(|byte| *byte == 0));
        assert_eq!(exchange.answer(u32::MAX), 0);
        assert_eq!(exchange.decide(<[u8]>::to_vec), 0, "the request was forgotten");
    }
}

#[test]
fn a_request_that_is_too_long_is_kept_one_byte_too_long() {
    let mut exchange = Exchange::new();
    for _ in 0..=MAX_REQUEST / 4 {
        exchange.give(0, 9);
    }
    exchange.give(0, u32::MAX);
    assert_eq!(exchange.decide(|given| vec![0; given.len() - MAX_REQUEST]), 1);
}
