// SPDX-License-Identifier: Apache-2.0
//! A tiny random model with an oracle, and requests to a loaded one.
#![allow(dead_code, reason = "each test binary uses its part")]

mod oracle;

use embedder::Embedder;
use engine_process::Worker as _;
use engine_protocol::{Command, Embed, Event, Failure, Input};
use std::{collections::HashMap, path::Path};

#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use oracle::Oracle;

/// Asks for vectors of `inputs`, and works until all is answered.
pub(crate) fn embed(model: &mut Embedder, inputs: &[Input]) -> Result<(Vec<Vec<f32>>, u32), Failure> {
    let mut events = Vec::new();
    model.obey(Command::Embed(Embed { id: 1, inputs: inputs.to_vec() }), &mut events);
    while !model.is_idle() {
        model.step(&mut events);
    }
    let (mut vectors, mut started) = (Vec::new(), None);
    for event in events {
        match event {
            Event::Started { id: 1, prompt_tokens } => started = Some(prompt_tokens),
            Event::Vector { id: 1, index, values } => {
                assert_eq!(index as usize, vectors.len());
                vectors.push(values);
            }
            Event::Done { id: 1, prompt_tokens, cached_tokens: 0, completion_tokens: 0 } => {
                assert_eq!(Some(prompt_tokens), started);
                return Ok((vectors, prompt_tokens));
            }
            Event::Failed { id: 1, code, .. } => return Err(code),
            other => panic!("out of place: {other:?}"),
        }
    }
    panic!("no end");
}

/// Writes the oracle's model as files. Gives the tensors' names and shapes.
pub(crate) fn write(oracle: &Oracle, directory: &Path) {
    let tensors: HashMap<String, candle_core::Tensor> = oracle
        .tensors
        .iter()
        .map(|(name, (shape, values))| {
            let tensor = candle_core::Tensor::from_slice(values, shape.as_slice(), &candle_core::Device::Cpu);
            (name.clone(), tensor.unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    std::fs::write(directory.join("config.json"), oracle.config()).unwrap();
    std::fs::write(directory.join("tokenizer.json"), TOKENIZER).unwrap();
}

/// Words a to d, `##x`, and what BERT has beside.
pub(crate) const TOKENIZER: &str = r###"{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":1,"content":"[UNK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":2,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":3,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},
"pre_tokenizer":{"type":"BertPreTokenizer"},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],
"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
"special_tokens":{"[CLS]":{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}},
"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},
"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"b":5,"c":6,"d":7,"##x":8,"[":9,"]":10,"sep":11}}}"###;
