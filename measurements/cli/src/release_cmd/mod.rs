// SPDX-License-Identifier: Apache-2.0
//! `measure release`: make, sign, log and publish a release.

mod create;
mod export;
mod keygen;
mod publish;
mod trust;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use release::{Bundle, Statement};
use serde_json::json;

use crate::output::{Failure, Report, accepted};
use crate::{clock, input, key_file};

/// Makes, signs, logs and publishes releases.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: ReleaseCommand,
    /// Print one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
enum ReleaseCommand {
    /// Make a statement from a built image and the shapes of the machines that run it.
    #[command(
        after_help = "Example:\n  measure release create --image out --shape shape.toml --qemu qemu-system-x86_64 \\\n    \
        --source-commit $(git rev-parse HEAD) --rebuild 'image build --profile cpu --out out' --out statement.json"
    )]
    Create(create::CreateArgs),
    /// Write a release's registers for other verifiers: trustee's reference value provider, or a CoRIM.
    #[command(
        after_help = "Examples:\n  measure release export --format rvps --release release.sigstore.json --trust trust.json --out rvps.json\n  \
        measure release export --format corim --release release.sigstore.json --trust trust.json --key release.key --out release.corim"
    )]
    Export(export::ExportArgs),
    /// Make a key pair: KEY with mode 0600 and KEY.pub.
    #[command(after_help = "Examples:\n  measure release keygen --kind release --out release.key\n  \
        measure release keygen --kind log --name example.org/releases --out log.key")]
    Keygen(keygen::KeygenArgs),
    /// Sign a statement. The bundle is not logged yet, so no verifier accepts it.
    #[command(
        after_help = "Example:\n  measure release sign --statement statement.json --key release.key --out signed.json"
    )]
    Sign(SignArgs),
    /// Append a signed bundle to a log and put the proof into the bundle.
    #[command(
        after_help = "Example:\n  measure release publish --bundle signed.json --key release.key.pub --log log \\\n    \
        --log-key log.key --witness-key w1.key --out release.sigstore.json"
    )]
    Publish(publish::PublishArgs),
    /// Write the trust policy that verifiers of these releases need.
    #[command(after_help = "Example:\n  measure release trust --key release.key.pub --log-key log.key.pub \\\n    \
        --witness w1.key.pub --threshold 1 --out trust.json")]
    Trust(trust::TrustArgs),
}

#[derive(Args)]
struct SignArgs {
    /// The statement, as `release create` wrote it.
    #[arg(long, value_name = "FILE")]
    statement: PathBuf,
    /// The private release key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where the bundle goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    Ok(match &arguments.command {
        ReleaseCommand::Create(args) => create::run(args)?,
        ReleaseCommand::Export(args) => export::run(args, clock::now()?)?,
        ReleaseCommand::Keygen(args) => keygen::run(args)?,
        ReleaseCommand::Sign(args) => sign(args)?,
        ReleaseCommand::Publish(args) => publish::run(args, clock::now()?)?,
        ReleaseCommand::Trust(args) => trust::run(args)?,
    })
}

fn sign(args: &SignArgs) -> anyhow::Result<Report> {
    let statement = Statement::parse(&input::file(&args.statement, MAX_STATEMENT)?)?;
    let bundle = Bundle::sign(&statement, &key_file::release_key(&args.key)?)?;
    key_file::write(&args.out, &bundle.to_json()?)?;
    let digest = bundle.digest();
    let text = format!("signed release {digest}\nwrote {}; log it with `measure release publish`", args.out.display());
    Ok(accepted(json!({"digest": digest, "bundle": args.out}), text))
}

const MAX_STATEMENT: u64 = release::statement::MAX_STATEMENT as u64;
const MAX_BUNDLE: u64 = release::bundle::MAX_BUNDLE as u64;
const MAX_POLICY: u64 = 64 << 10;
