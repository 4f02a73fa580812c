// SPDX-License-Identifier: Apache-2.0
//! `verify-receipt`: a stored receipt, its evidence and, with a policy, the guest behind it.

use std::{path::PathBuf, process::ExitCode};

use attested_channel::{DeliveredReceipt, Quoted, ReceiptError, SignedReceipt, receipt::salted};
use clap::Args;
use serde_json::{Value, json};
use tdx_verify::TrustAnchors;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use types::{Document as _, Evidence, GuestConfig, Hex32, Refusal, Sha256Digest};

use crate::{
    cli::REFUSED,
    error::ClientError,
    folder::evidence_name,
    openai,
    policy::{ClientPolicy, PolicyFileError, read},
    report,
    verifier::{Verifier, unix_now},
};

/// What `verify-receipt` takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The receipt, with or without its salt.
    receipt: PathBuf,
    /// The evidence document that it names; by default the one that lies beside the receipt.
    #[arg(long)]
    evidence: Option<PathBuf>,
    /// Also appraise the guest by this client policy.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// The time to appraise at; by default now. Collateral is valid for weeks only.
    #[arg(long, value_parser = rfc3339, requires = "policy")]
    at: Option<u64>,
    /// The exact body of the request.
    #[arg(long)]
    request: Option<PathBuf>,
    /// The exact text of the answer, where it is one text.
    #[arg(long)]
    response: Option<PathBuf>,
    /// The whole answer as it came, as JSON: also for several choices and calls of tools.
    #[arg(long, conflicts_with = "response")]
    answer: Option<PathBuf>,
    /// Print one JSON document on standard output.
    #[arg(long)]
    json: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    File(#[from] PolicyFileError),
    #[error("refused")]
    Refused(Vec<Refusal>),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, anchors: &TrustAnchors) -> ExitCode {
    match verify(arguments, anchors) {
        Ok(found) => {
            eprintln!("attested-proxy: {}", summary(&found));
            if arguments.json {
                report::print(&found);
            }
            ExitCode::SUCCESS
        }
        Err(Failure::Refused(reasons)) => {
            report::reasons(&reasons, arguments.json);
            ExitCode::from(REFUSED)
        }
        Err(Failure::File(error)) => report::error(&error, arguments.json),
    }
}

/// One line for a person. Anybody can sign a receipt with a key of their own: only an appraisal says whose it is.
fn summary(found: &Value) -> String {
    match found.get("guest").and_then(Value::as_str) {
        Some("accepted") => format!("the receipt is valid and its guest was accepted ({found})"),
        _ => format!(
            "the receipt is signed by the key it names; whose key that is was NOT appraised: give --policy ({found})"
        ),
    }
}

fn verify(arguments: &Arguments, anchors: &TrustAnchors) -> Result<Value, Failure> {
    let bytes = read(&arguments.receipt)?;
    let (signed, salt) = parse(&bytes).map_err(|error| Failure::Refused(vec![error.refusal()]))?;
    let mut reasons = Vec::new();
    reasons.extend(signed.verify_signature().err().map(|error| error.refusal()));
    let receipt = &signed.receipt;
    let given = arguments.request.as_deref().map(read).transpose()?;
    let request = content(given, salt, receipt.request, ReceiptError::Request, &mut reasons);
    let given = match (&arguments.response, &arguments.answer) {
        (Some(path), _) => Some(read(path)?),
        (None, Some(path)) => match openai::response_of(&read(path)?) {
            Some(response) => Some(response),
            None => {
                let detail = "the file is no answer of this API";
                reasons.push(Refusal::new(
                    "answer_malformed",
                    "answer",
                    detail,
                    "give the body of the answer as it came",
                ));
                None
            }
        },
        (None, None) => None,
    };
    let response = content(given, salt, receipt.response, ReceiptError::Response, &mut reasons);
    let evidence = evidence_path(arguments, &receipt.evidence);
    let mut guest = "not_appraised";
    let mut hardware = None;
    let mut release = None;
    let matched = match &evidence {
        None => "not_given",
        Some(path) => {
            let bytes = read(path)?;
            let found = check_evidence(&signed, &bytes);
            if let (Ok(evidence), Some(policy)) = (&found, &arguments.policy) {
                let now = arguments.at.unwrap_or_else(unix_now);
                let verifier = Verifier::new(ClientPolicy::load(policy, now)?, anchors.clone());
                match verifier.judge_document(evidence, now) {
                    Ok(verdict) => {
                        guest = "accepted";
                        hardware = Some(verdict.hardware());
                        release = verdict.release().copied();
                    }
                    Err(error) => reasons.extend(error.reasons()),
                }
            }
            reasons.extend(found.err().unwrap_or_default());
            "matched"
        }
    };
    if evidence.is_none() && arguments.policy.is_some() {
        let error = ClientError::refuse(
            "evidence_missing",
            "evidence",
            "a policy was given, but no evidence",
            "give --evidence",
        );
        reasons.extend(error.reasons());
    }
    if reasons.is_empty() {
        Ok(json!({
            "accepted": true, "signature": "valid", "evidence": matched, "guest": guest, "hardware": hardware, "release": release,
            "request": request, "response": response, "receipt": receipt,
        }))
    } else {
        Err(Failure::Refused(reasons))
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<(SignedReceipt, Option<Hex32>), ReceiptError> {
    match DeliveredReceipt::from_canonical(bytes) {
        Ok(delivered) => Ok((delivered.signed(), Some(delivered.salt))),
        Err(_) => SignedReceipt::from_canonical(bytes).map(|signed| (signed, None)),
    }
}

/// Compares bytes with a hash of the receipt.
fn content(
    given: Option<Vec<u8>>,
    salt: Option<Hex32>,
    expected: Sha256Digest,
    error: ReceiptError,
    reasons: &mut Vec<Refusal>,
) -> &'static str {
    let Some(bytes) = given else { return "not_given" };
    match salt {
        Some(salt) if salted(&salt, &bytes) == expected => {}
        Some(_) => reasons.push(error.refusal()),
        None => reasons.push(Refusal::new(
            "receipt_salt_missing",
            "salt",
            "without its salt a receipt can't be compared with a request or an answer",
            "give the receipt as it was delivered to the client",
        )),
    }
    "matched"
}

fn evidence_path(arguments: &Arguments, digest: &Sha256Digest) -> Option<PathBuf> {
    let beside = || {
        let path = arguments.receipt.with_file_name(evidence_name(digest));
        path.exists().then_some(path)
    };
    arguments.evidence.clone().or_else(beside)
}

/// That the evidence is the one that the receipt names, and speaks of the same key, model and launch. The quote's signature
/// is not looked at.
pub(crate) fn check_evidence(signed: &SignedReceipt, bytes: &[u8]) -> Result<Evidence, Vec<Refusal>> {
    let receipt = &signed.receipt;
    let refuse = |code: &str, field: &str, detail: String| {
        Refusal::new(code, field, detail, "give the evidence document that the receipt names")
    };
    let found = Sha256Digest::of(bytes);
    if found != receipt.evidence {
        let detail = format!("expected SHA-256 {}; found {found}", receipt.evidence);
        return Err(vec![refuse("receipt_evidence_mismatch", "receipt.evidence", detail)]);
    }
    let evidence = Evidence::from_canonical(bytes).map_err(|error| vec![appraise::malformed_evidence(&error)])?;
    let mut reasons = Vec::new();
    if evidence.instance_key != receipt.instance_key {
        let detail = format!("expected {}; found {}", evidence.instance_key, receipt.instance_key);
        reasons.push(refuse("receipt_instance_key_mismatch", "receipt.instance_key", detail));
    }
    let model = GuestConfig::parse(evidence.guest_config.as_slice()).map(|config| config.model.0);
    if model.as_ref().ok() != Some(&receipt.model) {
        let expected = model.map_or_else(|error| error.to_string(), |model| model.to_string());
        let detail = format!("expected {expected}; found {}", receipt.model);
        reasons.push(refuse("receipt_model_mismatch", "receipt.model", detail));
    }
    let launch = Quoted::read(evidence.quote.as_slice()).map(|quoted| quoted.launch);
    if launch != Ok(receipt.launch) {
        let expected = launch.map_or_else(|error| error.to_string(), |launch| launch.to_string());
        let detail = format!("expected {expected}; found {}", receipt.launch);
        reasons.push(refuse("receipt_launch_mismatch", "receipt.launch", detail));
    }
    if reasons.is_empty() { Ok(evidence) } else { Err(reasons) }
}

pub(crate) fn rfc3339(text: &str) -> Result<u64, String> {
    let time =
        OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "a time is written 2026-01-31T12:00:00Z".to_owned())?;
    u64::try_from(time.unix_timestamp()).map_err(|_| "the time must not be before 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use attested_channel::Receipt;

    use super::*;
    use crate::receipts::tests::{delivered, proven};

    #[test]
    fn a_receipt_of_an_unknown_guest_is_not_called_valid() {
        assert!(summary(&json!({"guest": "accepted"})).contains("is valid"));
        for guest in [json!("not_appraised"), json!("x"), Value::Null] {
            let text = summary(&json!({"guest": guest}));
            assert!(text.contains("NOT appraised") && !text.contains("valid"), "{text}");
        }
    }

    /// The guest's configuration in these tests is none, so that the model never matches.
    #[test]
    fn a_receipt_says_what_its_evidence_says() {
        let (evidence, _) = proven(0, Sha256Digest::ZERO);
        let bytes = evidence.to_canonical().unwrap();
        let launch = Quoted::read(evidence.quote.as_slice()).unwrap().launch;
        let codes = |change: fn(&mut Receipt)| {
            let mut signed = delivered(0, Sha256Digest::ZERO, "a").signed();
            (signed.receipt.evidence, signed.receipt.launch) = (Sha256Digest::of(&bytes), launch);
            change(&mut signed.receipt);
            let reasons = check_evidence(&signed, &bytes).unwrap_err();
            reasons.into_iter().map(|reason| reason.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(|_| ()), ["receipt_model_mismatch"]);
        assert_eq!(
            codes(|receipt| receipt.launch = Sha256Digest::ZERO),
            ["receipt_model_mismatch", "receipt_launch_mismatch"]
        );
        assert_eq!(
            codes(|receipt| receipt.instance_key = Hex32::default()),
            ["receipt_instance_key_mismatch", "receipt_model_mismatch"]
        );
        assert_eq!(codes(|receipt| receipt.evidence = Sha256Digest::ZERO), ["receipt_evidence_mismatch"]);
    }
}
