// SPDX-License-Identifier: Apache-2.0
//! A question through the attested client, and its receipt.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::process::{self, Background};

use super::guest::Guest;
use super::programs::Programs;
use super::recorder::Recorder;
use super::report::Report;
use super::scene::Scene;

/// The local proxy with its one conversation.
pub(crate) struct Conversation {
    _proxy: Background,
    address: String,
    wire: Recorder,
}

impl Conversation {
    /// Where the local OpenAI endpoint listens.
    pub(crate) fn proxy_address(&self) -> &str {
        &self.address
    }

    /// What clients and the guest said to each other, as the host sees it.
    pub(crate) fn wire(&self) -> Vec<Vec<u8>> {
        self.wire.taken()
    }
}

/// Starts the proxy (which verifies the guest), asks, prints the answer as it comes, verifies the receipt.
pub(crate) fn ask(
    programs: &Programs,
    scene: &Scene,
    guest: &Guest,
    question: &str,
    report: &mut Report,
) -> anyhow::Result<Conversation> {
    let conversation = begin(programs, scene, guest, report)?;
    stream(&conversation, scene, question, report)?;
    verify_receipt(programs, scene, report)?;
    Ok(conversation)
}

/// Starts the proxy, which verifies the guest.
pub(crate) fn begin(
    programs: &Programs,
    scene: &Scene,
    guest: &Guest,
    report: &mut Report,
) -> anyhow::Result<Conversation> {
    let start = Instant::now();
    let wire = Recorder::start(guest.address().parse().context("the guest's address")?)?;
    let log = scene.directory().join("proxy.log");
    let started = start_proxy(programs, scene, &wire.address().to_string(), &receipts(scene), &log)?;
    let StartedProxy { process: proxy, address, verdict } = started;
    show_registers(&verdict, report)?;
    report.part("attestation of the connection", start.elapsed().as_secs_f64());
    Ok(Conversation { _proxy: proxy, address, wire })
}

/// Where the proxy keeps receipts.
fn receipts(scene: &Scene) -> PathBuf {
    scene.directory().join("receipts")
}

/// An attested proxy whose first connection was accepted.
pub(crate) struct StartedProxy {
    pub(crate) process: Background,
    /// Where its OpenAI endpoint listens.
    pub(crate) address: String,
    /// What it printed about the guest.
    pub(crate) verdict: Value,
}

/// Starts a proxy to a guest at `upstream`, which it verifies first.
pub(crate) fn start_proxy(
    programs: &Programs,
    scene: &Scene,
    upstream: &str,
    receipts: &Path,
    log: &Path,
) -> anyhow::Result<StartedProxy> {
    let mut command = programs.command("attested-proxy-sim");
    command
        .arg("--sim-root")
        .arg(scene.root_certificate())
        .arg("--upstream")
        .arg(format!("https://{upstream}"))
        .arg("--policy")
        .arg(scene.client_policy())
        .args(["--listen", "127.0.0.1:0", "--json"])
        .arg("--receipts")
        .arg(receipts);
    let mut process = Background::start("attested-proxy", &mut command, log)?;
    let verdict = process.line(Duration::from_secs(60))?;
    let verdict = verdict.with_context(|| format!("attested-proxy refused the guest: see {}", log.display()))?;
    let verdict: Value = serde_json::from_str(&verdict).context("attested-proxy: its first line is no JSON")?;
    let address = verdict.get("listening").and_then(Value::as_str).context("attested-proxy: no address")?.to_owned();
    Ok(StartedProxy { process, address, verdict })
}

/// Tells the guest to finish: it closes the connection that waits for a next request, and the proxy opens another one.
pub(crate) fn finish(guest: &Guest, conversation: &Conversation, report: &mut Report) -> anyhow::Result<()> {
    report.title("the guest is told to finish (hardware simulated)");
    let start = Instant::now();
    guest.drain().context("telling the guest to finish")?;
    let mut curl = process::command("curl");
    curl.args(["-sS", "--fail-with-body", "--max-time", "60"]);
    process::json("curl", curl.arg(format!("http://{}/v1/models", conversation.address)))?;
    report.part("finishing at the host's word", start.elapsed().as_secs_f64());
    report.line("✓ it says that it does; the next request goes over another connection, without a failure");
    Ok(())
}

fn show_registers(verdict: &Value, report: &mut Report) -> anyhow::Result<()> {
    report.title("registers, expected and quoted (hardware simulated)");
    let registers =
        verdict.pointer("/verdict/registers").and_then(Value::as_array).context("no registers in the verdict")?;
    anyhow::ensure!(!registers.is_empty(), "the verdict names no register");
    for register in registers {
        let text = |name: &str| register.get(name).and_then(Value::as_str).unwrap_or_default();
        let matches = register.get("matches").and_then(Value::as_bool) == Some(true);
        let tick = if matches { "✓" } else { "✗" };
        let short = |value: &str| value.chars().take(24).collect::<String>();
        report.line(&format!(
            "{tick} {:<16} expected {}…  quoted {}…",
            text("name"),
            short(&expected_of(register)),
            short(text("quoted"))
        ));
        anyhow::ensure!(matches, "register {} differs", text("name"));
        report.registers.push(register.clone());
    }
    Ok(())
}

/// The expected values of a register: several are allowed where generations of firmware or QEMU differ.
fn expected_of(register: &Value) -> String {
    let values = register.get("expected").and_then(Value::as_array).cloned().unwrap_or_default();
    values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
}

fn stream(conversation: &Conversation, scene: &Scene, question: &str, report: &mut Report) -> anyhow::Result<()> {
    report.title("question and answer (hardware simulated)");
    report.line(&format!("question: {question}"));
    let body = json!({
        "model": scene.model_name(),
        "stream": true,
        "temperature": 0,
        "max_tokens": 16,
        "messages": [{ "role": "user", "content": question }],
    });
    let start = Instant::now();
    let mut curl = process::command("curl");
    curl.args(["-sSN", "--fail-with-body", "--max-time", "180", "-H", "content-type: application/json", "-d"])
        .arg(body.to_string())
        .arg(format!("http://{}/v1/chat/completions", conversation.address))
        .stderr(Stdio::inherit());
    let mut curl = Background::start("curl", &mut curl, &scene.directory().join("curl.log"))?;
    let mut answer = String::new();
    let mut first_token = None;
    eprint!("   answer:   ");
    while let Some(line) = curl.line(Duration::from_secs(180))? {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            continue;
        }
        let chunk: Value = serde_json::from_str(data).context("a stream event is no JSON")?;
        if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str)
            && !text.is_empty()
        {
            first_token.get_or_insert_with(|| start.elapsed());
            eprint!("{text}");
            answer.push_str(text);
        }
    }
    eprintln!();
    let status = curl.finish(Duration::from_secs(10))?;
    anyhow::ensure!(status.success() && !answer.is_empty(), "the question was not answered ({status})");
    let first = first_token.context("no token")?;
    report.part("prefill (first token)", first.as_secs_f64());
    report.part("decode", (start.elapsed().saturating_sub(first)).as_secs_f64());
    report.answer = Some(answer);
    Ok(())
}

/// Verifies the newest receipt, as anybody can later.
pub(crate) fn verify_receipt(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    report.title("receipt (hardware simulated)");
    let verified = verified_receipt(programs, scene, &receipts(scene))?;
    let receipt = verified.get("receipt").cloned().context("verify-receipt shows no receipt")?;
    for name in ["sequence", "prompt_tokens", "completion_tokens"] {
        report.line(&format!("{name:<18} {}", receipt.get(name).unwrap_or(&Value::Null)));
    }
    report.line("✓ signed by the instance key that the evidence binds");
    report.receipt = Some(verified);
    Ok(())
}

/// The newest receipt of a directory, which must be good: what `verify-receipt` says of it.
pub(crate) fn verified_receipt(programs: &Programs, scene: &Scene, receipts: &Path) -> anyhow::Result<Value> {
    let path = newest_file(receipts)?;
    let mut command = programs.command("attested-proxy-sim");
    command.arg("--sim-root").arg(scene.root_certificate()).arg("verify-receipt").arg(&path).arg("--json");
    command.arg("--policy").arg(scene.client_policy());
    let verified = process::json("verify-receipt", &mut command)?;
    for (name, expected) in [("signature", "valid"), ("evidence", "matched"), ("guest", "accepted")] {
        let found = verified.get(name).and_then(Value::as_str).unwrap_or_default();
        anyhow::ensure!(found == expected, "the receipt's {name} is {found}, not {expected}");
    }
    Ok(verified)
}

fn newest_file(directory: &Path) -> anyhow::Result<PathBuf> {
    // The proxy stores the receipt after the stream has ended.
    let start = Instant::now();
    loop {
        process::check_interrupt()?;
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let is_receipt = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("receipt-") && name.ends_with(".json")
        };
        let newest = entries.filter(is_receipt).max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
        if let Some(entry) = newest {
            return Ok(entry.path());
        }
        anyhow::ensure!(start.elapsed() < Duration::from_secs(10), "no receipt was stored");
        std::thread::sleep(Duration::from_millis(50));
    }
}
