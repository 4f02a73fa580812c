// SPDX-License-Identifier: Apache-2.0
//! `appraise`: judges files. With a quote alone it answers for the platform; the server has no such mode.

use std::path::Path;

use appraise::{Appraisal, Binding, GpuGrounds, MAX_POLICY_LEN, Verdict, malformed_evidence};
use attestation_result::{AttestationResult, Issue};
use attested_channel::Moment;
use event_log::{EventLog, Indexing, replay};
use gpu_verify::GpuAnchors;
use release::{TrustPolicy, VerifiedRelease};
use serde_json::{Value, json};
use tdx_verify::{Collateral, MAX_COLLATERAL_LEN, TrustAnchors, VerifiedQuote, strip_padding};
use types::{Document as _, EventName, Evidence, GuestConfig, Refusal, RegisterName, Sha256Digest};

use super::{
    now, open_beside,
    serve::{malformed_collateral, write_whole},
};
use crate::{
    cli::{AppraiseArgs, StoreArgs},
    demand::{Compiled, Demand},
    gpu_files::GpuFiles,
    identity::Identity,
    input,
    outcome::Outcome,
    service::{ANY_RELEASE, BUILD},
};

pub(super) fn appraise(args: &AppraiseArgs, anchors: &TrustAnchors, gpu: &GpuAnchors) -> anyhow::Result<Outcome> {
    let mut result = None;
    let mut outcome = judge_files(args, anchors, gpu, &mut result)?;
    if let (Some(path), Some(store), Some(result)) = (&args.ear, &args.store, result) {
        let store = StoreArgs { store: store.clone(), kek: args.kek.clone() };
        let key = Identity::load(&open_beside(&store)?)?.result_key();
        write_whole(path, key.sign(&result)?.as_bytes())?;
        outcome = outcome.with("ear", json!(result.ear_status));
    }
    Ok(outcome.under(anchors))
}

/// Judges what the files hold. `result` is what an attestation result of it says, once evidence was looked at.
fn judge_files(
    args: &AppraiseArgs,
    anchors: &TrustAnchors,
    gpu: &GpuAnchors,
    result: &mut Option<AttestationResult>,
) -> anyhow::Result<Outcome> {
    let collateral = match Collateral::from_json(&input::read(&args.collateral, MAX_COLLATERAL_LEN)?) {
        Ok(collateral) => collateral,
        Err(error) => return Ok(malformed_collateral(&args.collateral, &error)),
    };
    let policy = match &args.policy {
        None => ANY_RELEASE.to_vec(),
        Some(path) => input::read(path, MAX_POLICY_LEN)?,
    };
    let demand = match Demand::read(&policy, &Compiled::new()) {
        Ok(demand) => demand,
        // The same reason as of `policy set`: with the place in the document.
        Err(error) => return Ok(Outcome::refused(super::policy::malformed(&policy, &error))),
    };
    let policies = [demand.digest];
    let issue = issue(args, &policies);
    let evidence = match &args.evidence {
        None => None,
        Some(path) => match Evidence::from_canonical(&input::read(path, Evidence::MAX_BYTES)?) {
            Ok(evidence) => Some(evidence),
            Err(error) => {
                let reasons = vec![malformed_evidence(&error)];
                *result = Some(AttestationResult::refused(&reasons, &issue));
                return Ok(Outcome::refused(reasons));
            }
        },
    };
    let bytes = match (&args.quote, &evidence) {
        (Some(path), _) => input::read_binary(path, MAX_QUOTE_FILE)?,
        (None, Some(evidence)) => evidence.quote.as_slice().to_vec(),
        (None, None) => Vec::new(),
    };
    let exact = strip_padding(&bytes);
    let padding = bytes.len().saturating_sub(exact.len());
    let quote = match tdx_verify::verify(exact, &collateral, anchors, args.at, &demand.policy.platform) {
        Ok(quote) => quote,
        Err(refused) => {
            let reasons = refused.refusals();
            *result = evidence.as_ref().map(|_| AttestationResult::refused(&reasons, &issue));
            let document = json!({
                "scope": scope(evidence.is_some()),
                "measurements": "not_appraised",
                "checks": reasons.iter().map(failed).collect::<Vec<_>>(),
            });
            return Ok(Outcome::judged(Vec::new(), document, reasons));
        }
    };
    let mut reasons = Vec::new();
    let mut document = platform(&quote, padding);
    let mut lines = vec![format!("platform: {}", quote.tcb().status)];
    if let Some(path) = &args.event_log {
        check_event_log(path, &quote, &mut reasons)?;
    }
    if let Some(path) = &args.config {
        check_config(path, &quote, &mut reasons)?;
    }
    match &evidence {
        None => lines.push("measurements: not appraised (give --evidence, --release and --trust)".to_owned()),
        Some(evidence) => {
            let releases = match releases(args)? {
                Ok(releases) => releases,
                Err(refused) => return Ok(refused),
            };
            let gpu = GpuFiles::read(&args.gpu)?.under(gpu.clone());
            let verdict = judge(evidence, &quote, &releases, &demand, gpu.grounds(), args.at);
            lines.extend(describe(&verdict));
            let of_files = !reasons.is_empty();
            set(&mut document, "checks", checks(&reasons, &verdict)?);
            reasons.extend(verdict.reasons());
            // What other files contradict is no finding of the verdict, and must not vanish from the result.
            *result = Some(match of_files {
                true => AttestationResult::refused(&reasons, &issue),
                false => AttestationResult::of(&verdict, &issue),
            });
            set(&mut document, "claims", serde_json::to_value(verdict.claims())?);
            set(&mut document, "scope", json!("evidence"));
            set(&mut document, "measurements", json!("appraised"));
            set(&mut document, "verdict", serde_json::to_value(&verdict)?);
        }
    }
    Ok(Outcome::judged(lines, document, reasons))
}

/// What a result is issued with: now, whatever the time of the appraisal was, which its claims say.
fn issue<'a>(args: &'a AppraiseArgs, policies: &'a [Sha256Digest]) -> Issue<'a> {
    let audience = args.audience.as_deref();
    Issue { policies, build: BUILD, challenge: None, audience, now: now(), until: u64::MAX }
}

/// Every check, also those that passed: of the other files first.
fn checks(reasons: &[Refusal], verdict: &Verdict) -> anyhow::Result<Value> {
    let mut all: Vec<_> = reasons.iter().map(failed).collect();
    for check in verdict.checks() {
        all.push(serde_json::to_value(check)?);
    }
    Ok(Value::Array(all))
}

/// A reason in the form of a check.
fn failed(reason: &Refusal) -> Value {
    let Refusal { code, field, detail, fix } = reason;
    json!({ "code": code, "field": field, "passed": false, "found": detail, "fix": fix })
}

/// A document has no connection to be bound to; how far the boot came is read from its own events.
fn judge(
    evidence: &Evidence,
    quote: &VerifiedQuote,
    releases: &[VerifiedRelease],
    demand: &Demand,
    gpu: GpuGrounds<'_>,
    now: u64,
) -> Verdict {
    let serving = evidence.events.iter().any(|event| event.name == EventName::Serve);
    let moment = if serving { Moment::Serving } else { Moment::KeyRelease };
    let (policy, rules) = (&demand.policy, demand.rules());
    let binding = Binding::Document { moment };
    Appraisal { evidence, binding, quote, releases, policy, rules, gpu, now }.appraise()
}

fn releases(args: &AppraiseArgs) -> anyhow::Result<Result<Vec<VerifiedRelease>, Outcome>> {
    let Some(trust) = &args.trust else { return Ok(Ok(Vec::new())) };
    let trust = match TrustPolicy::parse(&input::read(trust, TrustPolicy::MAX_BYTES)?) {
        Ok(trust) => trust,
        Err(error) => return Ok(Err(refused("release_policy_malformed", "trust", &error, "correct the trust policy"))),
    };
    let mut releases = Vec::new();
    for path in &args.release {
        match VerifiedRelease::verify(&input::read(path, MAX_BUNDLE)?, &trust, args.at) {
            Ok(release) => releases.push(release),
            Err(error) => return Ok(Err(Outcome::refused(vec![error.refusal()]))),
        }
    }
    Ok(Ok(releases))
}

/// Replays the firmware's log. It explains RTMR0 to RTMR2; that a release expects them is another question.
fn check_event_log(path: &Path, quote: &VerifiedQuote, reasons: &mut Vec<Refusal>) -> anyhow::Result<()> {
    let bytes = input::read(path, event_log::MAX_LOG_LEN)?;
    let fix = "give the log of the boot that made this quote";
    let replayed = EventLog::parse(&bytes)
        .map_err(|e| e.to_string())
        .and_then(|log| replay(&log, Indexing::MeasurementRegister).map_err(|e| e.to_string()));
    match replayed {
        Err(error) => reasons.push(Refusal::new("event_log_malformed", "event_log", error, fix)),
        Ok(rtmrs) => {
            for name in [RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2] {
                let quoted = quote.registers().value(name);
                if let Some(value) = rtmrs.value(name).filter(|value| *value != quoted) {
                    let detail = format!("expected {quoted} as quoted; found {value} from the log");
                    reasons.push(Refusal::new("event_log_mismatch", name.as_str(), detail, fix));
                }
            }
        }
    }
    Ok(())
}

fn check_config(path: &Path, quote: &VerifiedQuote, reasons: &mut Vec<Refusal>) -> anyhow::Result<()> {
    let bytes = input::read(path, GuestConfig::MAX_BYTES)?;
    if let Err(error) = GuestConfig::parse(&bytes) {
        let fix = "compose the configuration with the host agent";
        reasons.push(Refusal::new("config_malformed", "config", error.to_string(), fix));
    }
    let (expected, quoted) = (GuestConfig::mr_config_id(&bytes), quote.registers().mr_config_id);
    if expected != quoted {
        let detail = format!("expected {expected}; found {quoted}");
        let fix = "give the configuration that this guest was launched with";
        reasons.push(Refusal::new("config_digest_mismatch", "mr_config_id", detail, fix));
    }
    Ok(())
}

fn platform(quote: &VerifiedQuote, padding: usize) -> Value {
    json!({
        "scope": scope(false),
        "measurements": "not_appraised",
        "tcb": quote.tcb(),
        "platform": quote.platform(),
        "fmspc": hex::encode(quote.fmspc()),
        "td_attributes": hex::encode(quote.td_attributes().bits().to_le_bytes()),
        "xfam": hex::encode(quote.xfam().bits().to_le_bytes()),
        "mr_seam": quote.mr_seam(),
        "registers": quote.registers(),
        "report_data": hex::encode(quote.report_data()),
        "collateral_expires": quote.collateral_expires(),
        "padding_bytes": padding,
    })
}

fn describe(verdict: &Verdict) -> Vec<String> {
    verdict
        .registers()
        .iter()
        .map(|register| {
            let mark = if register.matches { "ok" } else { "MISMATCH" };
            format!("{:<16} {mark:<9} {}", register.name.as_str(), register.quoted)
        })
        .collect()
}

const fn scope(evidence: bool) -> &'static str {
    if evidence { "evidence" } else { "platform" }
}

fn set(document: &mut Value, field: &str, value: Value) {
    if let Some(fields) = document.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

fn refused(code: &str, field: &str, error: &dyn core::fmt::Display, fix: &str) -> Outcome {
    Outcome::refused(vec![Refusal::new(code, field, error.to_string(), fix)])
}

const MAX_QUOTE_FILE: usize = 64 * 1024;
const MAX_BUNDLE: usize = 4 << 20;
