// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask demo`: the main job on one machine, and five kinds of tampering refused.
//!
//! It drives the programs that a provider, a model owner and an application developer would run, through their
//! command lines. Only the hardware is simulated, and each line that shows a simulated result says so.

mod canary;
pub(crate) mod chat;
mod clients;
pub(crate) mod guest;
pub(crate) mod programs;
pub(crate) mod publisher;
mod recorder;
mod refusals;
pub(crate) mod report;
pub(crate) mod scene;
mod vectors;

use std::time::{Duration, Instant};

use clap::Args;

use crate::openai_clients::Languages;
use crate::{process, setup};
use guest::{Guest, Launch};
use programs::Programs;
use report::Report;
use scene::{Machine, Purpose, Scene};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask demo --keep\n  cargo xtask demo --clients --json\n  cargo xtask demo --embeddings"
)]
pub(crate) struct DemoArgs {
    /// Leave everything running and print how to talk to it; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// Have the official Python and JavaScript clients ask the guest, too, or one of them: some minutes each, since it is
    /// emulated.
    #[arg(long, value_name = "LANGUAGE", num_args = 0..=1, default_missing_value = "all")]
    clients: Option<Languages>,
    /// Show a guest with an embedding model instead: it makes vectors of texts, and a receipt. Without the refusals.
    #[arg(long, conflicts_with_all = ["keep", "clients", "question"])]
    embeddings: bool,
    /// Print one JSON document as the last line of standard output.
    #[arg(long)]
    json: bool,
    /// What to ask. Short: the machine is emulated.
    #[arg(long, default_value = "What is the capital city of France?")]
    question: String,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let mut report = Report::new(args.json);
    setup::check_platform()?;
    setup::run()?;
    let programs = Programs::build(&mut report)?;
    let purpose = if args.embeddings { Purpose::Vectors } else { Purpose::Answers };
    let scene = Scene::prepare(&programs, &mut report, &[Machine::DEMO], purpose)?;
    let played = match purpose {
        Purpose::Answers => play(args, &programs, &scene, &mut report),
        Purpose::Vectors => play_vectors(&programs, &scene, &mut report),
    };
    if played.is_err() && process::check_interrupt().is_ok() {
        eprintln!("logs are kept in {}", scene.keep().display());
    }
    played
}

/// The measured run: boot, conversation, refusals.
fn play(args: &DemoArgs, programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let measured_from = Instant::now();
    let mut guest = Guest::boot(programs, scene, Launch::demo(&scene.image), "guest", |_| Ok(()))?;
    guest.wait_until_serving(report)?;
    scene.keep_measured(guest.measured()?)?;
    let conversation = chat::ask(programs, scene, &guest, &args.question, report)?;
    canary::run(scene, &guest, &conversation, report)?;
    scene.show_release_decision(programs, report)?;
    if let Some(languages) = args.clients {
        clients::run(languages, scene, &conversation, report)?;
    }
    if args.keep {
        report.finish(measured_from.elapsed())?;
        return keep(scene, &guest, &conversation);
    }
    chat::finish(&guest, &conversation, report)?;
    drop(conversation);
    guest.stop()?;
    refusals::run(programs, scene, report)?;
    report.finish(measured_from.elapsed())
}

/// The measured run with an embedding model: boot, vectors, receipt.
fn play_vectors(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let measured_from = Instant::now();
    let mut guest = Guest::boot(programs, scene, Launch::demo(&scene.image), "guest", |_| Ok(()))?;
    guest.wait_until_serving(report)?;
    scene.keep_measured(guest.measured()?)?;
    let conversation = vectors::ask(programs, scene, &guest, report)?;
    chat::finish(&guest, &conversation, report)?;
    drop(conversation);
    guest.stop()?;
    report.finish(measured_from.elapsed())
}

fn keep(scene: &Scene, guest: &Guest, conversation: &chat::Conversation) -> anyhow::Result<()> {
    eprintln!("\nRunning until Ctrl-C (hardware simulated).");
    eprintln!("  guest (attested TLS):   https://{}", guest.address());
    eprintln!("  local OpenAI endpoint:  http://{}/v1", conversation.proxy_address());
    eprintln!("  run directory:          {}", scene.directory().display());
    eprintln!(
        "\nTalk to it:\n  curl -N http://{}/v1/chat/completions -H 'content-type: application/json' \\",
        conversation.proxy_address()
    );
    eprintln!(
        "    -d '{{\"model\":\"{}\",\"stream\":true,\"max_tokens\":16,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'",
        scene.model_name()
    );
    eprintln!(
        "  Any OpenAI client: base_url=\"http://{}/v1\", api_key=\"unused\", model=\"{}\"",
        conversation.proxy_address(),
        scene.model_name()
    );
    loop {
        if process::check_interrupt().is_err() {
            eprintln!("stopping");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
