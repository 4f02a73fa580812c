// SPDX-License-Identifier: Apache-2.0
//! Another kernel, or the same one with another header.

use calculator::{AcpiDigests, Dependency, ImageMeasurements, registers};
use types::{MachineShape, QemuVersion, RegisterName, Sha384Digest, shape::ShapeFacts};

use super::image_with;
use crate::{
    align::Logged,
    document::{Basis, Finding},
    limits,
    model::ModelEvent,
    session::Session,
    table::Table,
};

/// A kernel's digest that differs in the log.
pub(crate) fn differs<'a>(session: &mut Session<'a>, event: &ModelEvent, logged: &Logged<'a>, rtmr_2: &Table<'a>) {
    if explain_known(session, &logged.digest, Some(event.name)) {
        return;
    }
    let initrd_differs = rtmr_2.is_of_quote()
        && rtmr_2.differing().any(|(event, _)| event.depends_on == Dependency::Initrd)
        && patches(session);
    let (code, detail, fix) = if let Some(open) = not_measured_for_memory(session) {
        ("kernel_undetermined", open, "launch with the expected memory first, then compare again")
    } else if initrd_differs {
        (
            "kernel_undetermined",
            "the initrd is another, and QEMU before 10.0 writes its address and length into the kernel: whether the kernel differs besides cannot be said"
                .to_owned(),
            "launch the release's own initrd first, then compare again",
        )
    } else {
        (
            "kernel_differs",
            format!(
                "the kernel's Authenticode digest is {}, no form of the release's kernel has it ({})",
                logged.digest,
                logged.event.label().text
            ),
            "launch the release's own kernel",
        )
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr1),
        event: Some(event.name.to_owned()),
        field: "kernel",
        basis: Basis::Difference,
        detail,
        fix: fix.to_owned(),
    });
}

/// Names what a digest is of, where it is a known one. False when it is not.
pub(crate) fn explain_known(session: &mut Session<'_>, found: &Sha384Digest, event: Option<&str>) -> bool {
    let Some((code, field, detail, fix)) = known(session, found) else { return false };
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr1),
        event: event.map(str::to_owned),
        field,
        basis: Basis::Digest,
        detail,
        fix,
    });
    true
}

/// Says that QEMU wrote the header for a size of memory for which the release has no measurement of its kernel.
pub(crate) fn not_measured_for_memory(session: &Session<'_>) -> Option<String> {
    let mut facts = session.shape.as_ref()?.facts();
    let memory = session.memory.filter(|memory| *memory != facts.memory_mib)?;
    facts.memory_mib = memory;
    facts.qemu = session.machine.as_ref().map_or(facts.qemu, |machine| machine.qemu);
    let shape = MachineShape::new(facts).ok().filter(|shape| shape.facts().qemu < FIRST_UNPATCHED)?;
    let measured = registers(session.image, &shape, &no_acpi()).is_ok();
    (!measured).then(|| {
        format!("QEMU before 10.0 writes the place of the initrd into the kernel, and the release has no measurement of its kernel for {memory} MiB: whether the kernel differs besides cannot be said")
    })
}

const fn no_acpi() -> AcpiDigests {
    AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO }
}

/// All digests that the release's kernel can have, as far as it was measured.
pub(crate) fn forms(image: &ImageMeasurements) -> impl Iterator<Item = Sha384Digest> + '_ {
    core::iter::once(image.kernel.unpatched).chain(image.kernel.patched.iter().map(|patched| patched.digest))
}

fn known(session: &Session<'_>, found: &Sha384Digest) -> Option<(&'static str, &'static str, String, String)> {
    let expected = session.shape.as_ref().map(MachineShape::facts);
    let qemu = expected.as_ref().map(|facts| facts.qemu);
    let own = qemu.map_or_else(|| "the machine's QEMU".to_owned(), |qemu| format!("QEMU {qemu}"));
    if *found == session.image.kernel.unpatched {
        return Some((
            "kernel_not_patched",
            "shape.qemu",
            format!(
                "the kernel is the release's file without changes, as QEMU 10.0 and later give it; {own} was expected to write its header"
            ),
            format!("launch with {own}, or name the QEMU that was used in the configuration"),
        ));
    }
    if session.image.kernel.patched.iter().any(|patched| patched.digest == *found) {
        let sizes = sizes_with_kernel(session, found);
        let span = match (sizes.first(), sizes.last()) {
            (Some(least), Some(most)) if least == most => format!("{least} MiB"),
            (Some(least), Some(most)) => format!("{least} to {most} MiB"),
            _ => "another size of memory".to_owned(),
        };
        if patches(session) {
            return Some((
                "kernel_patched_for_other_memory",
                "shape.memory_mib",
                format!("the kernel has the header that QEMU writes on a machine with {span}"),
                "launch with the memory that the configuration names".to_owned(),
            ));
        }
        return Some((
            "kernel_patched",
            "shape.qemu",
            format!(
                "the kernel has the header that QEMU before 10.0 writes on a machine with {span}; {own} leaves it as it is"
            ),
            format!("launch with {own}, or name the QEMU that was used in the configuration"),
        ));
    }
    let other = image_with(session, |image| forms(image).any(|digest| digest == *found))?;
    let fix = "launch the release's own kernel".to_owned();
    Some(("kernel_of_other_release", "kernel", format!("the kernel is the one of {other}"), fix))
}

/// True when the expected QEMU writes into the kernel.
fn patches(session: &Session<'_>) -> bool {
    session.shape.as_ref().is_some_and(|shape| shape.facts().qemu < FIRST_UNPATCHED)
}

/// The sizes of memory for which QEMU before 10.0 makes this kernel.
fn sizes_with_kernel(session: &Session<'_>, found: &Sha384Digest) -> Vec<u32> {
    let zero = no_acpi();
    let has = |mib: &u32| {
        let facts = ShapeFacts { vcpus: 1, memory_mib: *mib, physical_bits: 46, qemu: LAST_OLD_QEMU, devices: vec![] };
        let expected = MachineShape::new(facts).ok().and_then(|shape| registers(session.image, &shape, &zero).ok());
        expected.is_some_and(|expected| {
            expected.events.iter().any(|e| e.depends_on == Dependency::Kernel && e.digest == *found)
        })
    };
    limits::memory_sizes(session.input.reference.shapes).into_iter().filter(has).collect()
}

/// First version that leaves the kernel as it is.
const FIRST_UNPATCHED: QemuVersion = QemuVersion { major: 10, minor: 0 };
/// Stands for all versions that do not.
const LAST_OLD_QEMU: QemuVersion = QemuVersion { major: 9, minor: 2 };
