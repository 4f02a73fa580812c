// SPDX-License-Identifier: Apache-2.0
//! An answer behind a long text is the same bit by bit, with any number of threads, alone and in company: llama.cpp's
//! attention has kernels for few rows beside many cells, and for many rows, that add up in other orders.
//!
//! The model is the one of `answers.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

mod model;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use batching::Engine as _;
use engine::{Settings, Weights, batching_engine};
use engine_protocol::{Event, Form, Generate, Prompt, Sampling, Tenant, TokenLogprobs};

/// More than the 512 cells from which on such a kernel is taken for one row.
const WORDS: usize = 560;
const TOKENS: u32 = 6;

fn request(id: u64, words: usize) -> Generate {
    let text =
        ["The ship", " sailed", " on", " over", " the", " sea"].into_iter().cycle().take(words).collect::<String>();
    Generate {
        id,
        tenant: Tenant([id as u8; 32]),
        prompt: Prompt::Text(text),
        choices: 1,
        max_tokens: Some(TOKENS),
        most_tokens: None,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 0 },
        logit_bias: vec![],
        stop: vec![],
        logprobs: Some(3),
        form: Form::Free,
    }
}

/// What is said of the first request's tokens, computed with so many threads beside the others.
fn said(weights: &Weights, threads: u16, requests: &[Generate]) -> Vec<TokenLogprobs> {
    let settings = Settings {
        context: NonZeroU32::new(1024).unwrap(),
        cache: NonZeroU32::new(2048).unwrap(),
        parallel: 4,
        threads_decode: threads,
        threads_prefill: threads,
    };
    let mut engine = batching_engine(weights, settings).unwrap();
    for request in requests {
        engine.admit(request.clone()).unwrap();
    }
    let (mut said, mut events) = (BTreeMap::<u64, Vec<TokenLogprobs>>::new(), Vec::new());
    while !engine.is_idle() {
        engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Token { id, logprobs, .. } => said.entry(id).or_default().extend(logprobs),
                Event::Done { .. } | Event::Ended { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    said.remove(&0).unwrap()
}

#[test]
fn an_answer_behind_a_long_text_is_the_same_with_any_threads_in_any_company() {
    let Some(model) = model::model("answers behind a long text") else { return };
    let weights = Weights::load(&model).unwrap();
    let long = request(0, WORDS);
    let alone = said(&weights, 1, std::slice::from_ref(&long));
    assert_eq!(alone.len(), TOKENS as usize);
    let told = |logprobs: &[TokenLogprobs]| -> Vec<(Vec<u8>, u32)> {
        let likeliest = logprobs.iter().flat_map(|entry| &entry.top);
        likeliest.map(|token| (token.bytes.clone(), token.logprob.to_bits())).collect()
    };
    assert_eq!(told(&said(&weights, 2, std::slice::from_ref(&long))), told(&alone), "two threads");
    let company = [long, request(1, 90), request(2, 30), request(3, 200)];
    assert_eq!(told(&said(&weights, 2, &company)), told(&alone), "in company");
}
