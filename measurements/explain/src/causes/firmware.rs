// SPDX-License-Identifier: Apache-2.0
//! Another firmware, another order of its events, other variables.

use event_log::Kind;
use types::{RegisterName, Sha384Digest};

use super::image_with;
use crate::{
    document::{Basis, EventVerdict, Finding},
    model::ModelEvent,
    session::Session,
    table::Table,
};

/// MRTD: the firmware's pages and the order in which they were measured.
pub(crate) fn mr_td(session: &mut Session<'_>) {
    if session.is_match(RegisterName::MrTd) {
        return;
    }
    let found = *session.quoted(RegisterName::MrTd);
    let own = &session.image.firmware;
    let orders = |image: &calculator::ImageMeasurements| {
        image.firmware.mr_td_per_page == found || image.firmware.mr_td_two_pass == found
    };
    let (code, field, basis, detail, fix) = if found == own.mr_td_two_pass {
        (
            "firmware_page_order",
            "shape.qemu",
            Basis::Digest,
            "the firmware is the release's, but its pages were all added before they were measured, as QEMU before 10.1 with TDX patches does".to_owned(),
            "launch with the QEMU that the configuration names (10.1 or later measures page by page)",
        )
    } else if found == own.mr_td_per_page {
        (
            "firmware_page_order",
            "shape.qemu",
            Basis::Digest,
            "the firmware is the release's, but each page was measured as it was added, as QEMU 10.1 and later do"
                .to_owned(),
            "launch with the QEMU that the configuration names",
        )
    } else if let Some(other) = image_with(session, orders) {
        (
            "firmware_of_other_release",
            "firmware",
            Basis::Digest,
            format!("the firmware is the one of {other}"),
            "launch the release's own firmware",
        )
    } else {
        (
            "firmware_differs",
            "firmware",
            Basis::Difference,
            "the firmware is another: no page order of the release's firmware leads to this value".to_owned(),
            "launch the release's own firmware; measure compute --firmware FILE shows a file's value",
        )
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::MrTd),
        event: None,
        field,
        basis,
        detail,
        fix: fix.to_owned(),
    });
}

/// A configuration volume that differs.
pub(crate) fn configuration_volume(session: &mut Session<'_>, event: &ModelEvent, found: &Sha384Digest) {
    let other = image_with(session, |image| image.firmware.configuration_volume == *found);
    let (code, basis, detail) = match other {
        Some(other) => ("firmware_of_other_release", Basis::Digest, format!("the volume is the one of {other}")),
        None => (
            "configuration_volume_differs",
            Basis::Difference,
            "the firmware's volume of variables is another: another build, or variables were written into the file"
                .to_owned(),
        ),
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr0),
        event: Some(event.name.to_owned()),
        field: "firmware",
        basis,
        detail,
        fix: "launch the release's own firmware file, unchanged".to_owned(),
    });
}

/// Variables, separators and actions that differ; events that are missing, were added or moved.
pub(crate) fn structure<'a>(session: &mut Session<'a>, table: &Table<'a>) {
    secure_boot(session, table);
    boot_options(session, table);
    let register = table.register;
    let others: Vec<String> = table
        .differing()
        .filter(|(event, _)| matches!(event.kind(), Kind::Separator | Kind::Action))
        .map(|(event, logged)| format!("{} (logged: {})", event.name, logged.event.label().text))
        .collect();
    note(
        session,
        register,
        "firmware_event_differs",
        "the firmware measured something else as",
        others,
        "boot without errors; a separator or an action that differs tells of a failed step",
    );
    let moved = table.with(EventVerdict::Moved).map(|(expected, logged)| match (expected, logged) {
        (Some(event), _) => format!("{} (expected here)", event.name),
        (None, Some(logged)) => format!("{} (found here at {})", logged.event.label().text, logged.position),
        (None, None) => String::new(),
    });
    note(
        session,
        register,
        "firmware_event_order",
        "the firmware measures in another order, as other generations of EDK II do:",
        moved.collect(),
        "launch the firmware that the release names; if it is that one, the release names the wrong generation",
    );
    let plain = |kind: &Kind| !matches!(kind, Kind::ConfigurationVariable(_) | Kind::Authority | Kind::BootVariable(_));
    let missing = table.with(EventVerdict::Missing).filter_map(|(event, _)| event).filter(|e| plain(&e.kind()));
    note(
        session,
        register,
        "event_missing",
        "these events are missing:",
        missing.map(|event| event.name.to_owned()).collect(),
        "boot the release's own files with all of its parts",
    );
    let added = table.with(EventVerdict::Added).filter_map(|(_, logged)| logged).filter(|l| plain(&l.kind));
    note(
        session,
        register,
        "event_added",
        "these events were added:",
        added
            .map(|logged| {
                let kind = event_log::event_type_name(logged.event.event_type);
                format!("{kind} at {} ({})", logged.position, logged.event.label().text)
            })
            .collect(),
        "start the guest without further boot loaders, devices with option ROMs or disks that the firmware boots from",
    );
}

fn secure_boot<'a>(session: &mut Session<'a>, table: &Table<'a>) {
    let is_key = |kind: &Kind| matches!(kind, Kind::ConfigurationVariable(_) | Kind::Authority);
    let differing = table.differing().filter(|(event, _)| is_key(&event.kind())).map(|(_, logged)| logged);
    let added = table.with(EventVerdict::Added).filter_map(|(_, logged)| logged).filter(|l| is_key(&l.kind));
    let logged: Vec<String> = differing.chain(added).map(|logged| logged.event.label().text).collect();
    let missing = table.with(EventVerdict::Missing).filter_map(|(event, _)| event).filter(|e| is_key(&e.kind()));
    let names = logged.into_iter().chain(missing.map(|event| format!("{} is missing", event.name)));
    note(
        session,
        table.register,
        "secure_boot_variables",
        "the firmware holds other Secure Boot variables than the release's, which is empty:",
        names.collect(),
        "launch the release's firmware with its own, empty variable store",
    );
}

fn boot_options<'a>(session: &mut Session<'a>, table: &Table<'a>) {
    let is_boot = |kind: &Kind| matches!(kind, Kind::BootVariable(_));
    let differing = table.differing().filter(|(event, _)| is_boot(&event.kind())).map(|(_, logged)| logged);
    let added = table.with(EventVerdict::Added).filter_map(|(_, logged)| logged).filter(|l| is_boot(&l.kind));
    let logged: Vec<String> = differing.chain(added).map(|logged| logged.event.label().text).collect();
    let missing = table.with(EventVerdict::Missing).filter_map(|(event, _)| event).filter(|e| is_boot(&e.kind()));
    let names = logged.into_iter().chain(missing.map(|event| format!("{} is missing", event.name)));
    note(
        session,
        table.register,
        "boot_options_differ",
        "the firmware has other boot options:",
        names.collect(),
        "give no bootable disks, network boot or stored boot options; the kernel is given directly",
    );
}

fn note(
    session: &mut Session<'_>,
    register: RegisterName,
    code: &'static str,
    text: &str,
    names: Vec<String>,
    fix: &str,
) {
    if names.is_empty() {
        return;
    }
    let more = names.len().saturating_sub(MAX_NAMES);
    let mut list = names.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 {
        list.push_str(&format!("; and {more} more"));
    }
    session.find(Finding {
        code,
        register: Some(register),
        event: None,
        field: "firmware",
        basis: Basis::Label,
        detail: format!("{text} {list}"),
        fix: fix.to_owned(),
    });
}

const MAX_NAMES: usize = 6;
