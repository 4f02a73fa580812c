// SPDX-License-Identifier: Apache-2.0
//! The scheduler with a model that checks what it is asked to do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use batching::{Capacity, Engine as _};
use engine_protocol::{Bias, Event, Failure, FinishReason, Form, Generate, Prompt, Sampling, Tenant};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{CONTEXT, Outcome, alone, collect, drain, engine, request, roomy};

fn cached(outcome: &Outcome) -> u32 {
    match outcome.last {
        Some(Event::Done { cached_tokens, .. }) => cached_tokens,
        ref other => panic!("{other:?}"),
    }
}

fn run(engine: &mut batching::Batching<support::FakeModel>, request: Generate) -> Outcome {
    let id = request.id;
    engine.admit(request).unwrap();
    let mut outcomes = BTreeMap::new();
    drain(engine, &mut outcomes, 1000);
    outcomes.remove(&id).unwrap()
}

/// What one tenant left in the cache is no faster for another.
#[test]
fn prefixes_are_shared_within_a_tenant_only() {
    let mut engine = engine(roomy());
    let prompt = "a prompt of some length";
    let tokens = prompt.len() as u32;
    assert_eq!(cached(&run(&mut engine, request(1, 1, prompt))), 0);
    assert_eq!(cached(&run(&mut engine, request(2, 2, prompt))), 0, "another tenant");
    assert_eq!(cached(&run(&mut engine, request(3, 1, prompt))), tokens - 1);
    assert_eq!(cached(&run(&mut engine, request(4, 1, &format!("{prompt} and more")))), tokens);
    engine.forget(Tenant([1; 32]));
    assert_eq!(cached(&run(&mut engine, request(5, 1, prompt))), 0, "forgotten");
    assert_eq!(cached(&run(&mut engine, request(6, 2, prompt))), tokens - 1, "the other one is not");
    assert_eq!(engine.model().wiped, 0);
    assert!(!engine.scratch().is_empty(), "answers were drawn");
    engine.forget(Tenant([1; 32]));
    engine.forget(Tenant([2; 32]));
    assert!(engine.scheduler().cells().is_empty());
    assert_eq!(engine.model().wiped, 1, "an empty cache is overwritten");
    assert!(engine.scratch().is_empty(), "so is what was drawn from");
}

#[test]
fn several_answers_cost_their_prompt_once() {
    let mut engine = engine(roomy());
    let prompt = "x".repeat(40);
    let outcome = run(&mut engine, Generate { choices: 8, max_tokens: Some(4), ..request(1, 1, &prompt) });
    assert_eq!(outcome.ended.len(), 8);
    assert!(engine.model().computed <= 40 + 8 * 4, "{}", engine.model().computed);
    let texts: std::collections::BTreeSet<_> = outcome.texts.values().collect();
    assert!(texts.len() > 2, "they are drawn apart: {texts:?}");
}

/// While long prompts are read, each running answer gets a token in every step.
#[test]
fn a_long_prompt_stalls_nobody() {
    let capacity = Capacity { step: 8, ..roomy() };
    let mut engine = engine(capacity);
    engine.admit(Generate { max_tokens: Some(30), ..request(1, 1, "short") }).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events);
    for id in 2..=4 {
        engine.admit(Generate { max_tokens: Some(1), ..request(id, id as u8, &"long ".repeat(10)) }).unwrap();
    }
    engine.admit(Generate { max_tokens: Some(1), ..request(5, 5, "also short") }).unwrap();
    let (mut outcomes, before) = (BTreeMap::new(), engine.model().steps.len());
    let mut first_ended_at = None;
    while !engine.is_idle() {
        let mut events = Vec::new();
        engine.step(&mut events);
        collect(&mut outcomes, events);
        if first_ended_at.is_none() && outcomes.get(&5).is_some_and(|outcome| outcome.last.is_some()) {
            first_ended_at = Some(engine.model().steps.len() - before);
        }
    }
    let done = outcomes.get(&1).is_some_and(|outcome| outcome.last.is_some());
    assert!(done);
    for step in &engine.model().steps[before..] {
        let decodes = step.iter().filter(|entry| entry.slot == 0 && entry.sample.is_some()).count();
        assert!(decodes <= 1 && step.len() <= 8);
    }
    // Four prompts share seven tokens of each step: ten tokens take five steps or six, not the twenty of a queue.
    assert!(first_ended_at.unwrap() <= 8, "{first_ended_at:?}");
}

/// Somebody who sends without end delays others by their own share only.
#[test]
fn tenants_take_turns() {
    let capacity = Capacity { running: 1, waiting: 1000, ..roomy() };
    let mut engine = engine(capacity);
    for id in 1..=50 {
        engine.admit(Generate { max_tokens: Some(1), ..request(id, 1, "greedy") }).unwrap();
    }
    engine.admit(Generate { max_tokens: Some(1), ..request(100, 2, "modest") }).unwrap();
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Done { id: 100, .. })) {
        engine.step(&mut events);
    }
    let done = events.iter().filter(|event| matches!(event, Event::Done { .. })).count();
    assert!(done <= 3, "{done} answers before the other tenant's");
}

/// Who has few places gets one from who has many, at once, and everybody's answer stays what it is.
#[test]
fn places_are_shared_by_tenant() {
    let capacity = Capacity { running: 4, slots: 8, ..roomy() };
    let mut engine = engine(capacity);
    let long = |id, tenant| Generate { choices: 4, max_tokens: Some(40), ..request(id, tenant, "takes all places") };
    engine.admit(long(1, 1)).unwrap();
    let (mut outcomes, mut events) = (BTreeMap::new(), Vec::new());
    (0..5).for_each(|_| engine.step(&mut events));
    let ask = |id: u64| Generate { max_tokens: Some(3), ..request(id, id as u8, "short") };
    for id in [2, 3] {
        engine.admit(ask(id)).unwrap();
    }
    for _ in 0..6 {
        engine.step(&mut events);
    }
    collect(&mut outcomes, events);
    for id in [2, 3] {
        assert!(outcomes[&id].last.is_some(), "{id} had to wait");
        assert_eq!(outcomes[&id].texts, alone(ask(id)).texts);
    }
    let computed = engine.model().computed;
    drain(&mut engine, &mut outcomes, 1000);
    assert_eq!(outcomes[&1].texts, alone(long(1, 1)).texts);
    // Who was stopped goes on where it was.
    assert!(engine.model().computed - computed <= 4 * 40, "{}", engine.model().computed - computed);
}

/// What counts is how much was computed, not how many answers there were.
#[test]
fn long_answers_count_more_than_short_ones() {
    let capacity = Capacity { running: 1, waiting: 1000, ..roomy() };
    let mut engine = engine(capacity);
    for id in 1..=20 {
        engine.admit(Generate { max_tokens: Some(40), ..request(id, 1, "long") }).unwrap();
        engine.admit(Generate { max_tokens: Some(1), ..request(100 + id, 2, "a") }).unwrap();
    }
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Done { id: 120, .. })) {
        engine.step(&mut events);
    }
    let long = events.iter().filter(|event| matches!(event, Event::Done { id: 1..=20, .. })).count();
    assert!(long <= 4, "{long} long answers between 20 short ones");
}

/// A cache is not moved for each client that leaves.
#[test]
fn what_is_given_up_is_freed_when_it_costs_nothing_or_is_needed() {
    let mut engine = engine(roomy());
    let long = Generate { max_tokens: Some(50), ..request(1, 1, "long") };
    engine.admit(long.clone()).unwrap();
    let (mut outcomes, mut events) = (BTreeMap::new(), Vec::new());
    for id in 2..14 {
        engine.admit(request(id, id as u8, "a prompt")).unwrap();
        (0..3).for_each(|_| engine.step(&mut events));
        engine.cancel(id, &mut events);
        engine.forget(Tenant([id as u8; 32]));
    }
    assert_eq!(engine.model().compacted, 0);
    collect(&mut outcomes, events);
    drain(&mut engine, &mut outcomes, 1000);
    assert_eq!(outcomes[&1].texts, alone(long).texts);
    engine.forget(Tenant([1; 32]));
    assert!(engine.scheduler().cells().is_empty());
    assert_eq!(engine.model().wiped, 1);
}

/// Whoever goes on is slowed down by what was given up below it only until that has cost as much as moving it.
#[test]
fn what_is_given_up_below_an_answer_is_freed_when_looking_past_it_has_cost_a_move() {
    let mut engine = engine(roomy());
    let (mut outcomes, mut events) = (BTreeMap::new(), Vec::new());
    engine.admit(Generate { max_tokens: Some(1), ..request(99, 99, &"x".repeat(31)) }).unwrap();
    engine.step(&mut events);
    let long = Generate { max_tokens: Some(50), ..request(1, 1, "long") };
    engine.admit(long.clone()).unwrap();
    engine.step(&mut events);
    engine.forget(Tenant([99; 32]));
    let mut used = Vec::new();
    for id in 2..20 {
        engine.admit(request(id, id as u8, &"x".repeat(31))).unwrap();
        (0..2).for_each(|_| engine.step(&mut events));
        engine.cancel(id, &mut events);
        engine.forget(Tenant([id as u8; 32]));
        used.push((engine.model().compacted, engine.scheduler().cells().used()));
    }
    assert_eq!(used[3].0, 0, "it costs less than a move: {used:?}");
    assert!((1..=3).contains(&used[17].0), "it is moved then, and not each time: {used:?}");
    assert!(used[17].1 < 50, "the answer alone is left: {used:?}");
    collect(&mut outcomes, events);
    drain(&mut engine, &mut outcomes, 1000);
    assert_eq!(outcomes[&1].texts, alone(long).texts);
}

#[test]
fn a_prefix_is_kept_until_so_much_was_computed_without_it() {
    let mut engine = engine(Capacity { patience: 200, ..roomy() });
    let prompt = "a prompt of some length";
    let tokens = prompt.len() as u32;
    let mut asked = 0..;
    let mut ask = |tenant, prompt: &str| {
        let id = asked.next().unwrap_or(0);
        cached(&run(&mut engine, Generate { max_tokens: Some(2), ..request(id, tenant, prompt) }))
    };
    assert_eq!(ask(1, prompt), 0);
    let other = "b".repeat(45);
    (10..13).for_each(|tenant| assert_eq!(ask(tenant, &other), 0));
    assert_eq!(ask(1, prompt), tokens - 1, "140 tokens later");
    (20..23).for_each(|tenant| assert_eq!(ask(tenant, &other), 0));
    assert_eq!(ask(1, prompt), tokens - 1, "it was used since");
    (30..39).for_each(|tenant| assert_eq!(ask(tenant, &other), 0));
    assert_eq!(ask(1, prompt), 0, "400 tokens later");
    // Its tenant waits behind the others.
    let mut engine = self::engine(Capacity { patience: 200, running: 1, ..roomy() });
    run(&mut engine, Generate { max_tokens: Some(2), ..request(1, 1, prompt) });
    for tenant in 10..19 {
        engine.admit(request(tenant, tenant as u8, &other)).unwrap();
    }
    assert_eq!(cached(&run(&mut engine, request(2, 1, prompt))), tokens - 1, "it was about to be used");
}

#[test]
fn the_queue_has_an_end_and_ids_are_unique() {
    let capacity = Capacity { waiting: 3, ..roomy() };
    let mut engine = engine(capacity);
    engine.admit(Generate { choices: 2, ..request(1, 1, "a") }).unwrap();
    assert_eq!(engine.admit(request(1, 1, "a")).unwrap_err().code, Failure::DuplicateId);
    let refused = engine.admit(Generate { choices: 2, ..request(2, 1, "a") }).unwrap_err();
    assert_eq!((refused.code, refused.prompt_tokens), (Failure::QueueFull, Some(1)));
    engine.admit(request(3, 1, "a")).unwrap();
    let refused = engine.admit(request(4, 1, &"a".repeat(64))).unwrap_err();
    assert_eq!(refused.code, Failure::ContextOverflow);
    assert_eq!(engine.admit(request(5, 1, "")).unwrap_err().code, Failure::InvalidRequest);
    assert_eq!(engine.admit(request(6, 1, &"a".repeat(60))).unwrap_err().code, Failure::ContextOverflow);
    let form = Form::JsonSchema(r#"{"not":{}}"#.into());
    assert_eq!(engine.admit(Generate { form, ..request(7, 1, "a") }).unwrap_err().code, Failure::InvalidRequest);
}

/// A request's own changes of logits hold for each of its answers, and only for tokens that there are.
#[test]
fn a_token_that_is_made_likely_comes_each_time() {
    let mut engine = engine(roomy());
    let bias = |token, bias| vec![Bias { token, bias }];
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..request(1, 1, "").sampling };
        let asked = Generate { sampling, choices: 2, logit_bias: bias(3, 100.0), ..request(1, 1, "a") };
        let outcome = run(&mut engine, Generate { logprobs: Some(1), ..asked });
        assert!(outcome.texts.values().all(|text| text == "cccccccc"), "{outcome:?}");
    }
    let unlikely: Vec<_> = (0..11).filter(|token| *token != 4).map(|token| Bias { token, bias: -100.0 }).collect();
    let outcome = run(&mut engine, Generate { logit_bias: unlikely, ..request(2, 1, "a") });
    assert_eq!(outcome.texts[&0], "dddddddd");
    assert!(engine.admit(Generate { logit_bias: bias(10, 1.0), ..request(3, 1, "a") }).is_ok());
    let refused = engine.admit(Generate { logit_bias: bias(11, 1.0), ..request(4, 1, "a") }).unwrap_err();
    assert_eq!(refused.code, Failure::UnknownToken);
}

/// Who names no number gets as many as the caller's limit and the context leave, and no error.
#[test]
fn an_answer_without_a_number_of_tokens_ends_at_the_limit() {
    let mut engine = engine(roomy());
    let long = Generate { logit_bias: vec![Bias { token: 3, bias: 100.0 }], max_tokens: None, ..request(1, 1, "abcd") };
    for (most_tokens, expected) in [(Some(5), 5), (Some(1000), 60), (None, 60)] {
        let outcome = run(&mut engine, Generate { most_tokens, ..long.clone() });
        assert_eq!(outcome.texts[&0].len(), expected, "{most_tokens:?}");
    }
}

/// A form that the vocabulary cannot follow is its request's own misfortune.
#[test]
fn an_answer_that_cannot_go_on_ends_alone() {
    let mut engine = engine(roomy());
    let prompt = "a prompt of some length";
    run(&mut engine, request(1, 1, prompt));
    engine.admit(Generate { max_tokens: Some(30), ..request(2, 2, "goes on") }).unwrap();
    engine.admit(Generate { form: Form::JsonSchema(r#"{"const":"zzz"}"#.into()), ..request(3, 3, "json") }).unwrap();
    let mut outcomes = BTreeMap::new();
    drain(&mut engine, &mut outcomes, 1000);
    assert!(matches!(outcomes[&3].last, Some(Event::Failed { code: Failure::FormStuck, .. })), "{:?}", outcomes[&3]);
    assert_eq!(outcomes[&2].texts, alone(Generate { max_tokens: Some(30), ..request(2, 2, "goes on") }).texts);
    assert_eq!(cached(&run(&mut engine, request(4, 1, prompt))), prompt.len() as u32 - 1, "what was kept is kept");
}

/// Schemas with 2^60 ways through them, or with thousands of places, neither stop the engine nor need to be refused.
#[test]
fn schemas_that_multiply_cost_little() {
    let reference = |index: u32| format!(r##"{{"$ref":"#/$defs/a{index}"}}"##);
    let link = |index: u32| format!(r#""a{index}":{{"anyOf":[{0},{0}]}}"#, reference(index + 1));
    let links: Vec<String> = (0..60).map(link).collect();
    let schema = format!(r#"{{"anyOf":[{0},{0}],"$defs":{{{1},"a60":{{"const":1}}}}}}"#, reference(0), links.join(","));
    let mut engine = engine(roomy());
    let outcome = run(&mut engine, Generate { form: Form::JsonSchema(schema.clone()), ..request(1, 1, "a") });
    assert_eq!(outcome.texts[&0], "1");
    let outcome =
        run(&mut engine, Generate { form: Form::ToolCalls(schema), max_tokens: Some(3), ..request(2, 1, "a") });
    assert!(matches!(outcome.last, Some(Event::Done { .. })));
}

#[test]
fn a_failed_computation_ends_what_it_computed_and_nothing_else() {
    let capacity = Capacity { running: 2, ..roomy() };
    let mut model = support::FakeModel::new(capacity);
    model.fails_at = Some(2);
    let mut engine = batching::Batching::new(model, capacity);
    for id in 1..=4 {
        engine.admit(request(id, 1, "hello")).unwrap();
    }
    let mut outcomes = BTreeMap::new();
    drain(&mut engine, &mut outcomes, 1000);
    for id in 1..=4 {
        let failed = matches!(outcomes[&id].last, Some(Event::Failed { code: Failure::EngineFailed, .. }));
        assert_eq!(failed, id <= 2, "{id}");
        if !failed {
            assert_eq!(outcomes[&id].texts, alone(request(id, 1, "hello")).texts);
        }
    }
}

/// Under pressure holes appear below what runs; answers still lie in order, and few moves are needed for that.
#[test]
fn cells_are_compacted_before_an_answer_would_lie_out_of_order() {
    let capacity = Capacity { cells: 150, slots: 8, running: 3, ..roomy() };
    let mut engine = engine(capacity);
    let mut outcomes = BTreeMap::new();
    let ask = |id: u64| Generate { max_tokens: Some(5 + (id % 20) as u32), ..request(id, id as u8, &"x".repeat(10)) };
    for id in 1..=30 {
        engine.admit(ask(id)).unwrap();
    }
    drain(&mut engine, &mut outcomes, 5000);
    for id in 1..=30 {
        assert_eq!(outcomes[&id].texts, alone(ask(id)).texts);
    }
    let compacted = engine.model().compacted;
    assert!((1..=30).contains(&compacted), "{compacted}");
}

#[test]
fn a_form_holds_and_ends_the_answer() {
    let schema = r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}"#;
    for seed in 0..20 {
        let mut engine = engine(roomy());
        let mut asked = request(seed, 1, "json please");
        asked.form = Form::JsonSchema(schema.into());
        asked.max_tokens = Some(40);
        let outcome = run(&mut engine, asked);
        let text = &outcome.texts[&0];
        assert!(text.starts_with("{\"a\":") && text.ends_with('}'), "{text}");
        assert_eq!(outcome.ended, [0]);
    }
}

#[test]
fn logprobs_come_with_each_token_and_none_of_a_stop_text() {
    let mut engine = engine(roomy());
    let ask = |id| Generate { max_tokens: Some(30), ..request(id, 1, "hello") };
    let whole = |id| alone(ask(id)).texts.remove(&0).unwrap_or_default();
    let id = (1..100).find(|id| whole(*id).chars().count() >= 8).unwrap();
    let whole = whole(id);
    let stop: String = whole.chars().skip(3).take(2).collect();
    let asked = Generate { logprobs: Some(2), stop: vec![stop.clone()], ..ask(id) };
    engine.admit(asked).unwrap();
    let (mut text, mut bytes, mut reason) = (String::new(), Vec::new(), None);
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    for event in events {
        match event {
            Event::Token { text: piece, logprobs, .. } => {
                text.push_str(&piece);
                for entry in logprobs {
                    assert_eq!(entry.top.len(), 2);
                    assert!(
                        entry.top[0].logprob >= entry.top[1].logprob && entry.token.logprob <= entry.top[0].logprob
                    );
                    bytes.extend(entry.token.bytes);
                }
            }
            Event::Ended { reason: ended, .. } => reason = Some(ended),
            _ => {}
        }
    }
    assert_eq!(text, whole.split(&stop).next().unwrap());
    assert_eq!(reason, Some(FinishReason::Stop));
    assert!(text.as_bytes().starts_with(&bytes), "{bytes:?} {text}");
}

/// Something that happens to the engine.
#[derive(Debug, Clone)]
enum Act {
    Ask(Generate),
    Cancel(u64),
    Forget(u8),
    Steps(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let ask = (1_u8..4, "[ab]{1,40}", 1_u16..4, prop::option::of(1_u32..20), 0_u8..3).prop_map(
        |(tenant, prompt, choices, max_tokens, kind)| {
            let mut ask = request(0, tenant, &prompt);
            let room = CONTEXT - prompt.len() as u32;
            (ask.choices, ask.max_tokens) = (choices, max_tokens.map(|tokens| tokens.min(room)));
            ask.sampling.temperature = if kind == 0 { 0.0 } else { 1.0 };
            if kind == 2 {
                ask.stop = vec!["ab".into(), "é".into()];
            }
            Act::Ask(ask)
        },
    );
    let act = prop_oneof![
        4 => ask,
        1 => (1_u64..30).prop_map(Act::Cancel),
        1 => (1_u8..4).prop_map(Act::Forget),
        3 => (1_u8..12).prop_map(Act::Steps),
    ];
    prop::collection::vec(act, 1..30)
}

fn capacities() -> impl Strategy<Value = Capacity> {
    let sizes = (0_u32..200, 1_u16..6, 0_u16..6, 0_u32..20, any::<bool>(), 0_u64..200);
    sizes.prop_map(|(extra, running, kept, step, shares, patience)| Capacity {
        cells: CONTEXT + extra,
        running,
        slots: running + 1 + kept,
        step: step + u32::from(running),
        waiting: 12,
        shares,
        patience,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever happens, in whatever room: each admitted request ends exactly once, with the answer that it would have
    /// alone; nothing is computed beyond the room there is; in the end all of it is free again.
    #[test]
    fn answers_do_not_depend_on_company(acts in acts(), capacity in capacities()) {
        let mut engine = engine(capacity);
        let (mut outcomes, mut asked, mut cancelled) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (number, act) in acts.into_iter().enumerate() {
            let mut events = Vec::new();
            match act {
                Act::Ask(ask) => {
                    let id = number as u64;
                    let ask = Generate { id, ..ask };
                    match engine.admit(ask.clone()) {
                        Ok(tokens) => {
                            prop_assert_eq!(Prompt::text_bytes(&ask.prompt), tokens as usize);
                            asked.insert(id, ask);
                        }
                        Err(refused) => prop_assert_eq!(refused.code, Failure::QueueFull),
                    }
                }
                Act::Cancel(id) => {
                    engine.cancel(id, &mut events);
                    if !events.is_empty() {
                        cancelled.push(id);
                    }
                }
                Act::Forget(tenant) => engine.forget(Tenant([tenant; 32])),
                Act::Steps(count) => (0..count).for_each(|_| engine.step(&mut events)),
            }
            collect(&mut outcomes, events);
        }
        drain(&mut engine, &mut outcomes, 20_000);
        for (id, ask) in asked {
            let outcome = &outcomes[&id];
            if cancelled.contains(&id) {
                let failed = matches!(outcome.last, Some(Event::Failed { code: Failure::Cancelled, .. }));
                prop_assert!(failed);
                continue;
            }
            let expected = alone(ask);
            prop_assert_eq!(&outcome.texts, &expected.texts);
            let mut ended = outcome.ended.clone();
            ended.sort_unstable();
            prop_assert_eq!(ended, expected.ended);
            match (&outcome.last, &expected.last) {
                (Some(Event::Done { completion_tokens: found, .. }), Some(Event::Done { completion_tokens, .. })) => {
                    prop_assert_eq!(found, completion_tokens);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        for tenant in 1..4 {
            engine.forget(Tenant([tenant; 32]));
        }
        prop_assert!(engine.scheduler().cells().is_empty());
        prop_assert_eq!(engine.scheduler().cells().free(), capacity.cells as usize);
    }
}
