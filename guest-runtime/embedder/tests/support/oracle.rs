// SPDX-License-Identifier: Apache-2.0
//! BERT written as plainly as can be, in double precision: what the embedder's vectors are compared with.

use std::collections::BTreeMap;

pub(crate) const HIDDEN: usize = 12;
const HEADS: usize = 3;
const WIDE: usize = 20;
const LAYERS: usize = 2;
pub(crate) const POSITIONS: usize = 16;
pub(crate) const VOCABULARY: usize = 12;

/// A model of random numbers.
pub(crate) struct Oracle {
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

type Rows = Vec<Vec<f64>>;

impl Oracle {
    pub(crate) fn random(mut seed: u64) -> Self {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], middle: f32| {
            let mut draw = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((seed >> 40) as f32 / (1 << 24) as f32 - 0.5) + middle
            };
            tensors.insert(name, (shape.to_vec(), (0..shape.iter().product()).map(|_| draw()).collect()));
        };
        add("embeddings.word_embeddings.weight".into(), &[VOCABULARY, HIDDEN], 0.0);
        add("embeddings.position_embeddings.weight".into(), &[POSITIONS, HIDDEN], 0.0);
        add("embeddings.token_type_embeddings.weight".into(), &[2, HIDDEN], 0.0);
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..LAYERS {
            let at = |part: &str| format!("encoder.layer.{layer}.{part}");
            for (part, inputs, outputs) in [
                ("attention.self.query", HIDDEN, HIDDEN),
                ("attention.self.key", HIDDEN, HIDDEN),
                ("attention.self.value", HIDDEN, HIDDEN),
                ("attention.output.dense", HIDDEN, HIDDEN),
                ("intermediate.dense", HIDDEN, WIDE),
                ("output.dense", WIDE, HIDDEN),
            ] {
                add(format!("{}.weight", at(part)), &[outputs, inputs], 0.0);
                add(format!("{}.bias", at(part)), &[outputs], 0.0);
            }
            norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[HIDDEN], 1.0);
            add(format!("{norm}.bias"), &[HIDDEN], 0.0);
        }
        Self { tensors }
    }

    pub(crate) fn config(&self) -> String {
        format!(
            r#"{{"model_type":"bert","hidden_act":"gelu","hidden_size":{HIDDEN},"num_hidden_layers":{LAYERS},
            "num_attention_heads":{HEADS},"intermediate_size":{WIDE},"max_position_embeddings":{POSITIONS},
            "type_vocab_size":2,"vocab_size":{VOCABULARY},"layer_norm_eps":1e-12}}"#
        )
    }

    /// The vector of a text's tokens, with those at its ends: the mean, or the first.
    pub(crate) fn vector(&self, tokens: &[u32], first: bool) -> Vec<f64> {
        let row = |name: &str, row: usize| self.row(&format!("embeddings.{name}.weight"), row, HIDDEN);
        let mut states: Rows = tokens
            .iter()
            .enumerate()
            .map(|(place, token)| {
                let sum = add(&row("word_embeddings", *token as usize), &row("position_embeddings", place));
                self.norm("embeddings.LayerNorm", &add(&sum, &row("token_type_embeddings", 0)))
            })
            .collect();
        for layer in 0..LAYERS {
            states = self.layer(&format!("encoder.layer.{layer}"), &states);
        }
        let chosen = if first { &states[..1] } else { &states[..] };
        let mut sum = vec![0.0; HIDDEN];
        chosen.iter().for_each(|state| sum = add(&sum, state));
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        sum.iter().map(|value| value / length).collect()
    }

    fn layer(&self, at: &str, states: &Rows) -> Rows {
        let of = |part: &str| -> Rows { states.iter().map(|s| self.linear(&format!("{at}.{part}"), s)).collect() };
        let (query, key, value) = (of("attention.self.query"), of("attention.self.key"), of("attention.self.value"));
        let width = HIDDEN / HEADS;
        states
            .iter()
            .enumerate()
            .map(|(place, state)| {
                let mut joined = vec![0.0; HIDDEN];
                for head in 0..HEADS {
                    let part = head * width..(head + 1) * width;
                    let scores: Vec<f64> = key
                        .iter()
                        .map(|key| part.clone().map(|i| query[place][i] * key[i]).sum::<f64>() / (width as f64).sqrt())
                        .collect();
                    let total: f64 = scores.iter().map(|score| score.exp()).sum();
                    for (other, score) in scores.iter().enumerate() {
                        part.clone().for_each(|i| joined[i] += score.exp() / total * value[other][i]);
                    }
                }
                let joined = self.linear(&format!("{at}.attention.output.dense"), &joined);
                let attended = self.norm(&format!("{at}.attention.output.LayerNorm"), &add(&joined, state));
                let wide = self.linear(&format!("{at}.intermediate.dense"), &attended);
                let wide: Vec<f64> = wide.iter().map(|x| x * 0.5 * (1.0 + erf(x / 2_f64.sqrt()))).collect();
                let narrow = self.linear(&format!("{at}.output.dense"), &wide);
                self.norm(&format!("{at}.output.LayerNorm"), &add(&narrow, &attended))
            })
            .collect()
    }

    fn linear(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let bias = &self.tensors[&format!("{name}.bias")].1;
        let output = |(index, bias): (usize, &f32)| {
            let weights = self.row(&format!("{name}.weight"), index, input.len());
            f64::from(*bias) + weights.iter().zip(input).map(|(weight, value)| weight * value).sum::<f64>()
        };
        bias.iter().enumerate().map(output).collect()
    }

    fn norm(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let mean = input.iter().sum::<f64>() / input.len() as f64;
        let variance = input.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / input.len() as f64;
        let (weight, bias) =
            (self.row(&format!("{name}.weight"), 0, HIDDEN), self.row(&format!("{name}.bias"), 0, HIDDEN));
        let scale = (variance + 1e-12).sqrt();
        (0..input.len()).map(|i| (input[i] - mean) / scale * weight[i] + bias[i]).collect()
    }

    fn row(&self, name: &str, row: usize, width: usize) -> Vec<f64> {
        self.tensors[name].1[row * width..(row + 1) * width].iter().map(|value| f64::from(*value)).collect()
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// By its series (Abramowitz and Stegun 7.1.5); the arguments here are small.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
