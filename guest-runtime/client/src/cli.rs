// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tdx_verify::TrustAnchors;

use crate::{
    connection::{AttestedConnection, connect},
    error::ClientError,
    policy::ClientPolicy,
    proxy,
    receipts::ReceiptBook,
    report,
    upstream::Upstream,
    verifier::{Verifier, unix_now},
    verify_receipt, verify_receipts,
};

/// A local OpenAI endpoint in front of an attested guest: it verifies the guest, forwards requests and checks receipts.
#[derive(Debug, Parser)]
#[command(
    name = "attested-proxy",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  attested-proxy --upstream https://203.0.113.7:8443 --policy policy.json --listen 127.0.0.1:8080
  curl http://127.0.0.1:8080/v1/models
  attested-proxy check --upstream https://203.0.113.7:8443 --policy policy.json --explain
  attested-proxy check --upstream https://203.0.113.7:8443 --policy policy.json --receipts receipts/
  attested-proxy verify-receipt receipts/receipt-0123456789abcdef-00000000.json
  attested-proxy verify-receipts receipts/ --policy policy.json --at 2026-01-31T12:00:00Z

Exit codes: 0 accepted, 2 refused, 64 wrong usage, 1 anything else."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    proxy: Option<ProxyArgs>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The guest's attested API, as https://HOST:PORT.
    #[arg(long)]
    pub(crate) upstream: Upstream,
    /// The client policy (JSON).
    #[arg(long)]
    pub(crate) policy: PathBuf,
    /// Show each register and each check.
    #[arg(long)]
    pub(crate) explain: bool,
    /// Print one JSON document on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `check` takes.
#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Folder of receipts: the guest must not contradict them, and its proof is kept there, for `verify-receipts`.
    #[arg(long)]
    receipts: Option<PathBuf>,
}

/// The fields of [`GuestArgs`] stand here again: clap takes an optional group with a group inside for an absent one.
#[derive(Debug, Args)]
struct ProxyArgs {
    /// The guest's attested API, as https://HOST:PORT.
    #[arg(long)]
    upstream: Upstream,
    /// The client policy (JSON).
    #[arg(long)]
    policy: PathBuf,
    /// Where to listen: a loopback address, since requests come in plain HTTP. Port 0 takes a free one.
    #[arg(long, value_parser = loopback)]
    listen: SocketAddr,
    /// Folder in which receipts, evidence and each guest's newest proof are kept.
    #[arg(long)]
    receipts: Option<PathBuf>,
    /// Seconds that the guest may take until an answer begins, with its first text; one that is not streamed begins when it is complete. A request
    /// that was sent is never sent again.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    patience: u32,
    /// Show each register and each check.
    #[arg(long)]
    explain: bool,
    /// Print one JSON document on standard output when the proxy is ready, or refused.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verifies a guest once and says what was found.
    Check(CheckArgs),
    /// Verifies a stored receipt.
    VerifyReceipt(verify_receipt::Arguments),
    /// Verifies that receipts are all that a guest had signed when it committed to their number: none was dropped.
    VerifyReceipts(verify_receipts::Arguments),
}

impl Cli {
    /// Does what was asked for.
    pub(crate) fn run(self, anchors: &TrustAnchors) -> ExitCode {
        match (self.command, self.proxy) {
            (Some(Command::VerifyReceipt(arguments)), _) => verify_receipt::run(&arguments, anchors),
            (Some(Command::VerifyReceipts(arguments)), _) => verify_receipts::run(&arguments, anchors),
            (Some(Command::Check(arguments)), _) => {
                with_runtime(arguments.guest.json, check(arguments, anchors.clone()))
            }
            (None, Some(arguments)) => with_runtime(arguments.json, serve(arguments, anchors.clone())),
            // Not reached: without a subcommand the parser demands the proxy's arguments.
            (None, None) => ExitCode::from(USAGE),
        }
    }
}

fn with_runtime(json: bool, work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => report::error(&error, json),
    }
}

async fn check(arguments: CheckArgs, anchors: TrustAnchors) -> ExitCode {
    let CheckArgs { guest, receipts } = arguments;
    let book = match ReceiptBook::open(receipts) {
        Ok(book) => book,
        Err(error) => return report::error(&error, guest.json),
    };
    match first_connection(&guest, anchors, book).await {
        Ok((connection, _)) => {
            if guest.json {
                report::print(&json!({"accepted": true, "verdict": connection.verdict()}));
            }
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

async fn serve(arguments: ProxyArgs, anchors: TrustAnchors) -> ExitCode {
    let ProxyArgs { upstream, policy, listen, receipts, patience, explain, json } = arguments;
    let patience = Duration::from_secs(patience.into());
    let guest = GuestArgs { upstream, policy, explain, json };
    let book = match ReceiptBook::open(receipts) {
        Ok(book) => book,
        Err(error) => return report::error(&error, guest.json),
    };
    // Before anybody can know of this process: a signal that comes early is not the end of it.
    let again = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let (connection, verifier) = match first_connection(&guest, anchors, book).await {
        Ok(first) => first,
        Err(code) => return code,
    };
    let verdict = json!(connection.verdict());
    let first = Arc::clone(&verifier);
    let proxy = match proxy::Proxy::bind(listen, guest.upstream, verifier, connection, patience).await {
        Ok(proxy) => proxy,
        Err(error) => return report::error(&error, guest.json),
    };
    eprintln!("attested-proxy: listening on http://{}/v1", proxy.address());
    if guest.json {
        report::print(&json!({"accepted": true, "listening": proxy.address(), "verdict": verdict}));
    }
    let rereading = again.map(|again| tokio::spawn(reread(again, guest.policy, first, proxy.handle())));
    proxy.run(stop_signal()).await;
    if let Ok(rereading) = rereading {
        rereading.abort();
    }
    eprintln!("attested-proxy: stopped");
    ExitCode::SUCCESS
}

/// Reads the policy again at each SIGHUP. One that can't be read leaves the old one in force.
async fn reread(mut again: tokio::signal::unix::Signal, policy: PathBuf, first: Arc<Verifier>, proxy: proxy::Handle) {
    while again.recv().await.is_some() {
        match ClientPolicy::load(&policy, unix_now()) {
            Ok(policy) => {
                proxy.judge_by(Arc::new(first.judging_by(policy)));
                eprintln!("attested-proxy: policy read again; verdicts of before are void");
            }
            Err(error) => {
                report::error(&error, false);
                eprintln!("attested-proxy: the policy of before stays in force");
            }
        }
    }
}

/// Connects, and tells what was found.
async fn first_connection(
    guest: &GuestArgs,
    anchors: TrustAnchors,
    book: ReceiptBook,
) -> Result<(AttestedConnection, Arc<Verifier>), ExitCode> {
    let policy = ClientPolicy::load(&guest.policy, unix_now()).map_err(|error| report::error(&error, guest.json))?;
    let verifier = Arc::new(Verifier::with_book(policy, anchors, book));
    let connection: Result<_, ClientError> = connect(&guest.upstream, &verifier).await;
    let connection = connection.map_err(|error| report::failure(&error, guest.json))?;
    eprintln!("attested-proxy: {}", guest.upstream);
    for line in report::verdict(connection.verdict(), guest.explain) {
        eprintln!("attested-proxy: {line}");
    }
    Ok((connection, verifier))
}

/// Ctrl-C or SIGTERM.
async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(interrupt.await),
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "an address is written 127.0.0.1:PORT".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("requests come in plain HTTP: listen on a loopback address such as 127.0.0.1:8080".to_owned())
    }
}

/// `EX_USAGE` of sysexits.h.
pub(crate) const USAGE: u8 = 64;
/// Something was looked at and not accepted.
pub(crate) const REFUSED: u8 = 2;
/// Anything else.
pub(crate) const FAILED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["attested-proxy"], arguments].concat())
    }

    #[test]
    fn the_command_line_is_strict() {
        let guest = ["--upstream", "https://127.0.0.1:1", "--policy", "p"];
        let proxy = |listen: &'static str| parse(&[guest.as_slice(), &["--listen", listen]].concat());
        let cli = proxy("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
        assert!(cli.proxy.is_some());
        assert!(proxy("[::1]:0").is_ok());
        assert!(proxy("0.0.0.0:8080").is_err());
        for patience in ["0", "86401", "x"] {
            let arguments = [guest.as_slice(), &["--listen", "127.0.0.1:0", "--patience", patience]].concat();
            assert!(parse(&arguments).is_err(), "{patience}");
        }
        assert!(parse(&guest).is_err());
        assert!(parse(&[]).is_err());
        assert!(parse(&[&["check"], guest.as_slice()].concat()).is_ok_and(|cli| cli.command.is_some()));
        assert!(parse(&["verify-receipt", "f"]).is_ok());
        assert!(parse(&["verify-receipts", "f", "g", "--proof", "p", "--evidence", "e"]).is_ok());
        for wrong in [&["verify-receipts"][..], &["verify-receipts", "f", "--at", "2026-01-31T12:00:00Z"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        // Attack 70: no flag of the release binary names a root.
        assert!(parse(&[guest.as_slice(), &["--listen", "127.0.0.1:0", "--sim-root", "f"]].concat()).is_err());
    }
}
