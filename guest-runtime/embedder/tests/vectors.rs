// SPDX-License-Identifier: Apache-2.0
//! Vectors of a tiny random model against an oracle, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use embedder::{Embedder, LoadError};
use engine_process::Worker as _;
use engine_protocol::{Command, Embed, Event, Failure, Input, Work};
use support::{Oracle, embed, write};

const CLS: u32 = 2;
const SEP: u32 = 3;

fn loaded(seed: u64) -> (tempfile::TempDir, Oracle, Embedder) {
    let directory = tempfile::tempdir().unwrap();
    let oracle = Oracle::random(seed);
    write(&oracle, directory.path());
    let model = Embedder::load(directory.path(), 512).unwrap();
    (directory, oracle, model)
}

fn text(text: &str) -> Input {
    Input::Text(text.into())
}

fn assert_near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn vectors_are_the_oracle_s() {
    for seed in 1..5 {
        let (_directory, oracle, mut model) = loaded(seed);
        let texts = [("a", vec![4]), ("B cx, d", vec![5, 6, 8, 1, 7]), ("a a a a a a a a a a", vec![4; 10])];
        for (words, inner) in &texts {
            let tokens = [&[CLS][..], inner, &[SEP]].concat();
            let (vectors, count) = embed(&mut model, &[text(words)]).unwrap();
            assert_eq!(count as usize, tokens.len());
            assert_near(&vectors[0], &oracle.vector(&tokens, false));
            // The tokens themselves say the same.
            assert_eq!(embed(&mut model, &[Input::Tokens(inner.clone())]).unwrap().0, vectors);
        }
        let length: f64 = embed(&mut model, &[text("a")]).unwrap().0[0].iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-6);
    }
}

#[test]
fn the_first_token_s_vector_is_taken_where_the_model_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let oracle = Oracle::random(9);
    write(&oracle, directory.path());
    std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
    let pooling = directory.path().join("1_Pooling/config.json");
    std::fs::write(&pooling, r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#).unwrap();
    let mut model = Embedder::load(directory.path(), 512).unwrap();
    assert_near(&embed(&mut model, &[text("a b")]).unwrap().0[0], &oracle.vector(&[CLS, 4, 5, SEP], true));
    std::fs::write(&pooling, r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true}"#).unwrap();
    assert!(matches!(Embedder::load(directory.path(), 512), Err(LoadError::Config { field: "pooling_mode", .. })));
}

/// Bit by bit: alone, in a batch, and with another request between.
#[test]
fn a_vector_does_not_depend_on_its_company() {
    let (_directory, _, mut model) = loaded(7);
    let texts: Vec<Input> = ["a", "b c d a", "dx", "c c c c c c", "a b"].map(text).to_vec();
    let alone: Vec<_> = texts.iter().map(|t| embed(&mut model, std::slice::from_ref(t)).unwrap().0.remove(0)).collect();
    assert_eq!(embed(&mut model, &texts).unwrap().0, alone);
    let mut events = Vec::new();
    for id in [1, 2] {
        model.obey(Command::Embed(Embed { id, inputs: texts.clone() }), &mut events);
    }
    while !model.is_idle() {
        model.step(&mut events);
    }
    for asked in [1, 2] {
        let vectors = events.iter().filter_map(|event| match event {
            Event::Vector { id, values, .. } if *id == asked => Some(values),
            _ => None,
        });
        assert!(vectors.eq(&alone), "{asked}");
    }
    // They took turns.
    let order = events.iter().filter_map(|e| if let Event::Vector { id, .. } = e { Some(*id) } else { None });
    assert!(order.eq([1, 2].into_iter().cycle().take(10)));
}

#[test]
fn what_cannot_be_answered_is_refused_before_any_cost() {
    let (_directory, _, mut model) = loaded(3);
    assert_eq!(model.facts().work, Work::Embed { dimensions: 12 });
    assert_eq!(model.facts().context, 16);
    let refused = |model: &mut Embedder, inputs: &[Input]| {
        let mut events = Vec::new();
        model.obey(Command::Embed(Embed { id: 1, inputs: inputs.to_vec() }), &mut events);
        assert!(model.is_idle());
        let [Event::Failed { code, .. }] = events[..] else { panic!("{events:?}") };
        code
    };
    assert!(embed(&mut model, &[text(&"a ".repeat(14))]).is_ok());
    assert_eq!(refused(&mut model, &[text("a"), text(&"a ".repeat(15))]), Failure::ContextOverflow);
    assert_eq!(refused(&mut model, &[Input::Tokens(vec![4; 15])]), Failure::ContextOverflow);
    assert_eq!(refused(&mut model, &[Input::Tokens(vec![12])]), Failure::UnknownToken);
    assert_eq!(refused(&mut model, &[]), Failure::InvalidRequest);
    assert_eq!(refused(&mut model, &[text("")]), Failure::InvalidRequest);
    // White space alone is a text of no words.
    assert!(embed(&mut model, &[text(" ")]).is_ok());
}

/// Text never becomes a control token: it has other tokens, and another vector, than the control token itself.
#[test]
fn text_that_looks_like_a_control_token_is_text() {
    let (_directory, oracle, mut model) = loaded(4);
    let (vectors, _) = embed(&mut model, &[text("a [SEP] b")]).unwrap();
    assert_near(&vectors[0], &oracle.vector(&[CLS, 4, 9, 11, 10, 5, SEP], false));
}

#[test]
fn requests_are_cancelled_between_texts_and_ids_are_unique() {
    let (_directory, _, mut model) = loaded(5);
    let ask = |id| Command::Embed(Embed { id, inputs: vec![text("a"), text("b"), text("c")] });
    let mut events = Vec::new();
    model.obey(ask(1), &mut events);
    model.obey(ask(1), &mut events);
    assert!(matches!(events[..], [Event::Started { .. }, Event::Failed { code: Failure::DuplicateId, .. }]));
    model.step(&mut events);
    model.obey(Command::Cancel { id: 1 }, &mut events);
    assert!(matches!(events.last(), Some(Event::Failed { id: 1, code: Failure::Cancelled, .. })));
    assert!(model.is_idle());
    let before = events.len();
    model.obey(Command::Cancel { id: 1 }, &mut events);
    assert_eq!(events.len(), before);
    for id in 0..100 {
        model.obey(ask(id), &mut events);
    }
    assert!(matches!(events.last(), Some(Event::Failed { code: Failure::QueueFull, .. })));
}

#[test]
fn weights_that_lie_are_refused_by_name() {
    let load = |change: &dyn Fn(&mut Oracle)| {
        let directory = tempfile::tempdir().unwrap();
        let mut oracle = Oracle::random(1);
        change(&mut oracle);
        write(&oracle, directory.path());
        Embedder::load(directory.path(), 512).unwrap_err()
    };
    let name = "encoder.layer.1.output.dense.weight";
    let missing = load(&|oracle| drop(oracle.tensors.remove(name)));
    assert!(matches!(&missing, LoadError::Tensor { name: found, rule: "missing" } if found == name), "{missing}");
    let turned = load(&|oracle| oracle.tensors.get_mut(name).unwrap().0.reverse());
    assert!(matches!(&turned, LoadError::Tensor { name: found, .. } if found == name), "{turned}");
    let no_number = load(&|oracle| oracle.tensors.get_mut(name).unwrap().1.fill(f32::NAN));
    assert!(matches!(no_number, LoadError::Arithmetic), "{no_number}");
    // The last position is used at loading.
    let positions = "embeddings.position_embeddings.weight";
    let no_number = load(&|oracle| *oracle.tensors.get_mut(positions).unwrap().1.last_mut().unwrap() = f32::NAN);
    assert!(matches!(no_number, LoadError::Arithmetic), "{no_number}");

    let directory = tempfile::tempdir().unwrap();
    write(&Oracle::random(1), directory.path());
    let break_file = |file: &str, bytes: &[u8]| {
        let path = directory.path().join(file);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = Embedder::load(directory.path(), 512).unwrap_err();
        std::fs::write(&path, before).unwrap();
        error
    };
    let whole = std::fs::read(directory.path().join("model.safetensors")).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..7], b"", &[0xFF; 16]] {
        let error = break_file("model.safetensors", bytes);
        assert!(matches!(error, LoadError::Json { file: "model.safetensors" }), "{error}");
    }
    assert!(matches!(break_file("tokenizer.json", b"{}"), LoadError::Json { file: "tokenizer.json" }));
    let more = support::TOKENIZER.replace("\"sep\":11", "\"sep\":11,\"e\":12");
    let error = break_file("tokenizer.json", more.as_bytes());
    assert!(matches!(error, LoadError::Config { file: "tokenizer.json", .. }), "{error}");
    let error = break_file("config.json", &vec![b' '; 65 << 10]);
    assert!(matches!(error, LoadError::TooLong { file: "config.json", .. }), "{error}");
    std::fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let error = Embedder::load(directory.path(), 512).unwrap_err();
    assert!(matches!(error, LoadError::Io { file: "tokenizer.json", .. }), "{error}");
}
