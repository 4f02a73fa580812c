// SPDX-License-Identifier: Apache-2.0
//! The daemon's control socket: one request, one answer, both one line of JSON.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use fleet::GuestName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use types::Refusal;

use super::config::Access;
use super::status::Status;

/// What a provider asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Command {
    /// How everything is.
    Status,
    /// Stop a guest until it is started again.
    Stop(GuestName),
    /// Start a stopped guest, or exchange a running one for a new generation of the same.
    Restart(GuestName),
    /// Read the configuration again.
    Reload,
    /// Stop all guests, then end.
    Drain,
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Status(Box<Status>),
    Done,
    Refused(Vec<Refusal>),
}

/// A command on its way to the loop.
pub(crate) type Asked = (Command, oneshot::Sender<Answer>);

/// Makes the socket. A daemon holds its state directory, so what is there is a dead one's.
pub(crate) fn bind(path: &Path, access: Access) -> anyhow::Result<UnixListener> {
    let directory = path.parent().context("the control socket has no directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mode = match access {
        Access::Owner => 0o600,
        Access::Group => 0o660,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).context("rights of the control socket")?;
    Ok(listener)
}

/// Passes commands on for ever.
pub(crate) async fn serve(listener: UnixListener, commands: mpsc::Sender<Asked>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let commands = commands.clone();
        // Who does not read its answer in time gets none.
        tokio::spawn(async move { drop(tokio::time::timeout(LIMIT, answer(stream, commands)).await) });
    }
}

async fn answer(stream: UnixStream, commands: mpsc::Sender<Asked>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice::<Command>(&line) {
        Ok(command) => {
            let (sender, receiver) = oneshot::channel();
            let _ = commands.send((command, sender)).await;
            receiver.await.unwrap_or_else(|_| refused("agent_ending", "the agent is ending", "ask the next one"))
        }
        Err(_) => refused("request_malformed", "the request is none of this version", "use the same version's program"),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn refused(code: &str, detail: &str, fix: &str) -> Answer {
    Answer::Refused(vec![Refusal::new(code, "command", detail, fix)])
}

/// Asks the daemon behind a socket.
///
/// # Errors
/// There is none, or it does not answer.
pub(crate) async fn ask(socket: &Path, command: &Command) -> anyhow::Result<Answer> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("no agent answers at {}: is it running?", socket.display()))?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        serde_json::from_slice(&answer).context("the agent's answer is none of this version")
    };
    tokio::time::timeout(LIMIT, exchange).await.context("the agent does not answer in time")?
}

/// A reload hashes images.
const LIMIT: Duration = Duration::from_secs(120);
const MAX_REQUEST: u64 = 4096;
const MAX_ANSWER: u64 = 16 << 20;
