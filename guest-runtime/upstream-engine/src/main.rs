// SPDX-License-Identifier: Apache-2.0
//! Another inference server in the engine's place: see the library's description.

use anyhow::Context as _;
use clap::Parser;
use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::ExitCode,
};
use upstream_engine::{MAX_DESCRIPTION_BYTES, Model, Places, Server, confine, run};

/// Starts another inference server, confined, and answers one client on a Unix socket with it, until the client closes the
/// connection.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  upstream-engine --server /etc/server.json --model /model --socket /run/engine/engine.sock \
    --context 8192\n\n/etc/server.json:\n  {\"program\": \"/usr/bin/vllm\",\n   \"arguments\": [\"serve\", \"{model}\", \"--uds\", \
    \"{socket}\", \"--max-model-len\", \"{context}\"],\n   \"execute\": [\"/usr\", \"/lib\", \"/lib64\"], \"devices\": \
    [\"/dev/nvidia0\"]}\n\nThe socket is bound at once; the first message comes when the server is healthy. What the server \
    prints goes nowhere.\nThe exit code is 0 when the client closed the connection, 64 for wrong usage, 1 otherwise."
)]
struct Arguments {
    /// Which server, and what it may reach: a JSON document.
    #[arg(long)]
    server: PathBuf,
    /// The model: a directory with config.json, tokenizer.json and what the server needs.
    #[arg(long)]
    model: PathBuf,
    /// Where to listen. The path must not exist; the server's own sockets are made beside it.
    #[arg(long)]
    socket: PathBuf,
    /// Most tokens of conversation and answer together.
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    context: u32,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the message cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match work(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // It names rules and fields, never what a request or the server said.
            let _ = writeln!(std::io::stderr(), "upstream-engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { server, model, socket, context } = arguments;
    linux_sys::memory::prepare()?;
    let mut read = Vec::new();
    let most = u64::try_from(MAX_DESCRIPTION_BYTES)?.saturating_add(1);
    let opened = File::open(&server).and_then(|file| file.take(most).read_to_end(&mut read));
    opened.with_context(|| format!("reading {}", server.display()))?;
    let server = Server::parse(&read).with_context(|| format!("reading {}", server.display()))?;
    let known = Model::read(&model).with_context(|| format!("reading {}", model.display()))?;
    let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    let places = Places { socket, model, context };
    confine(&server, &places)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serving = async move {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        run(server, places, known, listener).await.map_err(anyhow::Error::from)
    };
    tokio::task::LocalSet::new().block_on(&runtime, serving)
}

const WRONG_USAGE: u8 = 64;
