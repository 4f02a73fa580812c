// SPDX-License-Identifier: Apache-2.0
//! Expected and logged events of one register, side by side.

use event_log::{Agreement, Pairing, event_type_name};
use types::{RegisterName, Sha384Digest};

use crate::{
    align::{Logged, Row, align},
    document::{EventExplanation, EventVerdict, RegisterLog},
    input::FirmwareLog,
    limits,
    model::{Model, ModelEvent},
};

/// The events of a register.
#[derive(Debug, Clone)]
pub(crate) struct Table<'a> {
    pub(crate) register: RegisterName,
    pub(crate) expected: Vec<ModelEvent>,
    pub(crate) logged: Vec<Logged<'a>>,
    pub(crate) rows: Vec<(Row, EventVerdict)>,
    pub(crate) log: RegisterLog,
}

impl<'a> Table<'a> {
    pub(crate) fn new(
        model: &Model,
        register: RegisterName,
        log: Option<FirmwareLog<'a>>,
        pairing: Option<&Pairing>,
    ) -> Self {
        let expected: Vec<ModelEvent> = model.of_register(register).cloned().collect();
        let (standing, shown) = match pairing.map(|pairing| pairing.agreement) {
            None => (RegisterLog::None, 0),
            Some(Agreement::Match) => (RegisterLog::Agrees, usize::MAX),
            Some(Agreement::Prefix { events }) => (RegisterLog::Beyond, events),
            Some(Agreement::Mismatch) => (RegisterLog::Differs, usize::MAX),
            Some(Agreement::NotInLog) => (RegisterLog::NotInLog, 0),
        };
        let positions = pairing.map_or(&[][..], |pairing| &pairing.positions);
        let logged: Vec<Logged<'a>> = positions
            .iter()
            .take(shown)
            .enumerate()
            .filter_map(|(position, at)| {
                let event = log?.log.events.get(*at)?;
                Some(Logged { position, event, digest: event.sha384()?, kind: event.label().kind })
            })
            .collect();
        let in_log = matches!(standing, RegisterLog::Agrees | RegisterLog::Beyond | RegisterLog::Differs);
        let borrowed: Vec<&ModelEvent> = expected.iter().collect();
        let rows = align(&borrowed, &logged);
        let rows = rows.into_iter().map(|row| (row, verdict(&row, &expected, &logged, in_log))).collect();
        Self { register, expected, logged, rows, log: standing }
    }

    /// True when the log's events are those that the quote holds.
    pub(crate) const fn is_of_quote(&self) -> bool {
        matches!(self.log, RegisterLog::Agrees | RegisterLog::Beyond)
    }

    /// Rows with a verdict, as expected and logged event.
    pub(crate) fn with(
        &self,
        wanted: EventVerdict,
    ) -> impl Iterator<Item = (Option<&ModelEvent>, Option<&Logged<'a>>)> {
        self.rows.iter().filter(move |(_, verdict)| *verdict == wanted).map(|(row, _)| self.sides(row))
    }

    /// Pairs with differing or unknown digests.
    pub(crate) fn differing(&self) -> impl Iterator<Item = (&ModelEvent, &Logged<'a>)> {
        self.with(EventVerdict::Mismatch).filter_map(|(expected, logged)| Some((expected?, logged?)))
    }

    /// The logged digest beside an expected event.
    pub(crate) fn logged_as(&self, name: &str) -> Option<&Logged<'a>> {
        let named = |row: &Row| self.sides(row).0.is_some_and(|event| event.name == name);
        self.rows.iter().find(|(row, _)| named(row)).and_then(|(row, _)| self.sides(row).1)
    }

    /// Events that are missing at one place and were added at another are moved.
    pub(crate) fn mark_moved(tables: &mut [Self]) {
        let unmatched = |tables: &[Self], wanted: EventVerdict| -> Vec<(usize, usize, Sha384Digest)> {
            let mut found = Vec::new();
            for (t, table) in tables.iter().enumerate().filter(|(_, table)| table.is_of_quote()) {
                for (r, (row, _)) in table.rows.iter().enumerate().filter(|(_, (_, verdict))| *verdict == wanted) {
                    let (expected, logged) = table.sides(row);
                    let digest = expected.and_then(|event| event.digest).or(logged.map(|logged| logged.digest));
                    found.extend(digest.map(|digest| (t, r, digest)));
                }
            }
            found
        };
        let mut added = unmatched(tables, EventVerdict::Added);
        for (t, r, digest) in unmatched(tables, EventVerdict::Missing) {
            let Some(at) = added.iter().position(|(_, _, other)| *other == digest) else { continue };
            let (other_t, other_r, _) = added.swap_remove(at);
            for (t, r) in [(t, r), (other_t, other_r)] {
                if let Some((_, verdict)) = tables.get_mut(t).and_then(|table| table.rows.get_mut(r)) {
                    *verdict = EventVerdict::Moved;
                }
            }
        }
    }

    /// The rows for the document, and how many were left out.
    pub(crate) fn explained(&self) -> (Vec<EventExplanation>, usize) {
        let shown = self.rows.iter().take(limits::MAX_EVENTS).map(|(row, verdict)| self.explain_row(row, *verdict));
        (shown.collect(), self.rows.len().saturating_sub(limits::MAX_EVENTS))
    }

    fn explain_row(&self, row: &Row, verdict: EventVerdict) -> EventExplanation {
        let (expected, logged) = self.sides(row);
        let name = match (expected, logged) {
            (Some(event), _) => event.name.to_owned(),
            (None, Some(logged)) => event_type_name(logged.event.event_type).to_owned(),
            (None, None) => String::new(),
        };
        EventExplanation {
            position: logged.map(|logged| logged.position).or(row.expected).unwrap_or_default(),
            name,
            expected: expected.and_then(|event| event.digest),
            found: logged.map(|logged| logged.digest),
            verdict,
            depends_on: expected.map(|event| event.depends_on),
            label: logged.map(|logged| logged.event.label().text),
            data_matches_digest: logged.map(|logged| logged.event.binding().matches()),
        }
    }

    fn sides(&self, row: &Row) -> (Option<&ModelEvent>, Option<&Logged<'a>>) {
        (row.expected.and_then(|e| self.expected.get(e)), row.logged.and_then(|l| self.logged.get(l)))
    }
}

fn verdict(row: &Row, expected: &[ModelEvent], logged: &[Logged<'_>], in_log: bool) -> EventVerdict {
    let event = row.expected.and_then(|e| expected.get(e));
    match (event, row.logged.and_then(|l| logged.get(l))) {
        (Some(_), None) if !in_log => EventVerdict::NotInLog,
        (Some(_), None) => EventVerdict::Missing,
        (None, _) => EventVerdict::Added,
        (Some(event), Some(logged)) => match event.digest {
            None => EventVerdict::Unknown,
            Some(digest) if digest == logged.digest => EventVerdict::Match,
            Some(_) => EventVerdict::Mismatch,
        },
    }
}
