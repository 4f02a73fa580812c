// SPDX-License-Identifier: Apache-2.0
//! `policy`: the appraisal policy in force, its schema, and what is wrong or weak in one.

use std::path::{Path, PathBuf};

use policy_lint::{Report, lint};
use release::{TrustPolicy, VerifiedRelease};
use serde_json::{Value, json};
use types::{Document as _, Refusal};

use super::{entered, now, open_beside};
use crate::{
    cli::PolicyCommand,
    demand::DemandError,
    input,
    outcome::Outcome,
    service::{self, APPRAISAL_POLICY},
};

pub(super) fn run(command: &PolicyCommand) -> anyhow::Result<Outcome> {
    match command {
        PolicyCommand::Show(args) => {
            let policy = service::policy(&open_beside(args)?)??;
            let document = serde_json::to_value(&policy)?;
            Ok(Outcome::accepted(vec![serde_json::to_string_pretty(&document)?], json!({ "policy": document })))
        }
        PolicyCommand::Set { store, file } => {
            let (bytes, report) = linted(file, &[])?;
            if !report.errors().is_empty() {
                return Ok(outcome(Vec::new(), json!({}), &report));
            }
            let store = open_beside(store)?;
            store.set_policy(APPRAISAL_POLICY, &bytes)?;
            entered(&store);
            let document = json!({ "policy": APPRAISAL_POLICY });
            Ok(outcome(vec!["policy in force".to_owned()], document, &report))
        }
        PolicyCommand::Schema => {
            let schema: Value = serde_json::from_str(policy_lint::SCHEMA)?;
            Ok(Outcome::document(policy_lint::SCHEMA.trim_end().to_owned(), schema))
        }
        PolicyCommand::Lint { file, release, trust } => {
            let releases = match releases(release, trust.as_deref())? {
                Ok(releases) => releases,
                Err(refused) => return Ok(refused),
            };
            let (_, report) = linted(file, &releases)?;
            let document = json!({ "findings": report.findings() });
            Ok(outcome(vec![format!("{} findings", report.findings().len())], document, &report))
        }
    }
}

/// Reads a policy's file and lints it.
pub(super) fn linted(file: &Path, releases: &[VerifiedRelease]) -> anyhow::Result<(Vec<u8>, Report)> {
    let bytes = input::read(file, appraise::MAX_POLICY_LEN)?;
    let report = lint(&bytes, releases, now());
    Ok((bytes, report))
}

/// Why a policy can't be judged by, as `policy set` says it: with the place in the document.
pub(super) fn malformed(bytes: &[u8], error: &DemandError) -> Vec<Refusal> {
    let reasons = lint(bytes, &[], now()).errors();
    // The lint finds what refuses a policy; were it laxer, this would still be no acceptance.
    let whole = || vec![Refusal::new("policy_malformed", "policy", error.to_string(), "correct the policy")];
    if reasons.is_empty() { whole() } else { reasons }
}

/// Refused where the report has errors; warnings are shown in any case.
pub(super) fn outcome(mut lines: Vec<String>, mut document: Value, report: &Report) -> Outcome {
    lines.extend(report.warnings().map(ToString::to_string));
    if let Some(fields) = document.as_object_mut() {
        fields.insert("warnings".to_owned(), json!(report.warnings().collect::<Vec<_>>()));
    }
    Outcome::judged(lines, document, report.errors())
}

/// Bundles that verify now under the trust policy.
fn releases(bundles: &[PathBuf], trust: Option<&Path>) -> anyhow::Result<Result<Vec<VerifiedRelease>, Outcome>> {
    let Some(trust) = trust else { return Ok(Ok(Vec::new())) };
    let trust = match TrustPolicy::parse(&input::read(trust, TrustPolicy::MAX_BYTES)?) {
        Ok(trust) => trust,
        Err(error) => {
            let fix = "correct the trust policy";
            let reason = Refusal::new("release_policy_malformed", "trust", error.to_string(), fix);
            return Ok(Err(Outcome::refused(vec![reason])));
        }
    };
    let mut releases = Vec::new();
    for path in bundles {
        match VerifiedRelease::verify(&input::read(path, MAX_BUNDLE)?, &trust, now()) {
            Ok(release) => releases.push(release),
            Err(error) => return Ok(Err(Outcome::refused(vec![error.refusal()]))),
        }
    }
    Ok(Ok(releases))
}

const MAX_BUNDLE: usize = 4 << 20;
