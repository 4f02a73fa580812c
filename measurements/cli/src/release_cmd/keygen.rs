// SPDX-License-Identifier: Apache-2.0
//! `measure release keygen`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use release::ReleaseKey;
use release::key::ed25519_seed_to_pem;
use release::log::{LogSigner, WitnessSigner};
use serde_json::json;
use zeroize::Zeroizing;

use crate::key_file;
use crate::output::{Report, accepted};

#[derive(clap::Args)]
pub(super) struct KeygenArgs {
    /// What the key is for.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Origin of the log or name of the witness, without spaces and `+`; not for release keys.
    #[arg(long, value_name = "NAME", required_if_eq_any([("kind", "log"), ("kind", "witness")]))]
    name: Option<String>,
    /// Where the private key goes; the public half goes beside it with `.pub` added.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Kinds of keys.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Signs releases: ECDSA P-256.
    Release,
    /// Signs a log's checkpoints: Ed25519.
    Log,
    /// Cosigns checkpoints: Ed25519.
    Witness,
}

pub(super) fn run(args: &KeygenArgs) -> Result<Report> {
    let name = args.name.as_deref().unwrap_or_default();
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(|e| anyhow!("the system gave no randomness: {e}"))?;
    let (private, public) = match args.kind {
        Kind::Release => {
            let key = ReleaseKey::from_random(&random)?;
            (key.to_pem()?, key.public().to_pem()?)
        }
        Kind::Log => (ed25519_seed_to_pem(&random)?, format!("{}\n", LogSigner::new(name, &random)?.public())),
        Kind::Witness => (ed25519_seed_to_pem(&random)?, format!("{}\n", WitnessSigner::new(name, &random)?.public())),
    };
    key_file::write_private(&args.out, &private)?;
    let public_path = key_file::public_path(&args.out);
    key_file::write(&public_path, public.as_bytes())?;
    let text = format!("wrote {} (keep it secret) and {}", args.out.display(), public_path.display());
    Ok(accepted(json!({"private": args.out, "public": public_path}), text))
}
