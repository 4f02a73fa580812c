// SPDX-License-Identifier: Apache-2.0
//! `measure replay`: the registers that an event log leads to.

use std::path::{Path, PathBuf};

use clap::Args;
use event_log::{EventLog, Indexing, Rtmrs, event_type_name, register_of, replay};
use serde_json::{Value, json};
use tdx_spec::{Quote, quote::MAX_QUOTE_LEN};
use types::{Refusal, RegisterName, Sha384Digest};

use crate::{
    input,
    output::{Failure, Report},
};

/// Replays an event log and, given a quote, compares the registers.
///
/// A match shows that these digests were extended in this order. It does not show that the quote is
/// authentic, nor that an event's data is what was measured.
#[derive(Args)]
#[command(
    after_help = "Example:\n  measure replay --event-log /sys/firmware/acpi/tables/data/CCEL --quote quote.dat --json\n\nFiles may be raw, hexadecimal or base64."
)]
pub(crate) struct Arguments {
    /// The log (CCEL; with --pcr TCG2).
    #[arg(long)]
    event_log: PathBuf,
    /// A TD quote to compare with.
    #[arg(long)]
    quote: Option<PathBuf>,
    /// The log counts PCRs, as a TPM's does, not TDX registers.
    #[arg(long)]
    pcr: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let bytes = input::binary(&arguments.event_log, MAX_LOG)?;
    let refused = |detail: String| {
        Refusal::new("event_log_malformed", "event_log", detail, "give the log as the firmware wrote it")
    };
    let log = EventLog::parse(&bytes).map_err(|error| refused(error.to_string()))?;
    let indexing = if arguments.pcr { Indexing::Pcr } else { Indexing::MeasurementRegister };
    let rtmrs = replay(&log, indexing).map_err(|error| refused(error.to_string()))?;
    let logged =
        |name| log.events.iter().any(|event| event.is_extended() && register_of(event, indexing) == Some(name));
    let quoted = arguments.quote.as_deref().map(quoted_registers).transpose()?;
    let mut reasons = Vec::new();
    let mut registers = Vec::new();
    let mut text = String::new();
    for name in REGISTERS {
        let Some(replayed) = rtmrs.value(name) else { continue };
        let found = quoted.as_ref().and_then(|quoted| quoted.value(name)).filter(|_| logged(name));
        let matches = found.map(|found| found == replayed);
        registers.push(json!({ "register": name, "replayed": replayed, "quoted": found, "matches": matches, "in_log": logged(name) }));
        let mark = match matches {
            Some(true) => "= quote",
            Some(false) => "differs from the quote",
            None if quoted.is_some() => "not in the log",
            None => "",
        };
        text.push_str(&format!("{name} {replayed} {mark}\n"));
        if let (Some(false), Some(found)) = (matches, found) {
            reasons.push(mismatch(name, replayed, found));
        }
    }
    let Rtmrs([rtmr_0, rtmr_1, rtmr_2, rtmr_3]) = rtmrs;
    let json = json!({
        "rtmr_0": rtmr_0, "rtmr_1": rtmr_1, "rtmr_2": rtmr_2, "rtmr_3": rtmr_3,
        "registers": registers, "events": events(&log, indexing),
    });
    Ok(Report { json, text, reasons })
}

fn quoted_registers(path: &Path) -> Result<Rtmrs, Failure> {
    let bytes = input::binary(path, MAX_QUOTE_LEN as u64)?;
    // The quote device pads with zeros; anything else behind the quote is refused.
    let malformed = |detail| Refusal::new("quote_malformed", "quote", detail, "give the quote as the guest got it");
    let (quote, rest) = Quote::parse_prefix(&bytes).map_err(|error| malformed(error.to_string()))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(malformed(format!("{} bytes follow the quote", rest.len())).into());
    }
    let report = quote.body.report();
    Ok(Rtmrs([report.rtmr_0, report.rtmr_1, report.rtmr_2, report.rtmr_3].map(Sha384Digest::from_bytes)))
}

fn events(log: &EventLog<'_>, indexing: Indexing) -> Vec<Value> {
    log.events
        .iter()
        .map(|event| {
            json!({
                "register": event.is_extended().then(|| register_of(event, indexing)).flatten(),
                "type": event_type_name(event.event_type),
                "digest": event.sha384(),
            })
        })
        .collect()
}

fn mismatch(name: RegisterName, replayed: &Sha384Digest, quoted: &Sha384Digest) -> Refusal {
    Refusal::new(
        "register_mismatch",
        name.as_str(),
        format!("the log leads to {replayed}, the quote has {quoted}"),
        "log and quote must be of the same boot, the quote not older than the log's last event",
    )
}

const REGISTERS: [RegisterName; 4] =
    [RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2, RegisterName::Rtmr3];
const MAX_LOG: u64 = 1 << 20;
