// SPDX-License-Identifier: Apache-2.0
//! Texts become vectors in a guest with an embedding model.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::process;

use super::chat::{self, Conversation};
use super::guest::Guest;
use super::programs::Programs;
use super::report::Report;
use super::scene::Scene;

/// The first two mean nearly the same, the third something else.
const TEXTS: [&str; 3] =
    ["A cat sleeps on the sofa.", "A kitten is resting on the couch.", "Interest rates were raised in March."];

/// Asks for the vectors of three texts through the attested client, and verifies the receipt.
pub(crate) fn ask(
    programs: &Programs,
    scene: &Scene,
    guest: &Guest,
    report: &mut Report,
) -> anyhow::Result<Conversation> {
    let conversation = chat::begin(programs, scene, guest, report)?;
    report.title("texts and their vectors (hardware simulated)");
    let start = Instant::now();
    let vectors = vectors(&conversation, scene)?;
    report.part("vectors of three texts", start.elapsed().as_secs_f64());
    let [first, near, far] = vectors.as_slice() else { anyhow::bail!("{} vectors for three texts", vectors.len()) };
    for vector in &vectors {
        anyhow::ensure!((likeness(vector, vector) - 1.0).abs() < 1e-3, "a vector's length is not 1");
    }
    let (near, far) = (likeness(first, near), likeness(first, far));
    report.line(&format!("{} numbers each", first.len()));
    report.line(&format!("{:?} and {:?}: {near:.3}", TEXTS[0], TEXTS[1]));
    report.line(&format!("{:?} and {:?}: {far:.3}", TEXTS[0], TEXTS[2]));
    anyhow::ensure!(near > far, "texts that mean the same are further apart than others");
    report.vectors = Some(json!({ "dimensions": first.len(), "near": near, "far": far }));
    chat::verify_receipt(programs, scene, report)?;
    Ok(conversation)
}

fn vectors(conversation: &Conversation, scene: &Scene) -> anyhow::Result<Vec<Vec<f64>>> {
    let body = json!({ "model": scene.model_name(), "input": TEXTS, "encoding_format": "float" });
    let mut curl = process::command("curl");
    curl.args(["-sS", "--fail-with-body", "--max-time", "180", "-H", "content-type: application/json", "-d"]);
    curl.arg(body.to_string()).arg(format!("http://{}/v1/embeddings", conversation.proxy_address()));
    let answer = process::json("curl", &mut curl)?;
    let data = answer.get("data").and_then(Value::as_array).context("an answer without data")?;
    let numbers = |entry: &Value| {
        let numbers = entry.get("embedding").and_then(Value::as_array).context("an entry without a vector")?;
        numbers.iter().map(|number| number.as_f64().context("a vector of something else than numbers")).collect()
    };
    data.iter().map(numbers).collect()
}

/// The cosine of the angle between two vectors of length 1.
fn likeness(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
