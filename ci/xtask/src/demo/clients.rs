// SPDX-License-Identifier: Apache-2.0
//! The official clients, unmodified, against the booted guest.

use std::time::Instant;

use serde_json::Value;

use crate::openai_clients::{Clients, Languages};

use super::chat::Conversation;
use super::report::Report;
use super::scene::Scene;

/// Has each ask through the local endpoint. What is not installed is skipped by name.
pub(crate) fn run(
    languages: Languages,
    scene: &Scene,
    conversation: &Conversation,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.title("official clients (hardware simulated)");
    let start = Instant::now();
    let base_url = format!("http://{}/v1", conversation.proxy_address());
    let clients = Clients::install(languages)?;
    report.clients = clients.ask(&base_url, scene.model_name(), &scene.directory().join("javascript"))?;
    for client in &report.clients {
        let text = |name: &str| client.get(name).and_then(Value::as_str).unwrap_or_default();
        let result = text("result");
        report.line(&format!("{} {:<12} {result}", if result == "passed" { "✓" } else { "-" }, text("name")));
    }
    report.part("official clients", start.elapsed().as_secs_f64());
    Ok(())
}
