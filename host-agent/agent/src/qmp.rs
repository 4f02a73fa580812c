// SPDX-License-Identifier: Apache-2.0
//! The three commands of QEMU's control protocol (QMP) that a launch needs.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A control connection after the greeting.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU has made its socket.
    pub(crate) async fn connect(path: &Path) -> anyhow::Result<Self> {
        let attempt = async {
            loop {
                if let Ok(stream) = UnixStream::connect(path).await {
                    return stream;
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
            .await
            .context("QEMU's control socket does not answer: see qemu.log in the run directory")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.message().await?;
        qmp.command("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Runs one command without arguments.
    pub(crate) async fn command(&mut self, name: &str) -> anyhow::Result<()> {
        let request = serde_json::json!({ "execute": name }).to_string();
        self.stream.write_all(request.as_bytes()).await.context("QEMU's control socket")?;
        loop {
            let message = self.message().await?;
            if message.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = message.get("error") {
                anyhow::bail!("QEMU refused {name}: {error}");
            }
        }
    }

    async fn message(&mut self) -> anyhow::Result<Value> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE);
        tokio::time::timeout(ANSWER_TIMEOUT, limited.read_until(b'\n', &mut line))
            .await
            .context("QEMU's control socket is silent")?
            .context("QEMU's control socket")?;
        anyhow::ensure!(line.ends_with(b"\n"), "QEMU closed its control socket: see qemu.log in the run directory");
        serde_json::from_slice(&line).context("QEMU's control socket speaks no JSON")
    }
}

const RETRY: Duration = Duration::from_millis(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_MESSAGE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn events_are_skipped_and_errors_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            let mut buffer = [0; 256];
            let _ = stream.read(&mut buffer).await.unwrap();
            stream.write_all(b"{\"event\":\"X\"}\n{\"return\":{}}\n").await.unwrap();
            let _ = stream.read(&mut buffer).await.unwrap();
            stream.write_all(b"{\"error\":{\"desc\":\"no\"}}\n").await.unwrap();
        });
        let mut qmp = Qmp::connect(&path).await.unwrap();
        let error = qmp.command("cont").await.unwrap_err().to_string();
        assert!(error.contains("QEMU refused cont"), "{error}");
        server.await.unwrap();
    }
}
