// SPDX-License-Identifier: Apache-2.0
//! `measure release export`: a release's registers in the formats of other verifiers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use release::export::{corim, rvps};
use release::{Bundle, ReferenceValues, Statement, TrustPolicy, VerifiedRelease};
use serde_json::json;
use types::Sha256Digest;

use super::{MAX_BUNDLE, MAX_POLICY};
use crate::output::{Report, accepted, refused};
use crate::{input, key_file};

/// A format of reference values.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The message that registers values with trustee's reference value provider.
    Rvps,
    /// Concise Reference Integrity Manifest, CBOR.
    Corim,
}

#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// The format.
    #[arg(long, value_enum)]
    format: Format,
    /// The release: a published bundle, or a statement.
    #[arg(long, value_name = "FILE")]
    release: PathBuf,
    /// Trust policy: export only what verifies under it. Without it nothing is verified.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Private release key to sign a CoRIM with.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the result goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &ExportArgs, now: u64) -> Result<Report> {
    let bytes = input::file(&args.release, MAX_BUNDLE)?;
    let (values, digest) = match &args.trust {
        Some(path) => {
            let policy = TrustPolicy::parse(&input::file(path, MAX_POLICY)?)?;
            match VerifiedRelease::verify(&bytes, &policy, now) {
                Ok(verified) => (verified.values().clone(), *verified.digest()),
                Err(error) => return Ok(refused(vec![error.refusal()])),
            }
        }
        None => unverified(&bytes)?,
    };
    let exported = match (args.format, &args.key) {
        (Format::Rvps, Some(_)) => bail!("a message for RVPS carries no signature: leave out --key, or export a CoRIM"),
        (Format::Rvps, None) => rvps::message(&values)?,
        (Format::Corim, None) => corim::unsigned(&values, &digest)?,
        (Format::Corim, Some(path)) => corim::signed(&values, &digest, &key_file::release_key(path)?)?,
    };
    key_file::write(&args.out, &exported)?;
    let (verified, signed, shapes) = (args.trust.is_some(), args.key.is_some(), values.registers.len());
    let note = if verified { "verified" } else { "NOT verified: give --trust" };
    let text = format!(
        "release {digest} ({note})\nwrote the registers of {shapes} shapes to {}{}",
        args.out.display(),
        if signed { ", signed" } else { "" },
    );
    let json =
        json!({"digest": digest, "verified": verified, "signed": signed, "shapes": shapes, "exported": args.out});
    Ok(accepted(json, text))
}

/// What a bundle or a statement says, whoever wrote it.
fn unverified(bytes: &[u8]) -> Result<(ReferenceValues, Sha256Digest)> {
    let payload = Bundle::from_json(bytes).map_or_else(|_| bytes.to_vec(), |bundle| bundle.payload().to_vec());
    Ok((Statement::parse(&payload)?.predicate, Sha256Digest::of(&payload)))
}
