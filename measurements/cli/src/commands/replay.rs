// SPDX-License-Identifier: Apache-2.0
//! `measure replay`: the registers that an event log leads to.

use std::path::PathBuf;

use clap::Args;
use event_log::{Agreement, EventLog, Indexing, Pairing, Rtmrs, event_type_name, pair, register_of, replay};
use serde_json::{Value, json};
use tdx_spec::quote::MAX_QUOTE_LEN;
use types::{Refusal, Registers};

use crate::{
    commands::quoted,
    input,
    output::{Failure, Report},
};

/// Replays an event log and, given a quote, compares the registers.
///
/// A match shows that these digests were extended in this order. It does not show that the quote is
/// authentic, nor that an event's data is what was measured.
#[derive(Args)]
#[command(
    after_help = "Example:\n  measure replay --event-log /sys/firmware/acpi/tables/data/CCEL --quote quote.dat --json\n\nFiles may be raw, hexadecimal or base64. Which event differs from a release's: measure explain."
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
    /// Show the events, too.
    #[arg(long)]
    events: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let bytes = input::binary(&arguments.event_log, event_log::MAX_LOG_LEN as u64)?;
    let refused = |detail: String| {
        Refusal::new("event_log_malformed", "event_log", detail, "give the log as the firmware wrote it")
    };
    let log = EventLog::parse(&bytes).map_err(|error| refused(error.to_string()))?;
    let indexing = if arguments.pcr { Indexing::Pcr } else { Indexing::MeasurementRegister };
    let Rtmrs([rtmr_0, rtmr_1, rtmr_2, rtmr_3]) = replay(&log, indexing).map_err(|error| refused(error.to_string()))?;
    let quoted = match &arguments.quote {
        Some(path) => Some(quoted::registers(&input::binary(path, MAX_QUOTE_LEN as u64)?)?),
        None => None,
    };
    let pairings = pairings(&log, indexing, quoted.as_ref()).map_err(|error| refused(error.to_string()))?;
    let compared = quoted.is_some();
    let json = json!({
        "rtmr_0": rtmr_0, "rtmr_1": rtmr_1, "rtmr_2": rtmr_2, "rtmr_3": rtmr_3,
        "registers": pairings.iter().map(|pairing| register(pairing, compared)).collect::<Vec<_>>(),
        "events": events(&log, indexing),
    });
    let mut text: String = pairings.iter().map(|pairing| line(pairing, compared)).collect();
    if arguments.events {
        text.push_str(&event_lines(&log, indexing));
    }
    let reasons = if compared { pairings.iter().filter_map(mismatch).collect() } else { vec![] };
    Ok(Report { json, text, reasons })
}

/// The log beside the quote; without one, beside what the log itself leads to.
fn pairings(
    log: &EventLog<'_>,
    indexing: Indexing,
    quoted: Option<&Registers>,
) -> Result<[Pairing; 4], event_log::ReplayError> {
    let zero = types::Sha384Digest::ZERO;
    let none = Registers {
        mr_td: zero,
        rtmr_0: zero,
        rtmr_1: zero,
        rtmr_2: zero,
        rtmr_3: zero,
        mr_config_id: zero,
        mr_owner: zero,
        mr_owner_config: zero,
    };
    pair(log, indexing, quoted.unwrap_or(&none))
}

fn register(pairing: &Pairing, compared: bool) -> Value {
    let Pairing { register, quoted, replayed, positions, agreement } = pairing;
    let in_log = !positions.is_empty();
    let quoted = (compared && in_log).then_some(quoted);
    let holds = match agreement {
        Agreement::Match => Some(positions.len()),
        Agreement::Prefix { events } => Some(*events),
        Agreement::Mismatch | Agreement::NotInLog => None,
    };
    json!({
        "register": register, "replayed": replayed, "quoted": quoted, "in_log": in_log, "events": positions.len(),
        "matches": quoted.map(|quoted| quoted == replayed), "events_in_quote": holds.filter(|_| compared),
    })
}

fn line(pairing: &Pairing, compared: bool) -> String {
    let count = pairing.positions.len();
    let mark = match pairing.agreement {
        _ if !compared => format!("{count} events"),
        Agreement::Match => format!("= quote, {count} events"),
        Agreement::Prefix { events } => format!("differs: the quote holds the first {events} of {count} events"),
        Agreement::Mismatch => format!("differs from the quote, {count} events"),
        Agreement::NotInLog => "not in the log".to_owned(),
    };
    format!("{} {} {mark}\n", pairing.register, pairing.replayed)
}

fn events(log: &EventLog<'_>, indexing: Indexing) -> Vec<Value> {
    log.events
        .iter()
        .map(|event| {
            json!({
                "register": event.is_extended().then(|| register_of(event, indexing)).flatten(),
                "type": event_type_name(event.event_type),
                "digest": event.sha384(),
                "label": event.label().text,
                "data_matches_digest": event.binding().matches(),
            })
        })
        .collect()
}

fn event_lines(log: &EventLog<'_>, indexing: Indexing) -> String {
    let mut text = String::new();
    for (position, event) in log.events.iter().enumerate() {
        let register = register_of(event, indexing).map_or("note", |register| register.as_str());
        let digest = event.sha384().map(|digest| digest.to_string()).unwrap_or_default();
        let covered = if event.binding().matches() { "" } else { " [label]" };
        let label = event.label().text;
        text.push_str(&format!("{position:>4} {register} {} {label}{covered}\n", digest.get(..16).unwrap_or("")));
    }
    text
}

fn mismatch(pairing: &Pairing) -> Option<Refusal> {
    let Pairing { register, quoted, replayed, positions, agreement } = pairing;
    let more = match agreement {
        Agreement::Match | Agreement::NotInLog => return None,
        Agreement::Prefix { events } => {
            format!(
                "; the quote has the first {events} of its {} events, event {} and what follows are not in it",
                positions.len(),
                positions.get(*events)?
            )
        }
        Agreement::Mismatch => "; no beginning of the log leads there".to_owned(),
    };
    Some(Refusal::new(
        "register_mismatch",
        register.as_str(),
        format!("the log leads to {replayed}, the quote has {quoted}{more}"),
        "log and quote must be of the same boot, the quote not older than the log's last event",
    ))
}
