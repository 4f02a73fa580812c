// SPDX-License-Identifier: Apache-2.0
//! Clients: attested proxies to the guests' fronts, and requests through them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::rig::Rig;
use crate::demo::chat::{self, StartedProxy};
use crate::process::{self, Background};

/// A proxy that accepted a guest.
pub(super) struct Proxy {
    _process: Background,
    pub(super) endpoint: Endpoint,
}

/// Where a proxy listens.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    address: String,
    model: String,
}

impl Proxy {
    /// Starts one, which verifies the guest first. Its files are in `directory`.
    pub(super) fn start(rig: &Rig<'_>, guest: &str, directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).context("a proxy's directory")?;
        let (upstream, log) = (rig.address(guest), directory.join("proxy.log"));
        let receipts = directory.join("receipts");
        let started = chat::start_proxy(rig.programs, rig.scene, &upstream, &receipts, &log);
        let StartedProxy { process, address, .. } = started.with_context(|| format!("guest {guest}"))?;
        let endpoint = Endpoint { address, model: rig.scene.model_name().to_owned() };
        Ok(Self { _process: process, endpoint })
    }
}

impl Endpoint {
    /// Asks for an answer of some tokens.
    pub(super) fn ask(&self) -> Result<(), String> {
        let body = json!({
            "model": self.model,
            "temperature": 0,
            "max_tokens": 3,
            "messages": [{ "role": "user", "content": "Hello" }],
        });
        let mut curl = process::command("curl");
        curl.args(["-sS", "--max-time", &PATIENCE.as_secs().to_string(), "-H", "content-type: application/json", "-d"])
            .arg(body.to_string())
            .arg(format!("http://{}/v1/chat/completions", self.address));
        let (text, status) = process::output("request", &mut curl).map_err(|error| format!("{error:#}"))?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        let content = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
        match content {
            Some(content) if status.success() && !content.is_empty() => Ok(()),
            _ => Err(format!("{status}: {}", text.chars().take(300).collect::<String>())),
        }
    }

    /// The release of the guest that the newest connection goes to, as the proxy verified it.
    pub(super) fn release(&self) -> anyhow::Result<String> {
        let mut curl = process::command("curl");
        curl.args(["-sS", "--max-time", "20"]).arg(format!("http://{}/chrysalis/verdict", self.address));
        let verdict = process::json("verdict", &mut curl)?;
        verdict.get("release").and_then(Value::as_str).map(str::to_owned).context("the verdict names no release")
    }
}

/// One attested answer of a guest, with a receipt that is verified. Gives the seconds that it took.
pub(super) fn verified_answer(rig: &Rig<'_>, guest: &str) -> anyhow::Result<f64> {
    let (start, directory) = (Instant::now(), rig.scene.directory().join(format!("client-{guest}")));
    let proxy = Proxy::start(rig, guest, &directory)?;
    proxy.endpoint.ask().map_err(|error| anyhow::anyhow!("guest {guest} did not answer: {error}"))?;
    chat::verified_receipt(rig.programs, rig.scene, &directory.join("receipts"))?;
    drop(proxy);
    std::fs::remove_dir_all(&directory).context("a proxy's directory")?;
    Ok(start.elapsed().as_secs_f64())
}

const PATIENCE: Duration = Duration::from_secs(240);
