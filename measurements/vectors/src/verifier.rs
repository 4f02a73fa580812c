// SPDX-License-Identifier: Apache-2.0
//! The checks that cases are given to: the libraries that the programs call, with the case's own trust.

use anyhow::{Context as _, Result};
use appraise::{Appraisal, Binding, GpuGrounds, Policy, malformed_evidence};
use release::log::{SignedCheckpoint, WitnessSigner, WitnessState, cosign};
use release::{TrustPolicy, VerifiedRelease};
use tdx_verify::{Collateral, TrustAnchors};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{Document as _, Evidence, Refusal, Sha256Digest};

use crate::case::{Case, Inputs, Verifier};

/// All reasons of the refusal; none when the inputs are accepted.
pub(crate) fn run(case: &Case, inputs: &Inputs<'_>) -> Result<Vec<Refusal>> {
    let at = OffsetDateTime::parse(&case.at, &Rfc3339).context("at")?.unix_timestamp();
    let now = u64::try_from(at).context("at")?;
    match case.verifier {
        Verifier::Appraise => appraise(inputs, now),
        Verifier::Bundle => Ok(release(inputs, now)?.err().into_iter().collect()),
        Verifier::History => history(inputs, now),
        Verifier::Witness => witness(inputs, now),
    }
}

fn release(inputs: &Inputs<'_>, now: u64) -> Result<Result<VerifiedRelease, Refusal>> {
    let trust = TrustPolicy::parse(&inputs.bytes("trust")?).context("trust")?;
    Ok(VerifiedRelease::verify(&inputs.bytes("bundle")?, &trust, now).map_err(|error| error.refusal()))
}

/// The whole way of a key release: form, quote, release, appraisal bound to a connection.
fn appraise(inputs: &Inputs<'_>, now: u64) -> Result<Vec<Refusal>> {
    let release = match release(inputs, now)? {
        Ok(release) => release,
        Err(refusal) => return Ok(vec![refusal]),
    };
    let evidence = match Evidence::from_canonical(&inputs.bytes("evidence")?) {
        Ok(evidence) => evidence,
        Err(error) => return Ok(vec![malformed_evidence(&error)]),
    };
    let policy = Policy::any_release();
    let collateral = Collateral::from_json(&inputs.bytes("collateral")?).context("collateral")?;
    let anchors = TrustAnchors::custom(inputs.bytes("root")?);
    let quote = match tdx_verify::verify(evidence.quote.as_slice(), &collateral, &anchors, now, &policy.platform) {
        Ok(quote) => quote,
        Err(refused) => return Ok(refused.refusals()),
    };
    let (challenge, exporter) = (secret(inputs, "challenge")?, secret(inputs, "exporter")?);
    let binding = Binding::KeyRelease { challenge: &challenge, exporter: &exporter };
    let releases = [release];
    let appraisal = Appraisal {
        evidence: &evidence,
        binding,
        quote: &quote,
        releases: &releases,
        policy: &policy,
        rules: None,
        gpu: GpuGrounds::NVIDIA,
        now,
    };
    Ok(match appraisal.accept() {
        Ok(_) => Vec::new(),
        Err(verdict) => verdict.reasons(),
    })
}

fn history(inputs: &Inputs<'_>, now: u64) -> Result<Vec<Refusal>> {
    let release = match release(inputs, now)? {
        Ok(release) => release,
        Err(refusal) => return Ok(vec![refusal]),
    };
    let checked = release.check_same_history(&known(inputs)?, &proof(inputs)?);
    Ok(checked.err().map(|error| error.refusal()).into_iter().collect())
}

/// A witness whose key is of no importance: it must not use it.
fn witness(inputs: &Inputs<'_>, now: u64) -> Result<Vec<Refusal>> {
    let trust = TrustPolicy::parse(&inputs.bytes("trust")?).context("trust")?;
    let signer = WitnessSigner::new("witness", &[1; 32])?;
    let note = String::from_utf8(inputs.bytes("checkpoint")?)?;
    let cosigned = cosign(&signer, Some(&known(inputs)?), &note, &trust.log, &proof(inputs)?, now);
    Ok(cosigned.err().map(|error| error.refusal()).into_iter().collect())
}

fn known(inputs: &Inputs<'_>) -> Result<WitnessState> {
    let trust = TrustPolicy::parse(&inputs.bytes("trust")?).context("trust")?;
    let note = String::from_utf8(inputs.bytes("known")?)?;
    Ok(WitnessState::from(SignedCheckpoint::verify(&note, &trust.log).context("known")?.head()))
}

/// One digest a line.
fn proof(inputs: &Inputs<'_>) -> Result<Vec<Sha256Digest>> {
    let text = String::from_utf8(inputs.bytes("proof")?)?;
    text.lines().map(|line| line.parse().context("proof")).collect()
}

fn secret(inputs: &Inputs<'_>, name: &str) -> Result<[u8; 32]> {
    inputs.bytes(name)?.try_into().map_err(|_| anyhow::anyhow!("{name} must have 32 bytes"))
}
