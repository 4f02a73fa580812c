// SPDX-License-Identifier: Apache-2.0
//! One explanation in the making.

use calculator::{AcpiReference, ImageMeasurements};
use event_log::{Agreement, Pairing, pair, pair_runtime};
use types::{MachineShape, RegisterName, Sha384Digest};

use crate::{
    causes,
    document::{
        Basis, ExpectedValue, Explanation, Finding, LogStanding, RegisterExplanation, RegisterLog, SCHEMA, Searched,
        ShapeSource, Standing, Verdict,
    },
    input::Input,
    limits,
    model::{COMPUTED, Lack, Model, describe},
    nearest,
    table::Table,
};

/// Explains the registers of a quote.
///
/// Takes bounded time whatever the input: see [`limits`].
#[must_use]
pub fn explain(input: &Input<'_>) -> Explanation {
    let mut session = Session::new(input);
    let tables = session.tables();
    session.judge_log(&tables);
    causes::find(&mut session, &tables);
    session.conclude(tables)
}

/// What is known so far.
pub(crate) struct Session<'a> {
    pub(crate) input: &'a Input<'a>,
    pub(crate) image: &'a ImageMeasurements,
    /// ACPI files of the reference, then all others that are known.
    pub(crate) acpi: Vec<AcpiReference>,
    pub(crate) shape: Option<MachineShape>,
    shape_from: ShapeSource,
    pub(crate) model: Model,
    pairings: Option<[Pairing; 4]>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) limits: Vec<String>,
    pub(crate) searched: Searched,
    /// The size of memory that the quote shows, where it is another.
    pub(crate) memory: Option<u32>,
    /// The machine whose ACPI files the quote shows, where it is another.
    pub(crate) machine: Option<AcpiReference>,
}

impl<'a> Session<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let image = input.reference.image;
        let own = input.reference.acpi.get(..limits::MAX_ACPI).unwrap_or(input.reference.acpi);
        let acpi = own.iter().chain(input.knowledge.acpi).take(limits::MAX_ACPI).cloned().collect();
        let mut findings = Vec::new();
        let pairings = input.log.and_then(|log| match pair(log.log, log.indexing, input.registers) {
            Ok(pairings) => Some(pairings),
            Err(error) => {
                findings.push(Finding {
                    code: "log_unusable",
                    register: None,
                    event: None,
                    field: "event_log",
                    basis: Basis::Label,
                    detail: format!("the log cannot be replayed: {error}"),
                    fix: "give the log as the firmware wrote it (CCEL, or TCG2 with PCR indexes)".to_owned(),
                });
                None
            }
        });
        let (shape, shape_from) = match input.shape {
            Some(shape) => (Some(shape.clone()), ShapeSource::Claimed),
            None => match nearest::best_of_listed(input, own, pairings.as_ref()) {
                Some(shape) => (Some(shape), ShapeSource::Nearest),
                None => (None, ShapeSource::Unknown),
            },
        };
        let model = Model::of(image, own, shape.as_ref());
        Self {
            input,
            image,
            acpi,
            shape,
            shape_from,
            model,
            pairings,
            findings,
            limits: Vec::new(),
            searched: Searched::default(),
            memory: None,
            machine: None,
        }
    }

    /// Adds a finding.
    pub(crate) fn find(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// The quoted value of a register.
    pub(crate) const fn quoted(&self, name: RegisterName) -> &'a Sha384Digest {
        self.input.registers.value(name)
    }

    /// The values that a register may have; empty when nothing is known.
    pub(crate) fn expected(&self, name: RegisterName) -> Vec<ExpectedValue> {
        let place = COMPUTED.iter().position(|computed| *computed == name);
        if let Some(values) = place.and_then(|place| self.model.values.get(place)) {
            return values.clone();
        }
        let value = |value, reason: &str| vec![ExpectedValue { value, reason: reason.to_owned() }];
        match name {
            RegisterName::Rtmr3 => {
                let expected = causes::runtime::expected_boot(self.input);
                expected.map_or_else(Vec::new, |events| {
                    value(types::event::replay(events), "the events of the boot, from the facts of the evidence")
                })
            }
            RegisterName::MrConfigId => self.input.configuration.map_or_else(Vec::new, |bytes| {
                value(types::GuestConfig::mr_config_id(bytes), "SHA-384 of the configuration as given")
            }),
            _ => value(Sha384Digest::ZERO, "no owner is set"),
        }
    }

    /// True when the quoted value is an expected one.
    pub(crate) fn is_match(&self, name: RegisterName) -> bool {
        self.expected(name).iter().any(|expected| expected.value == *self.quoted(name))
    }

    fn tables(&self) -> Vec<Table<'a>> {
        let mut tables: Vec<Table<'a>> = event_log::RUN_TIME
            .into_iter()
            .map(|register| {
                let pairing = self.pairings.iter().flatten().find(|pairing| pairing.register == register);
                Table::new(&self.model, register, self.input.log, pairing)
            })
            .collect();
        Table::mark_moved(&mut tables);
        tables
    }

    /// Says where the log is not the quote's.
    fn judge_log(&mut self, tables: &[Table<'a>]) {
        for table in tables {
            let name = table.register.as_str();
            let (code, detail, fix) = match (table.log, self.pairing(table.register)) {
                (RegisterLog::Differs, _) => (
                    "log_not_of_this_quote",
                    format!("the log's {} events for {name} do not lead to the quoted value", table.logged.len()),
                    "give the log of the boot that the quote is of; these events say nothing about it",
                ),
                (RegisterLog::Beyond, Some(pairing)) => (
                    "log_goes_beyond_quote",
                    format!(
                        "the quoted value of {name} is reached after {} of the log's {} events",
                        table.logged.len(),
                        pairing.positions.len()
                    ),
                    "take quote and log at the same time; events were added to the log, or the quote is older",
                ),
                (RegisterLog::NotInLog, _)
                    if table.register != RegisterName::Rtmr3 && *self.quoted(table.register) != Sha384Digest::ZERO =>
                {
                    (
                        "log_incomplete",
                        format!("the log has no event for {name}, which is not zero in the quote"),
                        "give the whole log of the boot that the quote is of",
                    )
                }
                _ => continue,
            };
            self.find(Finding {
                code,
                register: Some(table.register),
                event: None,
                field: "event_log",
                basis: Basis::Digest,
                detail,
                fix: fix.to_owned(),
            });
        }
    }

    fn pairing(&self, register: RegisterName) -> Option<&Pairing> {
        self.pairings.iter().flatten().find(|pairing| pairing.register == register)
    }

    fn conclude(mut self, tables: Vec<Table<'a>>) -> Explanation {
        self.note_limits();
        let registers: Vec<_> = RegisterName::ALL.map(|name| self.register(name, &tables)).into();
        let fits = |register: &RegisterExplanation| match register.verdict {
            Verdict::Match => true,
            Verdict::Mismatch => false,
            Verdict::NotInLog | Verdict::NotCompared => !COMPUTED.contains(&register.name),
        };
        let nearest = nearest::find(&self);
        Explanation {
            schema: SCHEMA,
            matches: registers.iter().all(fits) && self.findings.is_empty(),
            quote: self.input.quote,
            reference: self.input.reference.standing,
            log: self.log_standing(),
            shape: self.shape,
            shape_from: self.shape_from,
            registers,
            findings: self.findings,
            nearest,
            limits: self.limits,
            searched: self.searched,
        }
    }

    fn register(&self, name: RegisterName, tables: &[Table<'a>]) -> RegisterExplanation {
        let expected = self.expected(name);
        let table = tables.iter().find(|table| table.register == name);
        let verdict = if expected.is_empty() {
            let logged = table.is_some_and(|table| table.log == RegisterLog::NotInLog);
            if logged { Verdict::NotInLog } else { Verdict::NotCompared }
        } else if self.is_match(name) {
            Verdict::Match
        } else {
            Verdict::Mismatch
        };
        let (mut events, events_left_out) = table.map_or_else(Default::default, Table::explained);
        let mut log = table.map_or(RegisterLog::None, |table| table.log);
        if let (RegisterName::Rtmr3, Some(runtime)) = (name, self.input.runtime) {
            events = causes::runtime::events(&runtime, self.input);
            log = match pair_runtime(runtime.claimed, self.input.registers).agreement {
                Agreement::Match => RegisterLog::Agrees,
                Agreement::Prefix { .. } => RegisterLog::Beyond,
                Agreement::Mismatch => RegisterLog::Differs,
                Agreement::NotInLog => RegisterLog::NotInLog,
            };
        }
        RegisterExplanation { name, expected, found: *self.quoted(name), verdict, log, events, events_left_out }
    }

    fn log_standing(&self) -> LogStanding {
        let Some(pairings) = &self.pairings else {
            return if self.input.log.is_some() { LogStanding::Differs } else { LogStanding::None };
        };
        let logged: Vec<_> = pairings.iter().filter(|p| p.agreement != Agreement::NotInLog).collect();
        match logged.iter().filter(|pairing| pairing.agreement == Agreement::Match).count() {
            0 => LogStanding::Differs,
            n if n == logged.len() => LogStanding::Agrees,
            _ => LogStanding::Partly,
        }
    }

    fn note_limits(&mut self) {
        let mut note = |text: &str| self.limits.push(text.to_owned());
        if self.input.quote == Standing::Unverified {
            note(
                "the quote's signatures were not verified: what is said holds for these registers, whoever wrote them",
            );
        }
        if self.input.reference.standing == Standing::Unverified {
            note("the release was not verified: anybody may have written its reference values");
        }
        if self.input.log.is_none() {
            note(
                "without the firmware's log only whole registers can be compared, with a bounded list of alternatives",
            );
        }
        if self.input.configuration.is_none() {
            note("no configuration was given: mr_config_id is not compared");
        }
        if self.input.runtime.is_none() {
            note("no list of RTMR3 events was given: rtmr_3 is not compared");
        }
        let shape = self.shape.as_ref().map(describe).unwrap_or_default();
        for lack in &self.model.lacks {
            self.limits.push(match lack {
                Lack::Shape => {
                    "no machine was named and none is known: memory, ACPI files and kernel header are not compared".to_owned()
                }
                Lack::Acpi => format!("the reference has no ACPI digests for {shape}: rtmr_0 has no expected value"),
                Lack::Kernel => {
                    format!("the reference has no kernel with the header that QEMU writes for {shape}: rtmr_1 has no expected value")
                }
                Lack::Memory => format!("the image cannot run on {shape}"),
            });
        }
    }
}
