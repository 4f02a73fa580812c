// SPDX-License-Identifier: Apache-2.0
//! Names causes of differences, one file per part of the boot.

mod alone;
mod command_line;
mod firmware;
mod kernel;
mod launch;
mod machine;
pub(crate) mod runtime;

use calculator::{Dependency, ImageMeasurements};
use types::{RegisterName, Sha384Digest};

use crate::{
    document::{Basis, Finding},
    limits::MAX_KNOWLEDGE,
    model::COMPUTED,
    session::Session,
    table::Table,
};

/// Looks for causes, register by register.
pub(crate) fn find<'a>(session: &mut Session<'a>, tables: &[Table<'a>]) {
    firmware::mr_td(session);
    let [rtmr_0, rtmr_1, rtmr_2, _rtmr_3] = tables else { return };
    // RTMR0 first: memory and QEMU's version decide what the kernel's digest must be.
    for table in [rtmr_0, rtmr_1, rtmr_2] {
        if session.is_match(table.register) {
            continue;
        }
        if *session.quoted(table.register) == Sha384Digest::ZERO {
            empty(session, table.register);
        } else if table.is_of_quote() {
            differing_events(session, table, rtmr_2);
            firmware::structure(session, table);
        } else {
            alone::find(session, table.register);
        }
    }
    runtime::find(session);
    launch::find(session);
    not_compared(session);
}

/// A register of the image without an expected value is no match: say so, where nothing else was said of it.
fn not_compared(session: &mut Session<'_>) {
    for register in COMPUTED {
        let said = session.findings.iter().any(|finding| finding.register == Some(register));
        if !session.expected(register).is_empty() || said {
            continue;
        }
        session.find(Finding {
            code: "register_not_compared",
            register: Some(register),
            event: None,
            field: "shape",
            basis: Basis::Difference,
            detail: format!("the reference has no value of {register} for this machine"),
            fix: "name a machine that the release has reference values for (--shape, --acpi), or have them published"
                .to_owned(),
        });
    }
}

fn differing_events<'a>(session: &mut Session<'a>, table: &Table<'a>, rtmr_2: &Table<'a>) {
    machine::acpi_and_memory(session, table);
    for (event, logged) in table.differing() {
        match event.depends_on {
            Dependency::Firmware => firmware::configuration_volume(session, event, &logged.digest),
            Dependency::Kernel => kernel::differs(session, event, logged, rtmr_2),
            Dependency::CommandLine => command_line::differs(session, event, logged),
            Dependency::Initrd => initrd(session, event.name, &logged.digest),
            // Above, and `structure` after it.
            _ => {}
        }
    }
}

fn initrd(session: &mut Session<'_>, name: &str, found: &Sha384Digest) {
    if *found == session.image.initrd {
        return;
    }
    let from = image_with(session, |image| image.initrd == *found);
    let (code, basis, detail) = match &from {
        Some(other) => ("initrd_of_other_release", Basis::Digest, format!("the initrd is the one of {other}")),
        None => (
            "initrd_differs",
            Basis::Difference,
            format!("the initrd has SHA-384 {found}, the release's has {}", session.image.initrd),
        ),
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr2),
        event: Some(name.to_owned()),
        field: "initrd",
        basis,
        detail,
        fix: "launch the release's own initrd; compare with sha384sum".to_owned(),
    });
}

/// A register that nothing was measured into.
fn empty(session: &mut Session<'_>, register: RegisterName) {
    session.find(Finding {
        code: "register_empty",
        register: Some(register),
        event: None,
        field: "",
        basis: Basis::Digest,
        detail: format!("{register} is zero: nothing was measured into it before the quote was made"),
        fix: "boot by the release's firmware, which measures what it starts; a host that loads a kernel without firmware measures nothing"
            .to_owned(),
    });
}

/// The register differs, and nothing that is known leads to its value.
fn unknown(session: &mut Session<'_>, register: RegisterName, covers: &str, tried: &str) {
    let foreign_log = session.findings.iter().any(|finding| {
        finding.register == Some(register) && (finding.field == "event_log" || finding.code == "log_unusable")
    });
    let with_log = session.input.log.is_some();
    let fix = match (with_log, foreign_log) {
        (true, true) => "give the log of this very boot: it names the event that differs",
        _ => "give the firmware's event log (CCEL) with --event-log: it names the event that differs",
    };
    session.find(Finding {
        code: "cause_unknown",
        register: Some(register),
        event: None,
        field: "",
        basis: Basis::Difference,
        detail: format!("{register} covers {covers}; {tried} do not lead to its value"),
        fix: fix.to_owned(),
    });
}

/// The name of another known image for which `same` holds.
fn image_with(session: &Session<'_>, same: impl Fn(&ImageMeasurements) -> bool) -> Option<String> {
    let images = session.input.knowledge.images.iter().take(MAX_KNOWLEDGE);
    images.map(|(name, image)| (name, *image)).find(|(_, image)| same(image)).map(|(name, _)| {
        let name = event_log::escaped(name.as_bytes());
        format!("release {name}")
    })
}
