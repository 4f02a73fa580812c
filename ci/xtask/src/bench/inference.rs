// SPDX-License-Identifier: Apache-2.0
//! The figures of inference: the engine against llama.cpp called plainly, as images compile both, and what
//! attestation, encryption and TLS add.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::plot::{Chart, places};
use super::{Figure, Outcome};
use crate::guest_programs::Compiled;
use crate::{guest_programs, process, programs};

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Programs of the channel as they are built for tests, few rounds. Shows that it runs; its figures are none.
    pub(super) quick: bool,
    /// Build and stop.
    pub(super) prepare: bool,
    /// Plots go to docs/img, too.
    pub(super) publish: bool,
}

pub(super) fn run(manner: Manner) -> anyhow::Result<Outcome> {
    let compiled = Compiled::for_this_processor();
    let suffix = if compiled == Compiled::Cpu { "" } else { ": this processor lacks AVX-512" };
    eprintln!("compiled {}{suffix}", compiled.as_str());
    let programs = Programs::build(compiled, manner.quick)?;
    let mut details =
        Map::from_iter([("compiled".to_owned(), compiled.as_str().into()), ("quick".to_owned(), manner.quick.into())]);
    if manner.prepare {
        return Ok(Outcome { figures: Vec::new(), details });
    }
    let speed = process::json_with_progress("speed", &mut programs.speed(manner.quick))?;
    let channel = process::json_with_progress("inference-bench", &mut programs.channel(manner.quick))?;
    let mut figures = speed_figures(&speed)?;
    figures.extend(channel_figures(&channel)?);
    plots(&speed, compiled, manner.publish)?;
    details.extend([("speed".to_owned(), speed), ("channel".to_owned(), channel)]);
    Ok(Outcome { figures, details })
}

struct Programs {
    /// Where the engine's programs stand.
    engine: PathBuf,
    /// Where the others stand.
    native: PathBuf,
    model: PathBuf,
}

impl Programs {
    fn build(compiled: Compiled, quick: bool) -> anyhow::Result<Self> {
        let engine = guest_programs::engine(compiled, &["--bin", "engine", "--example", "speed"])?;
        let model = guest_programs::model()?;
        let names = ["inference-bench", "serve"];
        let native = if quick { programs::build(&names)? } else { programs::release(&names)? };
        Ok(Self { engine, native, model })
    }

    fn speed(&self, quick: bool) -> std::process::Command {
        let mut command = process::command(self.engine.join("examples/speed"));
        command.arg("--model").arg(&self.model).args(["--threads", THREADS]);
        command.args(quick.then_some("--quick"));
        command
    }

    fn channel(&self, quick: bool) -> std::process::Command {
        let mut command = process::command(self.native.join("inference-bench"));
        command.arg("measure").arg("--engine").arg(self.engine.join("engine"));
        command.arg("--serve").arg(self.native.join("serve")).arg("--model").arg(&self.model);
        command.args(["--threads", THREADS]).args(quick.then_some("--quick"));
        command
    }
}

fn speed_figures(speed: &Value) -> anyhow::Result<Vec<Figure>> {
    let against = |name: &str, part: &str, least: f64| -> anyhow::Result<Figure> {
        let (ours, peer) = (number(speed, &format!("/{part}/ours"))?, number(speed, &format!("/{part}/peer"))?);
        let ratio = number(speed, &format!("/{part}/ratio"))?;
        Ok(Figure::peer(name, ours, "t/s", &format!("llama.cpp's {peer:.1} t/s"), 1.0 / ratio, 1.0 / least))
    };
    let prefix = |field: &str| number(speed, &format!("/prefix/{field}"));
    let (shared, fresh) = (prefix("shared_ms")?, prefix("fresh_ms")?);
    let (whole, ours, peer) =
        (number(speed, "/prefill/whole")?, number(speed, "/prefill/ours")?, number(speed, "/prefill/peer")?);
    let of_peer = format!("llama.cpp's {peer:.1} t/s");
    let (empty, beside) = (number(speed, "/kept/empty")?, number(speed, "/kept/beside")?);
    let compacting = 100.0 * number(speed, "/compaction/share")?;
    Ok(vec![
        against("one answer, after its first token", "decode", 0.97)?,
        Figure::peer("a prompt of 1,024 tokens, 512 rows", whole, "t/s", &of_peer, peer / whole, 1.0 / 0.97),
        Figure::compared("the same, 63 rows (without a setting)", ours, "t/s", &of_peer, peer / ours),
        against("8 answers of one length", "streams", 1.1)?,
        against("8 answers, drawn at temperature 1", "drawn", 1.0)?,
        against("24 answers, 8 at once, 16 to 128 tokens", "uneven", 1.1)?,
        Figure::peer(
            "first token behind 200 shared tokens",
            shared,
            "ms",
            &format!("not shared: {fresh:.1} ms"),
            shared / fresh,
            0.3,
        ),
        Figure::compared(
            "one answer beside what is kept for others at most",
            beside,
            "t/s",
            &format!("in an empty cache: {empty:.1} t/s"),
            empty / beside,
        ),
        Figure::plain("compacting a cache half as large as wanted", compacting, "%"),
    ])
}

fn channel_figures(channel: &Value) -> anyhow::Result<Vec<Figure>> {
    let at = |path: &str| number(channel, path);
    let (attested, plain) = (at("/first_token/attested_ms")?, at("/first_token/plain_ms")?);
    let mut figures = vec![Figure::limit("attested: more to the first token", attested - plain, "ms", 1.5)];
    for (row, name) in [(0, "attested: one answer at a time"), (1, "attested: 8 answers at once")] {
        let (attested, plain) = (at(&format!("/throughput/{row}/attested"))?, at(&format!("/throughput/{row}/plain"))?);
        let against = format!("plain HTTP: {plain:.1} t/s");
        let ratio = at(&format!("/throughput/{row}/ratio"))?;
        figures.push(Figure::peer(name, attested, "t/s", &against, 1.0 / ratio, 1.0 / 0.98));
    }
    figures.push(Figure::limit("500 challenges at once: 99 % proven within", at("/challenges/p99_ms")?, "ms", 150.0));
    figures.push(Figure::plain("one challenge", at("/challenges/alone_ms")?, "ms"));
    let handshakes = at("/challenges/connections")? / at("/challenges/handshakes_s")?;
    figures.push(Figure::plain("handshakes, each with its first proof", handshakes, "/s"));
    for (row, cores, least) in [(0, "one core", 2.0), (1, "two cores", 3.5)] {
        let rate = |field: &str| at(&format!("/weights/cores/{row}/{field}_gb_s"));
        let name = format!("weights decrypted and verified, {cores}");
        let (read, alone) = (rate("read")?, rate("alone")?);
        figures.push(Figure::least(&name, read, "GB/s", least));
        let ciphers = format!("AES-GCM and BLAKE3 alone: {alone:.2} GB/s");
        figures.push(Figure::compared(&format!("the same, {cores}, as a share"), read, "GB/s", &ciphers, alone / read));
        figures.push(Figure::plain(&format!("the same, written to memory, {cores}"), rate("unpack")?, "GB/s"));
    }
    let memory = |moment: &str, fields: [&str; 2]| -> anyhow::Result<f64> {
        let [serve, attester] = fields.map(|field| at(&format!("/memory/{moment}/{field}")));
        Ok((serve? + attester?) / 1e6)
    };
    figures.push(Figure::plain("serve and attester at the start", memory("start", ["serve", "attester"])?, "MB"));
    let most = memory("end", ["serve_most", "attester_most"])?;
    figures.push(Figure::limit("serve and attester at most", most, "MB", 60.0));
    Ok(figures)
}

/// Writes the plots to target/bench, and to docs/img where they are to be published.
fn plots(speed: &Value, compiled: Compiled, publish: bool) -> anyhow::Result<()> {
    let places = places(publish)?;
    let machine = format!("SmolLM2-135M Q4_1, {THREADS} threads, compiled {}", compiled.as_str());
    let streams = column(speed, "concurrency", "streams")?;
    let contexts = column(speed, "context", "tokens")?;
    let charts = [
        (
            "inference-concurrency.svg",
            "Tokens a second of all answers together",
            "answers at once",
            streams,
            "concurrency",
            ["ours", "peer"],
        ),
        (
            "inference-prefill.svg",
            "Reading a prompt",
            "tokens of the prompt",
            contexts.clone(),
            "context",
            ["prefill_ours", "prefill_peer"],
        ),
        (
            "inference-decode.svg",
            "One answer behind a prompt",
            "tokens of the prompt",
            contexts,
            "context",
            ["decode_ours", "decode_peer"],
        ),
    ];
    for (file, title, x_label, x, part, [ours, peer]) in charts {
        let lines = vec![("engine", column(speed, part, ours)?), ("llama.cpp", column(speed, part, peer)?)];
        let chart = Chart { title: &format!("{title} ({machine})"), x_label, y_label: "tokens/s", x, lines };
        chart.save(file, &places)?;
    }
    Ok(())
}

fn column(document: &Value, part: &str, field: &str) -> anyhow::Result<Vec<f64>> {
    let rows = document.get(part).and_then(Value::as_array).with_context(|| format!("no {part}"))?;
    rows.iter().map(|row| number(row, &format!("/{field}"))).collect()
}

fn number(document: &Value, path: &str) -> anyhow::Result<f64> {
    document.pointer(path).and_then(Value::as_f64).with_context(|| format!("no number at {path}"))
}

/// Threads of the engine and of llama.cpp.
const THREADS: &str = "2";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn speed() -> Value {
        json!({
            "decode": { "ours": 97.0, "peer": 100.0, "ratio": 0.97 }, "prefill": { "ours": 68.0, "peer": 100.0, "whole": 96.0 },
            "streams": { "ours": 100.0, "peer": 100.0, "ratio": 1.11 },
            "drawn": { "ours": 111.0, "peer": 100.0, "ratio": 1.11 },
            "uneven": { "ours": 111.0, "peer": 100.0, "ratio": 1.09 }, "kept": { "empty": 100.0, "beside": 80.0 },
            "prefix": { "shared_ms": 3.1, "fresh_ms": 10.0 }, "compaction": { "share": 0.05 },
            "concurrency": [{ "streams": 1, "ours": 2.0, "peer": 1.0 }],
        })
    }

    fn channel() -> Value {
        json!({
            "first_token": { "attested_ms": 5.0, "plain_ms": 3.4 },
            "throughput": [
                { "attested": 100.0, "plain": 100.0, "ratio": 0.981 },
                { "attested": 100.0, "plain": 100.0, "ratio": 0.97 },
            ],
            "challenges": { "p99_ms": 150.0, "alone_ms": 42.0, "connections": 500, "handshakes_s": 2.0 },
            "weights": { "cores": [{ "read_gb_s": 1.9, "unpack_gb_s": 1.0, "alone_gb_s": 2.0 },
                { "read_gb_s": 3.5, "unpack_gb_s": 2.0, "alone_gb_s": 4.0 }] },
            "memory": {
                "start": { "serve": 4e6, "attester": 6e6 },
                "end": { "serve_most": 40e6, "attester_most": 21e6 },
            },
        })
    }

    #[test]
    fn goals_hold_and_are_missed_where_they_should() {
        let verdicts = |figures: Vec<Figure>| figures.iter().filter_map(Figure::holds).collect::<Vec<_>>();
        assert_eq!(verdicts(speed_figures(&speed()).unwrap()), [true, false, true, true, false, false]);
        assert_eq!(verdicts(channel_figures(&channel()).unwrap()), [false, true, false, true, false, true, false]);
        let handshakes = &channel_figures(&channel()).unwrap()[5];
        assert_eq!((handshakes.value, handshakes.holds()), (250.0, None));
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        assert!(speed_figures(&json!({ "decode": { "ours": 1.0 } })).is_err());
        assert!(column(&speed(), "context", "tokens").is_err());
        assert_eq!(column(&speed(), "concurrency", "ours").unwrap(), [2.0]);
    }
}
