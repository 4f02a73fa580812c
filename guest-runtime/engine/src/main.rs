// SPDX-License-Identifier: Apache-2.0
//! The inference engine process of the guest: see the library's description.

use anyhow::Context as _;
use clap::Parser;
use engine::{
    Gpus, MAX_ROWS, ROWS, SeccompError, Settings, Stage, Weights, accept_one, batching_engine, confine,
    confine_with_gpus, serve_client,
};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

/// Loads a model and answers one client on a Unix socket, until the client closes the connection.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = format!(
        "Example:\n  engine --model /model/model.gguf --socket /run/engine.sock --context 2048 \
        {EXAMPLE}\n\nThe socket is bound before the model is loaded: connect at once and wait \
        for the first message.\nOnce a client is served nothing is printed; the exit code is 0 when the client closed the \
        connection, 1 otherwise."
    )
)]
struct Arguments {
    /// The model: a GGUF file with a chat template.
    #[arg(long)]
    model: PathBuf,
    /// Where to listen. The path must not exist.
    #[arg(long)]
    socket: PathBuf,
    /// Most tokens of conversation and answer together.
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    context: u32,
    /// Tokens in the cache, of all requests together; at least as many as the context. By default as many as fit a
    /// quarter of the free memory, up to a context for each answer that is computed at once.
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    cache: Option<u32>,
    /// Answers that are computed at once; further ones wait.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Threads that compute one token.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads_decode: u16,
    /// Threads that compute a prompt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads_prefill: u16,
    /// Tokens that are computed at once. With more than by default prompts are read faster, and an answer depends on what is
    /// computed beside it, in the rounding of its sums.
    #[arg(long, default_value_t = ROWS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ROWS)))]
    rows: u32,
    /// GPUs that the model is computed on: all that the machine has. With another number the engine ends.
    #[cfg(feature = "cuda")]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    gpus: u8,
}

impl Arguments {
    /// The GPUs, opened; `None` for an engine that computes on the processor.
    fn open_gpus(&self) -> anyhow::Result<Option<Gpus>> {
        #[cfg(feature = "cuda")]
        return Ok(Some(Gpus::open(self.gpus)?));
        #[cfg(not(feature = "cuda"))]
        Ok(None)
    }
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
            let _ = writeln!(std::io::stderr(), "engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    linux_sys::memory::prepare()?;
    let listener = UnixListener::bind(&arguments.socket)
        .with_context(|| format!("cannot listen on {}", arguments.socket.display()))?;
    // Libraries are loaded here, which the filters do not allow.
    let gpus = arguments.open_gpus()?;
    let confine: fn(Stage) -> Result<(), SeccompError> = if gpus.is_some() { confine_with_gpus } else { confine };
    confine(Stage::Load)?;
    let model = &arguments.model;
    let weights = gpus.as_ref().map_or_else(|| Weights::load(model), |gpus| Weights::load_on(model, gpus));
    let weights = weights.with_context(|| format!("loading {}", model.display()))?;
    let context = NonZeroU32::new(arguments.context).context("the context must not be 0")?;
    let cache = match arguments.cache {
        Some(cache) => NonZeroU32::new(cache).context("the cache must not be 0")?,
        None => {
            // The cache stands where the weights do; it is compacted by way of the guest's memory.
            let guest = linux_sys::memory::free_bytes()?;
            let free = gpus.as_ref().map_or(guest, |gpus| gpus.free_bytes().min(guest));
            weights.cache_within(free / 4, context, arguments.parallel)
        }
    };
    let settings = Settings {
        context,
        cache,
        parallel: arguments.parallel,
        threads_decode: arguments.threads_decode,
        threads_prefill: arguments.threads_prefill,
        rows: arguments.rows,
    };
    let mut engine = batching_engine(&weights, settings)?;
    let client = accept_one(listener).context("cannot accept a client")?;
    serve_client(&mut engine, client, || Ok(confine(Stage::Serve)?))
}

#[cfg(feature = "cuda")]
const EXAMPLE: &str = "--gpus 1";
#[cfg(not(feature = "cuda"))]
const EXAMPLE: &str = "--threads-decode 4 --threads-prefill 8";
const WRONG_USAGE: u8 = 64;
