// SPDX-License-Identifier: Apache-2.0
//! `measure release trust`.

use std::path::PathBuf;

use anyhow::Result;
use release::TrustPolicy;
use serde_json::json;
use types::Document as _;

use crate::key_file;
use crate::output::{Report, accepted};

#[derive(clap::Args)]
pub(super) struct TrustArgs {
    /// Public key of an accepted release signer; may be repeated.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// Public key of the log.
    #[arg(long, value_name = "FILE")]
    log_key: PathBuf,
    /// Public key of an accepted witness; may be repeated.
    #[arg(long = "witness", value_name = "FILE", required = true)]
    witnesses: Vec<PathBuf>,
    /// How many different witnesses must have cosigned.
    #[arg(long, value_name = "K")]
    threshold: u32,
    /// Where the policy goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where a sigstore trusted root with the same log goes, for stock verifiers.
    #[arg(long, value_name = "FILE")]
    trusted_root_out: Option<PathBuf>,
}

pub(super) fn run(args: &TrustArgs) -> Result<Report> {
    let policy = TrustPolicy::new(
        args.keys.iter().map(|path| key_file::release_public_key(path)).collect::<Result<_>>()?,
        key_file::log_key(&args.log_key)?,
        args.witnesses.iter().map(|path| key_file::witness_key(path)).collect::<Result<_>>()?,
        args.threshold,
    )?;
    key_file::write(&args.out, &policy.to_canonical()?)?;
    if let Some(path) = &args.trusted_root_out {
        key_file::write(path, &policy.to_sigstore_trusted_root()?)?;
    }
    let digest = policy.digest()?;
    Ok(accepted(json!({"policy": args.out, "digest": digest}), format!("wrote {}", args.out.display())))
}
