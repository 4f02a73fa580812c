// SPDX-License-Identifier: Apache-2.0
//! What the demo shows, to people on standard error as it happens, to programs as one document at the end.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::process;

/// The document under construction.
pub(crate) struct Report {
    json: bool,
    started: Instant,
    /// Steps before the first boot, with their seconds.
    steps: Vec<Value>,
    /// Parts of the measured run: name and seconds.
    parts: Vec<(String, f64)>,
    pub(crate) phases: Vec<Value>,
    pub(crate) registers: Vec<Value>,
    pub(crate) refusals: Vec<Value>,
    pub(crate) answer: Option<String>,
    /// How alike the vectors of texts are.
    pub(crate) vectors: Option<Value>,
    pub(crate) receipt: Option<Value>,
    pub(crate) decision: Option<Value>,
    pub(crate) image: Option<Value>,
    /// What was searched for what clients and guest said.
    pub(crate) canary: Option<Value>,
    /// What became of each official client.
    pub(crate) clients: Vec<Value>,
    /// Resident memory of all processes of the guest, the model in it.
    pub(crate) memory_kib: Option<u64>,
    /// Size of the model's weights.
    pub(crate) model_kib: u64,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            started: Instant::now(),
            steps: Vec::new(),
            parts: Vec::new(),
            phases: Vec::new(),
            registers: Vec::new(),
            refusals: Vec::new(),
            answer: None,
            vectors: None,
            receipt: None,
            decision: None,
            image: None,
            canary: None,
            clients: Vec::new(),
            memory_kib: None,
            model_kib: 0,
        }
    }

    /// Runs one step of the preparation and shows how long it took.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        what: &str,
        run: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        process::check_interrupt()?;
        eprintln!("{name}: {what} …");
        let start = Instant::now();
        let value = run().with_context(|| format!("step {name}"))?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name}: done in {seconds:.1} s");
        self.steps.push(json!({ "name": name, "milliseconds": milliseconds(seconds) }));
        Ok(value)
    }

    /// A headline.
    pub(crate) fn title(&self, text: &str) {
        eprintln!("\n── {text}");
    }

    /// A line of a part's result.
    pub(crate) fn line(&self, text: &str) {
        eprintln!("   {text}");
    }

    /// Notes how long a part of the measured run took.
    pub(crate) fn part(&mut self, name: &str, seconds: f64) {
        self.parts.push((name.to_owned(), seconds));
    }

    /// Prints the parts and the document.
    pub(crate) fn finish(&self, measured: Duration) -> anyhow::Result<()> {
        let sum: f64 = self.parts.iter().map(|(_, seconds)| seconds).sum();
        self.title("times of the measured run");
        for (name, seconds) in &self.parts {
            self.line(&format!("{name:<32} {seconds:>7.1} s"));
        }
        let total = measured.as_secs_f64();
        self.line(&format!("{:<32} {sum:>7.1} s", "sum of the parts"));
        self.line(&format!("{:<32} {total:>7.1} s  ({:.2} × the parts)", "whole run", total / sum.max(0.001)));
        self.line(&format!("{:<32} {:>7.1} s", "with preparation", self.started.elapsed().as_secs_f64()));
        if self.json {
            println!("{}", self.document(total, sum));
        }
        Ok(())
    }

    fn document(&self, total: f64, sum: f64) -> Value {
        let parts: Vec<_> =
            self.parts.iter().map(|(name, s)| json!({ "name": name, "milliseconds": milliseconds(*s) })).collect();
        json!({
            "hardware": "simulated",
            "answer": self.answer,
            "refusals": self.refusals,
            "registers": self.registers,
            "phases": self.phases,
            "vectors": self.vectors,
            "receipt": self.receipt,
            "decision": self.decision,
            "image": self.image,
            "canary": self.canary,
            "clients": self.clients,
            "guest_memory_kib": self.memory_kib,
            "guest_overhead_kib": self.memory_kib.map(|kib| kib.saturating_sub(self.model_kib)),
            "steps": self.steps,
            "parts": parts,
            "milliseconds": milliseconds(total),
            "parts_milliseconds": milliseconds(sum),
        })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "durations here are far below 2^63 ms")]
pub(crate) fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}
