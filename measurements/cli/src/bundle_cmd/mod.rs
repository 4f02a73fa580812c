// SPDX-License-Identifier: Apache-2.0
//! `measure bundle`: verification of release bundles, and of any sigstore bundle.

mod cause;
mod form;
mod stock;
mod view;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgGroup, Args, Subcommand};
use release::{TrustPolicy, VerifiedRelease};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{Refusal, Sha256Digest};

use crate::output::{Failure, Report, accepted, refused};
use crate::{clock, input};

/// Verifies bundles.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: BundleCommand,
    /// Print one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
enum BundleCommand {
    /// Verify a release with --trust (signature, validity, log, witnesses), or any sigstore bundle with --trusted-root.
    #[command(
        after_help = "Examples:\n  measure bundle verify --bundle release.sigstore.json --trust trust.json --artifact out/initrd\n  \
            measure bundle verify --bundle b.json --trusted-root root.json --digest sha256:4f1c… \\\n    \
            --identity https://github.com/o/r/.github/workflows/w.yml@refs/heads/main --issuer https://token.actions.githubusercontent.com"
    )]
    Verify(VerifyArgs),
}

#[derive(Args)]
#[command(group = ArgGroup::new("root").required(true).args(["trust", "trusted_root"]))]
#[command(group = ArgGroup::new("subject").args(["artifact", "digest"]))]
#[command(group = ArgGroup::new("signer").args(["identity", "key"]))]
struct VerifyArgs {
    /// The bundle.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// Trust policy of releases, as `measure release trust` writes it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["signer", "witness", "threshold", "allow_promise"])]
    trust: Option<PathBuf>,
    /// Sigstore trusted root.
    #[arg(long, value_name = "FILE", requires = "subject", requires = "signer")]
    trusted_root: Option<PathBuf>,
    /// A file that the bundle must speak of.
    #[arg(long, value_name = "FILE")]
    artifact: Option<PathBuf>,
    /// Its digest, `sha256:` and 64 hexadecimal digits.
    #[arg(long, value_name = "DIGEST", value_parser = parse_digest)]
    digest: Option<Sha256Digest>,
    /// Identity in the signer's certificate, exactly.
    #[arg(long, value_name = "IDENTITY", requires = "issuer")]
    identity: Option<String>,
    /// Issuer of that identity, exactly.
    #[arg(long, value_name = "URL", requires = "identity")]
    issuer: Option<String>,
    /// The signer's public key (PEM).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Public key of a witness; may be repeated.
    #[arg(long, value_name = "FILE", requires = "threshold")]
    witness: Vec<PathBuf>,
    /// How many of the witnesses must have cosigned each checkpoint.
    #[arg(long, value_name = "K", requires = "witness")]
    threshold: Option<std::num::NonZeroUsize>,
    /// Accept entries that carry only the log's signed promise to include them, as bundles of before 2023 do. A promise
    /// proves that the log saw the entry, not that anybody else can.
    #[arg(long, requires = "trusted_root", conflicts_with = "threshold")]
    allow_promise: bool,
    /// Time of verification with --trust, as 2026-11-21T10:00:00Z; now when it is left out.
    #[arg(long, value_name = "RFC3339", value_parser = parse_time, requires = "trust")]
    at: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let BundleCommand::Verify(args) = &arguments.command;
    let bundle = input::file(&args.bundle, MAX_BUNDLE)?;
    Ok(match (&args.trust, &args.trusted_root) {
        (Some(_), _) => verify_release(args, &bundle)?,
        (None, Some(_)) => stock::verify(args, &bundle)?,
        (None, None) => return Err(anyhow::anyhow!("give --trust or --trusted-root").into()),
    })
}

fn verify_release(args: &VerifyArgs, bundle: &[u8]) -> Result<Report> {
    let path = args.trust.as_ref().context("--trust is missing")?;
    let policy = TrustPolicy::parse(&input::file(path, MAX_POLICY)?)
        .with_context(|| format!("{} is not a trust policy", path.display()))?;
    let now = args.at.map_or_else(clock::now, Ok)?;
    let verified = match VerifiedRelease::verify(bundle, &policy, now) {
        Ok(verified) => verified,
        Err(error) => return Ok(refused(vec![error.refusal()])),
    };
    if let Some(digest) = subject(args)?
        && !verified.statement().subject.iter().any(|subject| subject.digest.sha256 == digest)
    {
        let detail = format!("the release has no file with sha256 {digest}");
        let fix = "give a file of this release, or the bundle of that file's release";
        return Ok(refused(vec![Refusal::new("bundle_artifact_mismatch", "subject", detail, fix)]));
    }
    let values = verified.values();
    let json = json!({
        "digest": verified.digest(),
        "profile": values.profile,
        "hardware": values.hardware,
        "source_commit": values.source_commit,
        "log": policy.log.origin(),
        "log_index": verified.log_index(),
        "tree_size": verified.checkpoint().head().size(),
        "validity": values.validity,
    });
    let simulated = if values.hardware == release::Hardware::Simulated { " (hardware simulated)" } else { "" };
    let text = format!(
        "release {}{simulated}\nprofile {}, commit {}\nentry {} of {} in {}",
        verified.digest(),
        values.profile,
        values.source_commit,
        verified.log_index(),
        verified.checkpoint().head().size(),
        policy.log.origin(),
    );
    Ok(accepted(json, text))
}

/// The digest that the bundle must speak of.
fn subject(args: &VerifyArgs) -> Result<Option<Sha256Digest>> {
    match (&args.artifact, args.digest) {
        (Some(path), _) => Ok(Some(Sha256Digest::of(&input::file(path, MAX_ARTIFACT)?))),
        (None, digest) => Ok(digest),
    }
}

fn parse_digest(text: &str) -> Result<Sha256Digest> {
    let digits = text.strip_prefix("sha256:").context("a digest begins with sha256:")?;
    Ok(digits.parse()?)
}

fn parse_time(text: &str) -> Result<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339)?;
    ensure!(time.unix_timestamp() >= 0, "the time is before 1970");
    match u64::try_from(time.unix_timestamp()) {
        Ok(seconds) => Ok(seconds),
        Err(_) => bail!("the time is before 1970"),
    }
}

const MAX_BUNDLE: u64 = 16 << 20;
const MAX_POLICY: u64 = 64 << 10;
const MAX_ARTIFACT: u64 = 4 << 30;
