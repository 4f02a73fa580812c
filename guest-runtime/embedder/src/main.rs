// SPDX-License-Identifier: Apache-2.0
//! The embedding process of the guest: see the library's description.

use anyhow::Context as _;
use clap::Parser;
use embedder::Embedder;
use engine_process::{Stage, accept_one, confine, serve_client};
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

/// Loads an embedding model and answers one client on a Unix socket, until the client closes the connection.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  embedder --model /model --socket /run/engine.sock --context 512 --threads 4\n\n\
    The directory holds model.safetensors, config.json and tokenizer.json of a BERT model, and may hold modules.json and \
    1_Pooling/config.json.\nThe socket is bound before the model is loaded: connect at once and wait for the first \
    message.\nOnce a client is served nothing is printed; the exit code is 0 when the client closed the connection, 64 \
    for wrong usage, 1 otherwise."
)]
struct Arguments {
    /// Directory of the model.
    #[arg(long)]
    model: PathBuf,
    /// Where to listen. The path must not exist.
    #[arg(long)]
    socket: PathBuf,
    /// Most tokens of a text; the model's own limit holds where it is lower.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    context: u32,
    /// Threads that compute.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: u16,
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
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Once a client is served the filter refuses it, on purpose.
            let _ = writeln!(std::io::stderr(), "embedder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    linux_sys::memory::prepare()?;
    let listener = UnixListener::bind(&arguments.socket)
        .with_context(|| format!("cannot listen on {}", arguments.socket.display()))?;
    confine(Stage::Load)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads.into())
        .build_global()
        .context("cannot start the threads that compute")?;
    let mut embedder = Embedder::load(&arguments.model, arguments.context)
        .with_context(|| format!("loading {}", arguments.model.display()))?;
    let client = accept_one(listener).context("cannot accept a client")?;
    serve_client(&mut embedder, client, || Ok(confine(Stage::Serve)?))
}

const WRONG_USAGE: u8 = 64;
