// SPDX-License-Identifier: Apache-2.0
//! Another size of memory, another QEMU, other vCPUs: what the TD HOB and the ACPI files show.

use calculator::{AcpiDigests, AcpiReference, Dependency, ImageMeasurements};
use types::{RegisterName, Sha384Digest};

use super::image_with;
use crate::{
    document::{Basis, Finding},
    limits,
    model::{Lack, describe, events_with_memory},
    nearest::{changes, shape_of},
    session::Session,
    table::Table,
};

/// Judges the events that depend on the machine.
pub(crate) fn acpi_and_memory<'a>(session: &mut Session<'a>, table: &Table<'a>) {
    if table.register != RegisterName::Rtmr0 {
        return;
    }
    let of = |wanted: Dependency| {
        table.rows.iter().filter_map(move |(row, _)| {
            let event = row.expected.and_then(|e| table.expected.get(e)).filter(|event| event.depends_on == wanted)?;
            Some((event, table.logged.get(row.logged?)?.digest))
        })
    };
    if let Some((event, found)) = of(Dependency::Memory).find(|(event, found)| event.digest != Some(*found)) {
        memory(session, event.name, &found);
    }
    let acpi: Vec<_> = of(Dependency::QemuAndShape).collect();
    if acpi.iter().any(|(event, found)| event.digest != Some(*found)) {
        let digest = |name: &str| table.logged_as(name).map(|logged| logged.digest);
        let found = digest("ACPI loader").zip(digest("ACPI RSDP")).zip(digest("ACPI tables"));
        let digests = found.map(|((loader, rsdp), tables)| AcpiDigests { loader, rsdp, tables });
        acpi_files(session, digests.as_ref());
    }
}

/// Names the size of memory that a TD HOB is for.
fn memory(session: &mut Session<'_>, event: &str, found: &Sha384Digest) {
    let sizes = limits::memory_sizes(session.input.reference.shapes);
    session.searched.memory_sizes = sizes.len();
    let has = |image: &ImageMeasurements, mib: u32| {
        events_with_memory(image, mib)
            .is_some_and(|events| events.iter().any(|e| e.depends_on == Dependency::Memory && e.digest == *found))
    };
    if let Some(size) = sizes.iter().find(|size| has(session.image, **size)) {
        memory_is(session, *size, Some(event));
        return;
    }
    let expected = session.shape.as_ref().map_or(limits::FALLBACK_MIB, |shape| shape.facts().memory_mib);
    let other = image_with(session, |image| has(image, expected));
    let (code, field, basis, detail, fix) = match other {
        Some(other) => (
            "firmware_of_other_release",
            "firmware",
            Basis::Digest,
            format!("the TD HOB is the one that the firmware of {other} gets"),
            "launch the release's own firmware",
        ),
        None => (
            "memory_layout_unknown",
            "shape.memory_mib",
            Basis::Difference,
            format!("the TD HOB is that of none of {} sizes of memory with this firmware", sizes.len()),
            "give the machine the memory that its configuration names, and the release's firmware",
        ),
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr0),
        event: Some(event.to_owned()),
        field,
        basis,
        detail,
        fix: fix.to_owned(),
    });
}

/// Notes the size of memory that the quote shows.
pub(crate) fn memory_is(session: &mut Session<'_>, size: u32, event: Option<&str>) {
    session.memory = Some(size);
    let Some(expected) = session.shape.as_ref().map(|shape| shape.facts().memory_mib) else { return };
    if expected == size {
        return;
    }
    session.find(Finding {
        code: "memory_size_differs",
        register: Some(RegisterName::Rtmr0),
        event: event.map(str::to_owned),
        field: "shape.memory_mib",
        basis: Basis::Digest,
        detail: format!("the machine has {size} MiB of memory, {expected} MiB were expected"),
        fix: format!("launch with {expected} MiB, or name {size} MiB in the configuration"),
    });
}

/// Names the machine that ACPI files are for.
fn acpi_files(session: &mut Session<'_>, found: Option<&AcpiDigests>) {
    let same = |reference: &AcpiReference| {
        found.is_some_and(|f| f.loader == reference.loader && f.rsdp == reference.rsdp && f.tables == reference.tables)
    };
    let equal: Vec<AcpiReference> = session.acpi.iter().filter(|reference| same(reference)).cloned().collect();
    if machine_is(session, &equal, None) {
        return;
    }
    let (code, detail, fix) = if session.model.lacks.contains(&Lack::Acpi) {
        (
            "acpi_not_published",
            format!(
                "the reference has no ACPI files for {}, and the logged ones are those of no machine that it knows",
                session.shape.as_ref().map(describe).unwrap_or_default()
            ),
            "add the machine's ACPI digests with --acpi (measure acpi reads them out of a QEMU), or launch a machine that the release lists",
        )
    } else {
        (
            "acpi_tables_unknown",
            format!(
                "the ACPI files are those of none of the {} machines that the reference knows: another QEMU, other devices, or changed tables",
                session.acpi.len()
            ),
            "launch with the QEMU and devices that the configuration names; to know another QEMU, add its digests with --acpi",
        )
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr0),
        event: Some("ACPI tables".to_owned()),
        field: "shape",
        basis: Basis::Difference,
        detail,
        fix: fix.to_owned(),
    });
}

/// Notes the machine that the quote shows, out of references with equal files: the one that differs least from the
/// expected machine. False when there is none.
pub(crate) fn machine_is(session: &mut Session<'_>, equal: &[AcpiReference], memory: Option<u32>) -> bool {
    let expected = session.shape.clone();
    let size = memory.or(session.memory).or(expected.as_ref().map(|shape| shape.facts().memory_mib));
    let candidates = equal.iter().filter_map(|reference| {
        // The files are those of a span of sizes; within it, what the TD HOB says counts.
        let within = size.filter(|mib| reference.memory.contains(*mib)).unwrap_or(reference.memory.from_mib);
        let shape = shape_of(reference, within)?;
        let differing = expected.as_ref().map_or_else(Vec::new, |expected| changes(expected, &shape));
        Some((reference, differing))
    });
    let Some((reference, differing)) = candidates.min_by_key(|(_, differing)| differing.len()) else { return false };
    session.machine = Some(reference.clone());
    for change in differing {
        // Another size was named from the TD HOB already.
        if change.field == "shape.memory_mib" && session.memory.is_some_and(|mib| reference.memory.contains(mib)) {
            continue;
        }
        let (code, what) = match change.field {
            "shape.vcpus" => ("vcpu_count_differs", "vCPUs"),
            "shape.qemu" => ("qemu_version_differs", "version of QEMU"),
            "shape.devices" => ("devices_differ", "devices"),
            "shape.physical_bits" => ("physical_bits_differ", "physical address bits"),
            _ => ("acpi_of_other_memory", "MiB of memory"),
        };
        session.find(Finding {
            code,
            register: Some(RegisterName::Rtmr0),
            event: Some("ACPI tables".to_owned()),
            field: change.field,
            basis: Basis::Digest,
            detail: format!(
                "the ACPI files are those of a machine with {what}: {}; expected: {}",
                change.to, change.from
            ),
            fix: format!("launch with {} = {}, or name {} in the configuration", change.field, change.from, change.to),
        });
    }
    true
}
