// SPDX-License-Identifier: Apache-2.0
//! Bad input and attacks over real TLS connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]
#![allow(dead_code, reason = "the support has more than these tests need")]

mod bad_input;
mod crashes;
mod forged;
mod proxied;
mod sizes;
#[path = "../support/mod.rs"]
mod support;
mod tenants;

use std::{net::SocketAddr, sync::Arc};

use engine_protocol::Command;
use http::StatusCode;
use serde_json::Value;
use serve::{Limits, Options, Server, StartError, TenantsDocument};
use support::{Client, FakeAttester, FakeEngine, sockets};

/// A server with a stand-in for the engine.
struct Guest {
    address: SocketAddr,
    attester: Arc<FakeAttester>,
    engine: FakeEngine,
    _directory: tempfile::TempDir,
}

impl Guest {
    async fn start() -> Self {
        Self::start_with(Limits::default(), None).await.unwrap()
    }

    /// With the document of its model's tenants.
    async fn start_with(limits: Limits, tenants: Option<Vec<u8>>) -> Result<Self, StartError> {
        Self::start_anyhow(limits, tenants, false).await
    }

    /// Behind a proxy that says whose connections are.
    async fn start_behind_proxy(limits: Limits) -> Self {
        Self::start_anyhow(limits, None, true).await.unwrap()
    }

    async fn start_anyhow(limits: Limits, tenants: Option<Vec<u8>>, proxy_protocol: bool) -> Result<Self, StartError> {
        let (directory, attester_path, engine_path) = sockets();
        let attester = FakeAttester::start(&attester_path);
        let engine = FakeEngine::start(&engine_path);
        let listen = "127.0.0.1:0".parse().unwrap();
        let tenants = tenants.map(|document| TenantsDocument::new(document.into()));
        let options = Options { attester: attester_path, engine: engine_path, listen, proxy_protocol, limits, tenants };
        let server = Server::start(options).await?;
        let address = server.address();
        tokio::spawn(server.run());
        Ok(Self { address, attester, engine, _directory: directory })
    }

    /// How many requests the engine was asked.
    fn asked(&self) -> usize {
        let commands = self.engine.commands.lock().unwrap();
        commands.iter().filter(|command| matches!(command, Command::Generate(_))).count()
    }

    /// It answers as if nothing had been: a new connection, and one request that reaches the engine.
    async fn is_unharmed(&self) {
        let before = self.asked();
        let (mut client, _) = Client::proven(self.address).await;
        let (status, _, body) = client.chat("hi", "").await;
        assert_eq!((status, content(&body)), (StatusCode::OK, "Paris.".to_owned()));
        assert_eq!(self.asked(), before + 1);
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn content(body: &[u8]) -> String {
    json(body)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn code(body: &[u8]) -> String {
    json(body)["error"]["code"].as_str().unwrap().to_owned()
}
