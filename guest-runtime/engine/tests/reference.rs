// SPDX-License-Identifier: Apache-2.0
//! Greedy answers against llama.cpp itself, called plainly: one sequence, its own sampler, its own cache.
//!
//! The model is the one of `answers.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

mod model;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use batching::Engine as _;
use engine::{MAX_ROWS, ROWS, Settings, Weights, batching_engine};
use engine_protocol::{Event, Form, Generate, Prompt, Sampling, Tenant};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;

const CONTEXT: u32 = 64;
const TOKENS: usize = 12;

const QUESTIONS: [&str; 20] = [
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "How many legs has a spider?",
    "Name three colours.",
    "What is 2 + 3?",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "What do bees make?",
    "Explain gravity in one sentence.",
    "Which planet is the largest?",
    "Give me a name for a cat.",
    "What is the opposite of hot?",
    "Write the first line of a poem about rain.",
    "What is water made of?",
    "List two prime numbers.",
    "What does a baker do?",
    "Finish the sentence: The quick brown fox",
    "Is the earth flat?",
    "What is the boiling point of water?",
    "Say hello in a friendly way.",
];

/// What llama.cpp answers, each question in a context of its own.
fn reference(path: &Path) -> Vec<String> {
    let mut backend = LlamaBackend::init().unwrap();
    backend.void_logs();
    let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default()).unwrap();
    let vocab = model.vocab();
    let answer = |question: &&str| {
        let tokens = vocab.tokenize(question.as_bytes(), true, false);
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(CONTEXT))
            .with_n_batch(CONTEXT)
            .with_n_threads(1)
            .with_n_threads_batch(1);
        let mut context = model.new_context(&backend, params).unwrap();
        let mut batch = LlamaBatch::new(CONTEXT as usize, 1);
        batch.add_sequence(&tokens, 0, false).unwrap();
        let (mut sampler, mut text) = (LlamaSampler::greedy(), Vec::new());
        for position in (tokens.len() as i32..).take(TOKENS) {
            context.decode(&mut batch).unwrap();
            let token = sampler.sample(&context, batch.n_tokens() - 1);
            if vocab.is_eog(token) {
                break;
            }
            text.extend(vocab.token_to_piece(token, false, None));
            batch.clear();
            batch.add(token, position, &[0], true).unwrap();
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    QUESTIONS.iter().map(answer).collect()
}

fn request(index: usize) -> Generate {
    Generate {
        id: index as u64,
        tenant: Tenant([index as u8; 32]),
        prompt: Prompt::Text(QUESTIONS[index].into()),
        choices: 1,
        max_tokens: Some(TOKENS as u32),
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 0 },
        stop: vec![],
        logprobs: None,
        form: Form::Free,
    }
}

/// What our engine answers when it is asked so many questions at once, with so many cells in the cache, and computes so many
/// tokens at once.
fn ours(weights: &Weights, at_once: u16, cache: u32, rows: u32) -> Vec<String> {
    let settings = Settings {
        context: NonZeroU32::new(CONTEXT).unwrap(),
        cache: NonZeroU32::new(cache).unwrap(),
        parallel: at_once,
        threads_decode: 1,
        threads_prefill: 1,
        rows,
    };
    let mut engine = batching_engine(weights, settings).unwrap();
    let (mut answers, mut next, mut open) = (BTreeMap::<u64, String>::new(), 0, 0_usize);
    loop {
        while open < usize::from(at_once) && next < QUESTIONS.len() {
            engine.admit(request(next)).unwrap();
            answers.insert(next as u64, String::new());
            (next, open) = (next + 1, open + 1);
        }
        if open == 0 {
            return answers.into_values().collect();
        }
        let mut events = Vec::new();
        engine.step(&mut events);
        for event in events {
            match event {
                Event::Token { id, text, .. } => answers.get_mut(&id).unwrap().push_str(&text),
                Event::Done { .. } => open -= 1,
                Event::Ended { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The whole of the comparison is one test: llama.cpp starts once in a process.
///
/// Each answer must be the same in any company: alone; sixteen at once, whose prompts make a step of more than 64 tokens;
/// and eight at once with so little room that prefixes are dropped, the cache is compacted and answers are stopped and
/// computed again. With steps of any size they are the same alone: what is asked for with them is speed for company.
#[test]
fn greedy_answers_equal_those_of_llama_cpp() {
    let Some(model) = model::model("greedy answers against llama.cpp") else { return };
    let expected = reference(&model);
    let weights = Weights::load(&model).unwrap();
    for (at_once, cache, rows) in
        [(1, CONTEXT, ROWS), (16, 16 * CONTEXT, ROWS), (8, CONTEXT, ROWS), (1, CONTEXT, MAX_ROWS)]
    {
        let found = ours(&weights, at_once, cache, rows);
        let parted: Vec<_> = found.iter().zip(&expected).filter(|(found, expected)| found != expected).collect();
        assert!(
            parted.is_empty(),
            "{at_once} at once, {cache} cells, {rows} rows: {} of {} {parted:?}",
            parted.len(),
            found.len()
        );
    }
}
