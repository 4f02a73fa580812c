// SPDX-License-Identifier: Apache-2.0
//! `measure explain`: why a quote does not match a release.

mod inputs;
mod table;

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgGroup, Args};
use event_log::{EventLog, Indexing};
use explain::{FirmwareLog, Input, Knowledge, Reference, Runtime, Standing, explain};
use serde_json::json;
use types::{MachineShape, Refusal};

use crate::{
    input, measured,
    output::{self, Failure, Report},
};
use inputs::{LoadedRelease, Subject};

/// Explains why the registers of a quote are not those of a release: which event differs, what it depends on, and
/// what to change.
///
/// The quote's signatures are not checked here; `attestation-service appraise` does that. A match is no appraisal.
#[derive(Args)]
#[command(group = ArgGroup::new("subject").required(true).args(["evidence", "quote"]))]
#[command(
    after_help = "Examples:\n  measure explain --evidence evidence.json --release release.sigstore.json --trust trust.json\n  \
    measure explain --quote quote.dat --event-log CCEL --shape shape.toml --release statement.json --events\n  \
    measure explain --quote quote.dat --release statement.json --cmdline \"quiet debug\" --json\n\n\
    Binary files may be raw, hexadecimal or base64. Exit status 0: all registers match. 2: they do not, each cause is a reason."
)]
pub(crate) struct Arguments {
    /// Evidence of a guest (JSON), with quote, logs and configuration.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["event_log", "config"])]
    evidence: Option<PathBuf>,
    /// A TD quote.
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// The release: a bundle or a statement.
    #[arg(long, value_name = "FILE")]
    release: PathBuf,
    /// Verify the bundle by this trust policy; without it the release is taken unverified.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The firmware's log (CCEL; with --pcr TCG2).
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
    /// The log counts PCRs, as a TPM's does, not TDX registers.
    #[arg(long, requires = "event_log")]
    pcr: bool,
    /// The guest's configuration, exactly as it was given to the guest.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The machine's shape (TOML), instead of the one that the configuration names.
    #[arg(long, value_name = "FILE")]
    shape: Option<PathBuf>,
    /// A command line that the guest may have got; may be repeated.
    #[arg(long, value_name = "TEXT")]
    cmdline: Vec<String>,
    /// Another release that the guest's files may be from; may be repeated.
    #[arg(long, value_name = "FILE")]
    known: Vec<PathBuf>,
    /// Another configuration that the guest may have been launched for; may be repeated.
    #[arg(long, value_name = "FILE")]
    known_config: Vec<PathBuf>,
    /// ACPI digests of further machines, as `measure acpi --json` prints them; may be repeated.
    #[arg(long, value_name = "FILE")]
    acpi: Vec<PathBuf>,
    /// Show every event, not only those that differ.
    #[arg(long)]
    events: bool,
    /// Print one JSON document (chrysalis/explanation/v1).
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs and prints. On a terminal the causes stand in the table; as JSON they are `reasons`, too.
pub(crate) fn finish(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(Report { text, reasons, .. }) if !arguments.json => {
            println!("{}", text.trim_end());
            if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_REFUSED) }
        }
        result => output::finish(arguments.json, result),
    }
}

fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let release = LoadedRelease::read(&arguments.release, arguments.trust.as_deref())?;
    let subject = match (&arguments.evidence, &arguments.quote) {
        (Some(path), _) => Subject::of_evidence(path)?,
        (None, Some(path)) => Subject::of_quote(path, arguments.event_log.as_deref(), arguments.config.as_deref())?,
        (None, None) => return Err(anyhow::anyhow!("give --evidence or --quote").into()),
    };
    let given = arguments.shape.as_deref().map(input::shape).transpose()?;
    let log = subject.log.as_deref().map(EventLog::parse).transpose().map_err(|error| {
        Refusal::new("event_log_malformed", "event_log", error.to_string(), "give the log as the firmware wrote it")
    })?;
    let indexing = if arguments.pcr { Indexing::Pcr } else { Indexing::MeasurementRegister };
    let others = arguments.known.iter().map(|path| LoadedRelease::read(path, None)).collect::<Result<Vec<_>, _>>()?;
    let images: Vec<_> = others.iter().map(|other| (other.name.clone(), &other.values.image)).collect();
    let configurations = inputs::configurations(&arguments.known_config)?;
    let configurations: Vec<_> = configurations.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
    let mut acpi = release.values.acpi.clone();
    acpi.extend(measured::references(&arguments.acpi)?);
    // Machines of others only help to name a cause; they make no expectation.
    let mut further: Vec<_> = others.iter().flat_map(|other| other.values.acpi.iter().cloned()).collect();
    further.extend(inputs::published(given.as_ref().or(subject.shape.as_ref())));
    let shapes: Vec<MachineShape> = release.values.registers.iter().map(|registers| registers.shape.clone()).collect();
    let explanation = explain(&Input {
        registers: &subject.registers,
        quote: Standing::Unverified,
        reference: Reference { standing: release.standing, image: &release.values.image, acpi: &acpi, shapes: &shapes },
        shape: given.as_ref().or(subject.shape.as_ref()),
        log: log.as_ref().map(|log| FirmwareLog { log, indexing }),
        runtime: subject.runtime.as_ref().map(|(claimed, expected)| Runtime { claimed, expected }),
        configuration: subject.configuration.as_deref(),
        knowledge: Knowledge {
            images: &images,
            acpi: &further,
            command_lines: &arguments.cmdline,
            configurations: &configurations,
        },
    });
    let text = table::render(&explanation, &release, arguments.events);
    let reasons = explanation.reasons();
    Ok(Report { json: json!(explanation), text, reasons })
}

const EXIT_REFUSED: u8 = 2;
