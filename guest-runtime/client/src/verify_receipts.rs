// SPDX-License-Identifier: Apache-2.0
//! `verify-receipts`: whether receipts are all that a guest had signed when a quote of its committed to their number.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use attested_channel::{
    Audit, Chain, ChainError, Commitment, Quoted, ReceiptError, SignedReceipt, StoredProof, as_committed,
    stored::{verify_proof, verify_quote},
};
use clap::Args;
use serde_json::{Value, json};
use tdx_verify::{Hardware, TrustAnchors};
use types::{ConnectionProof, Document as _, Evidence, GuestConfig, Hex32, ModelId, Refusal, Sha256Digest};

use crate::{
    cli::REFUSED,
    folder::{evidence_name, proof_of, receipt_of},
    policy::{ClientPolicy, PolicyFileError, read},
    report,
    verifier::{Verifier, unix_now},
    verify_receipt::{parse, rfc3339},
};

/// What `verify-receipts` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  attested-proxy verify-receipts receipts/ --policy policy.json
  attested-proxy verify-receipts receipts/ --since proof-of-june.json --policy policy.json
  attested-proxy verify-receipts all/*.json --proof proof-0123456789abcdef.json --evidence evidence.json --json

Numbers of missing receipts are in `chains[].missing`, as first and last of each gap.
Exit codes: 0 complete, 2 not complete or refused, 64 wrong usage, 1 anything else.")]
pub(crate) struct Arguments {
    /// Receipts, with or without their salts, and folders of them (as `receipt-KEY-NUMBER.json`).
    #[arg(required = true)]
    receipts: Vec<PathBuf>,
    /// The proof that says how many receipts there are, as the proxy stores it or as the guest gave it; by default every
    /// `proof-KEY.json` of the folders.
    #[arg(long)]
    proof: Option<PathBuf>,
    /// An earlier proof of the same guest: only what was signed after it must be there.
    #[arg(long)]
    since: Option<PathBuf>,
    /// The evidence document that the proof names; by default the one that lies beside it or in a folder. Without a proof, one
    /// that was made after the receipts.
    #[arg(long)]
    evidence: Option<PathBuf>,
    /// Also appraise the guest by this client policy.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// The time to appraise at; by default now. Collateral is valid for weeks only.
    #[arg(long, value_parser = rfc3339, requires = "policy")]
    at: Option<u64>,
    /// Print one JSON document on standard output.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    reasons: Vec<Refusal>,
    chains: Vec<Value>,
    lines: Vec<String>,
}

/// What a quote commits to, and by whom.
struct Committed {
    instance_key: Hex32,
    commitment: Commitment,
    /// Digest of the guest's evidence document.
    evidence: Sha256Digest,
    model: Option<ModelId>,
    launch: Option<Sha256Digest>,
    appraised: Appraised,
}

enum Appraised {
    Not,
    Refused,
    Accepted(Hardware, Option<Sha256Digest>),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, anchors: &TrustAnchors) -> ExitCode {
    let found = match verify(arguments, anchors) {
        Ok(found) => found,
        Err(error) => return report::error(&error, arguments.json),
    };
    let accepted = found.reasons.is_empty();
    for line in found.lines.iter().cloned().chain(found.reasons.iter().map(ToString::to_string)) {
        eprintln!("attested-proxy: {line}");
    }
    if arguments.json && accepted {
        report::print(&json!({"accepted": true, "chains": found.chains}));
    } else if arguments.json {
        report::print(&json!({"accepted": false, "reasons": found.reasons, "chains": found.chains}));
    }
    if accepted { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

fn verify(arguments: &Arguments, anchors: &TrustAnchors) -> Result<Found, PolicyFileError> {
    let files = Files::list(&arguments.receipts)?;
    let now = arguments.at.unwrap_or_else(unix_now);
    let verifier = match &arguments.policy {
        Some(policy) => Some(Verifier::new(ClientPolicy::load(policy, now)?, anchors.clone())),
        None => None,
    };
    let mut found = Found::default();
    let mut judge = |given: &Path, evidence: Result<(Evidence, Evidence), Refusal>| {
        let (evidence, with_quote) = match evidence {
            Ok(both) => both,
            Err(reason) => {
                found.reasons.push(in_file(reason, given));
                return None;
            }
        };
        let judged = verifier.as_ref().map(|verifier| verifier.judge_document(&with_quote, now));
        let appraised = match judged {
            None => Appraised::Not,
            Some(Ok(verdict)) => Appraised::Accepted(verdict.hardware(), verdict.release().copied()),
            Some(Err(error)) => {
                found.reasons.extend(error.reasons().into_iter().map(|reason| in_file(reason, given)));
                Appraised::Refused
            }
        };
        Some(Committed::new(&evidence, &with_quote, appraised))
    };
    let mut committed = Vec::new();
    for (given, is_proof) in commitments(arguments, &files) {
        let evidence =
            if is_proof { read_proof(&given, arguments.evidence.as_deref(), &files)? } else { read_evidence(&given)? };
        committed.extend(judge(&given, evidence));
    }
    let since = match &arguments.since {
        Some(given) => Some(judge(given, read_proof(given, None, &files)?)),
        None => None,
    };
    let chains = read_chains(&files.receipts, &committed, arguments.proof.is_none(), &mut found)?;
    let since = match since {
        // An earlier proof that was refused: nothing is measured from it.
        Some(None) => return Ok(found),
        Some(Some(since)) => Some(since),
        None => None,
    };
    for committed in &committed {
        let since = since.as_ref().filter(|since| since.instance_key == committed.instance_key);
        let since = since.map_or(Commitment::START, |since| since.commitment);
        if since.count > committed.commitment.count {
            let detail = format!(
                "the earlier proof counts {} receipts, the later one {}",
                since.count, committed.commitment.count
            );
            found.reasons.push(Refusal::new(
                "proofs_out_of_order",
                "proof.receipt_count",
                detail,
                "exchange the proofs",
            ));
            continue;
        }
        let audit = chains.get(&committed.instance_key).map(|chain| chain.audit(&since, &committed.commitment));
        found.add(committed, &since, &audit.unwrap_or_default());
    }
    if let Some(since) = since.filter(|since| committed.iter().all(|later| later.instance_key != since.instance_key)) {
        let detail =
            format!("the earlier proof is of the guest {}, and no later one of it is here", since.instance_key);
        found.reasons.push(no_proof(&detail));
    }
    if committed.is_empty() && found.reasons.is_empty() {
        found.reasons.push(no_proof("no proof was given, and none lies beside the receipts"));
    }
    Ok(found)
}

/// The files that say what there should be: proofs, or else one evidence document.
fn commitments(arguments: &Arguments, files: &Files) -> Vec<(PathBuf, bool)> {
    match (&arguments.proof, &arguments.evidence) {
        (Some(proof), _) => vec![(proof.clone(), true)],
        (None, Some(evidence)) => vec![(evidence.clone(), false)],
        (None, None) => files.proofs.iter().map(|proof| (proof.clone(), true)).collect(),
    }
}

/// An evidence document whose own quote commits to receipts. Everything but the quote's signature is checked.
fn read_evidence(path: &Path) -> Result<Result<(Evidence, Evidence), Refusal>, PolicyFileError> {
    Ok(evidence_of(&read(path)?).and_then(|evidence| {
        verify_quote(&evidence).map_err(|error| error.refusal())?;
        Ok((evidence.clone(), evidence))
    }))
}

/// The evidence document that a proof names, and the same with the proof's quote. Everything but the quote's signature is
/// checked.
fn read_proof(
    path: &Path,
    evidence: Option<&Path>,
    files: &Files,
) -> Result<Result<(Evidence, Evidence), Refusal>, PolicyFileError> {
    let bytes = read(path)?;
    let stored = StoredProof::from_canonical(&bytes);
    let proof = match &stored {
        Ok(stored) => Ok(stored.proof.clone()),
        Err(_) => ConnectionProof::from_canonical(&bytes),
    };
    let proof = match proof {
        Ok(proof) => proof,
        Err(error) => {
            let fix = "give the proof as the proxy stored it";
            return Ok(Err(Refusal::new("proof_malformed", "proof", error.to_string(), fix)));
        }
    };
    let name = evidence_name(&proof.evidence);
    let beside =
        std::iter::once(path.with_file_name(&name)).chain(files.folders.iter().map(|folder| folder.join(&name)));
    let Some(evidence) = evidence.map(Path::to_owned).or_else(|| beside.into_iter().find(|path| path.exists())) else {
        let detail = format!("the evidence {} is neither given nor beside the proof", proof.evidence);
        return Ok(Err(Refusal::new("evidence_missing", "evidence", detail, "give --evidence")));
    };
    Ok(evidence_of(&read(&evidence)?).and_then(|evidence| {
        let verified = match &stored {
            Ok(stored) => stored.verify(&evidence),
            Err(_) => verify_proof(&proof, &evidence),
        };
        verified.map_err(|error| error.refusal())?;
        Ok((evidence.clone(), as_committed(evidence, &proof)))
    }))
}

fn evidence_of(bytes: &[u8]) -> Result<Evidence, Refusal> {
    Evidence::from_canonical(bytes).map_err(|error| appraise::malformed_evidence(&error))
}

impl Committed {
    fn new(evidence: &Evidence, with_quote: &Evidence, appraised: Appraised) -> Self {
        Self {
            instance_key: evidence.instance_key,
            commitment: Commitment::of(with_quote),
            evidence: evidence.digest().unwrap_or(Sha256Digest::ZERO),
            model: GuestConfig::parse(evidence.guest_config.as_slice()).map(|config| config.model.0).ok(),
            launch: Quoted::read(with_quote.quote.as_slice()).map(|quoted| quoted.launch).ok(),
            appraised,
        }
    }

    /// What a receipt that names this evidence must say of the guest.
    fn check(&self, signed: &SignedReceipt) -> Option<Refusal> {
        let receipt = &signed.receipt;
        if receipt.evidence != self.evidence {
            return None;
        }
        let (code, field) = if self.model.as_ref() != Some(&receipt.model) {
            ("receipt_model_mismatch", "receipt.model")
        } else if self.launch != Some(receipt.launch) {
            ("receipt_launch_mismatch", "receipt.launch")
        } else {
            return None;
        };
        let detail = format!("receipt {} says another than its guest's evidence", receipt.sequence);
        Some(Refusal::new(code, field, detail, NO_FIX))
    }
}

/// Reads, verifies and sorts all receipts by guest.
fn read_chains(
    receipts: &[PathBuf],
    committed: &[Committed],
    all_must_fit: bool,
    found: &mut Found,
) -> Result<HashMap<Hex32, Chain>, PolicyFileError> {
    let mut chains: HashMap<_, _> =
        committed.iter().map(|committed| (committed.instance_key, Chain::new(committed.instance_key))).collect();
    let mut strangers = BTreeMap::<Hex32, u64>::new();
    let mut told = Instant::now();
    for (done, path) in receipts.iter().enumerate() {
        if told.elapsed() > EVERY {
            told = Instant::now();
            eprintln!("attested-proxy: {done} of {} receipts are read", receipts.len());
        }
        let signed = match parse(&read(path)?) {
            Ok((signed, _)) => signed,
            Err(error) => {
                found.reasons.push(in_file(error.refusal(), path));
                continue;
            }
        };
        let key = signed.receipt.instance_key;
        let Some(chain) = chains.get_mut(&key) else {
            let count = strangers.entry(key).or_default();
            *count = count.saturating_add(1);
            continue;
        };
        let refusal = match chain.add(&signed) {
            Ok(()) => committed.iter().find_map(|committed| committed.check(&signed)),
            Err(ChainError::Receipt(error)) => Some(error.refusal()),
            Err(ChainError::OtherGuest { .. }) => Some(ReceiptError::Signature.refusal()),
        };
        found.reasons.extend(refusal.map(|refusal| in_file(refusal, path)));
    }
    for (key, count) in strangers {
        let line = format!("{count} receipts of the guest {key} are there, and no proof of its");
        if all_must_fit { found.reasons.push(no_proof(&line)) } else { found.lines.push(line) }
    }
    Ok(chains)
}

impl Found {
    /// Says what a chain lacks.
    fn add(&mut self, committed: &Committed, since: &Commitment, audit: &Audit) {
        let Committed { instance_key, commitment: Commitment { count, head }, .. } = committed;
        let mut refuse = |code: &str, field: &str, detail: String, fix: &str| {
            self.reasons.push(Refusal::new(code, field, format!("guest {instance_key}: {detail}"), fix));
        };
        if !audit.missing.is_empty() {
            let gap =
                |(first, last): &(u64, u64)| if first == last { first.to_string() } else { format!("{first}-{last}") };
            let gaps: Vec<_> = audit.missing.iter().take(MAX_GAPS).map(gap).collect();
            let more = if audit.missing.len() > MAX_GAPS { " and more" } else { "" };
            let missing = audit.missing_count();
            let all = count.saturating_sub(since.count);
            let detail = format!("{missing} of {all} receipts are missing: {}{more}", gaps.join(", "));
            refuse(
                "receipts_missing",
                "receipts",
                detail,
                "ask for the missing receipts; who gives none has dropped them",
            );
        }
        if !audit.forked.is_empty() {
            let detail = format!("there are two receipts with the number {}", numbers(&audit.forked));
            refuse("receipt_forked", "receipt.sequence", detail, NO_FIX);
        }
        if !audit.broken.is_empty() {
            let detail = format!("these do not name the hash of the one before: {}", numbers(&audit.broken));
            refuse("receipt_chain_broken", "receipt.previous", detail, NO_FIX);
        }
        if audit.head_differs {
            let detail = format!("the receipts lead to another head than {head}, which the quote covers");
            refuse("receipt_head_mismatch", "proof.receipt_head", detail, NO_FIX);
        }
        let (guest, hardware, release) = match committed.appraised {
            Appraised::Not => ("not_appraised", None, None),
            Appraised::Refused => ("refused", None, None),
            Appraised::Accepted(hardware, release) => ("accepted", Some(hardware), release),
        };
        self.chains.push(json!({
            "instance_key": instance_key, "since": since.count, "count": count, "head": head, "complete": audit.is_complete(),
            "found": audit.found, "beyond": audit.beyond, "missing": audit.missing, "broken": audit.broken,
            "forked": audit.forked, "prompt_tokens": audit.prompt_tokens,
            "completion_tokens": audit.completion_tokens, "guest": guest, "hardware": hardware, "release": release,
        }));
        if audit.is_complete() {
            let whose = match committed.appraised {
                Appraised::Accepted(..) => "which was accepted",
                Appraised::Refused => "which was refused",
                Appraised::Not => "which was NOT appraised: give --policy",
            };
            let (later, signed) = (audit.beyond, count.saturating_sub(since.count));
            let since = if since.count == 0 { String::new() } else { format!(" since it had signed {}", since.count) };
            self.lines.push(format!(
                "{signed} receipts are all that the guest {instance_key}, {whose}, had signed{since}; {later} later ones"
            ));
        }
    }
}

/// The files below the paths that were given.
struct Files {
    folders: Vec<PathBuf>,
    receipts: Vec<PathBuf>,
    proofs: Vec<PathBuf>,
}

impl Files {
    fn list(given: &[PathBuf]) -> Result<Self, PolicyFileError> {
        let mut files = Self { folders: Vec::new(), receipts: Vec::new(), proofs: Vec::new() };
        for path in given {
            if path.is_dir() {
                files.list_folder(path).map_err(|source| PolicyFileError::Read { path: path.clone(), source })?;
                files.folders.push(path.clone());
            } else {
                files.receipts.push(path.clone());
            }
        }
        files.receipts.sort();
        files.proofs.sort();
        Ok(files)
    }

    fn list_folder(&mut self, folder: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if receipt_of(name).is_some() {
                self.receipts.push(path);
            } else if proof_of(name).is_some() {
                self.proofs.push(path);
            }
        }
        Ok(())
    }
}

fn in_file(reason: Refusal, path: &Path) -> Refusal {
    let Refusal { code, field, detail, fix } = reason;
    Refusal { code, field, detail: format!("{}: {detail}", path.display()), fix }
}

fn no_proof(detail: &str) -> Refusal {
    Refusal::new(
        "proof_missing",
        "proof",
        detail,
        "give --proof: without it nobody can tell how many receipts there are",
    )
}

fn numbers(all: &[u64]) -> String {
    let some: Vec<_> = all.iter().take(MAX_GAPS).map(ToString::to_string).collect();
    format!("{}{}", some.join(", "), if all.len() > MAX_GAPS { " and more" } else { "" })
}

const NO_FIX: &str =
    "this guest has signed what contradicts itself: keep receipts and proof, and ask for an explanation";
/// Gaps and numbers that a line names; the document has all.
const MAX_GAPS: usize = 20;
const EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
