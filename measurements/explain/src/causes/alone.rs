// SPDX-License-Identifier: Apache-2.0
//! Causes without a log: alternatives are tried on whole registers.

use calculator::{AcpiReference, Dependency, ExpectedEvent};
use types::{RegisterName, Sha384Digest};

use super::{command_line, image_with, kernel, machine, unknown};
use crate::{
    document::{Basis, Finding},
    limits::{self, MAX_KNOWLEDGE, MAX_MACHINES},
    model::{events_with_memory, fold},
    session::Session,
};

/// Looks for an alternative that leads to the quoted value of RTMR0, RTMR1 or RTMR2.
pub(crate) fn find(session: &mut Session<'_>, register: RegisterName) {
    match register {
        RegisterName::Rtmr0 => rtmr_0(session),
        RegisterName::Rtmr1 => rtmr_1(session),
        RegisterName::Rtmr2 => rtmr_2(session),
        _ => {}
    }
}

fn rtmr_0(session: &mut Session<'_>) {
    let quoted = *session.quoted(RegisterName::Rtmr0);
    let mut sizes = limits::memory_sizes(session.input.reference.shapes);
    // The expected size first: then other vCPUs or another QEMU are found before other memory with them.
    if let Some(shape) = &session.shape {
        sizes.insert(0, shape.facts().memory_mib);
    }
    let acpi = session.acpi.clone();
    for size in sizes {
        if session.searched.machines >= MAX_MACHINES {
            break;
        }
        session.searched.memory_sizes += 1;
        let Some(events) = events_with_memory(session.image, size) else { continue };
        let Some(parts) = AroundAcpi::of(&events) else { continue };
        let near: Vec<&AcpiReference> = acpi.iter().filter(|reference| reference.memory.contains(size)).collect();
        session.searched.machines += near.len();
        let leads_there = |reference: &&AcpiReference| parts.with(reference) == quoted;
        let equal: Vec<AcpiReference> = near.into_iter().filter(leads_there).cloned().collect();
        if !equal.is_empty() {
            machine::memory_is(session, size, None);
            machine::machine_is(session, &equal, Some(size));
            return;
        }
    }
    let expected = session.shape.as_ref().map_or(limits::FALLBACK_MIB, |shape| shape.facts().memory_mib);
    let other = image_with(session, |image| {
        let events = events_with_memory(image, expected).unwrap_or_default();
        AroundAcpi::of(&events).is_some_and(|parts| acpi.iter().any(|reference| parts.with(reference) == quoted))
    });
    if let Some(other) = other {
        session.find(finding(
            RegisterName::Rtmr0,
            "firmware_of_other_release",
            "firmware",
            format!("the register is the one that the firmware of {other} leads to"),
            "launch the release's own firmware",
        ));
        return;
    }
    let tried =
        format!("{} sizes of memory with the ACPI files of {} machines", session.searched.memory_sizes, acpi.len());
    unknown(
        session,
        RegisterName::Rtmr0,
        "the size of memory, the firmware's variables and boot options, and the ACPI files of QEMU's version and the machine's shape",
        &tried,
    );
}

fn rtmr_1(session: &mut Session<'_>) {
    let quoted = *session.quoted(RegisterName::Rtmr1);
    let events = events_with_memory(session.image, limits::FALLBACK_MIB).unwrap_or_default();
    let with = |kernel: &Sha384Digest| fold_with(&events, RegisterName::Rtmr1, Dependency::Kernel, kernel);
    let images = session.input.knowledge.images.iter().take(MAX_KNOWLEDGE).map(|(_, image)| *image);
    let mut forms = core::iter::once(session.image).chain(images).flat_map(kernel::forms);
    let found = forms.find(|digest| with(digest) == quoted);
    if found.is_some_and(|digest| kernel::explain_known(session, &digest, None)) {
        return;
    }
    if let Some(open) = kernel::not_measured_for_memory(session) {
        let fix = "launch with the expected memory first, then compare again";
        let mut undetermined = finding(RegisterName::Rtmr1, "kernel_undetermined", "kernel", open, fix);
        undetermined.basis = Basis::Difference;
        session.find(undetermined);
        return;
    }
    let known = 1 + session.image.kernel.patched.len() + session.input.knowledge.images.len().min(MAX_KNOWLEDGE);
    unknown(
        session,
        RegisterName::Rtmr1,
        "the kernel, which QEMU before 10.0 writes into, and what the firmware measures around it",
        &format!("{known} known forms of the kernel"),
    );
}

fn rtmr_2(session: &mut Session<'_>) {
    let quoted = *session.quoted(RegisterName::Rtmr2);
    let initrd = session.image.initrd;
    let two = |options: &[u8], initrd: &Sha384Digest| fold([&Sha384Digest::of(options), initrd]);
    if let Some(found) = command_line::search(session, |options| two(options, &initrd) == quoted) {
        command_line::conclude(session, &found.line, found.words, None);
        return;
    }
    // The line as released, with another known initrd or none.
    let line = session.image.command_line.clone();
    let word = session.image.firmware.generation.initrd_word();
    let Ok(options) = calculator::load_options(&line, word) else { return };
    let none = [options.clone(), utf16(&format!("{line}\0"))];
    if none.iter().any(|options| fold([&Sha384Digest::of(options)]) == quoted) {
        session.find(finding(
            RegisterName::Rtmr2,
            "event_missing",
            "initrd",
            "the register holds the release's command line and no initrd".to_owned(),
            "launch with the release's initrd",
        ));
        return;
    }
    if let Some(other) = image_with(session, |image| two(&options, &image.initrd) == quoted) {
        session.find(finding(
            RegisterName::Rtmr2,
            "initrd_of_other_release",
            "initrd",
            format!("the initrd is the one of {other}"),
            "launch the release's own initrd",
        ));
        return;
    }
    let tried = format!("{} command lines with the release's initrd", session.searched.command_lines);
    unknown(session, RegisterName::Rtmr2, "the command line and the initrd", &tried);
}

/// RTMR0 around the three ACPI digests, so that trying others costs a few hashes.
struct AroundAcpi {
    before: Sha384Digest,
    after: Vec<Sha384Digest>,
}

impl AroundAcpi {
    /// `None` unless the events hold exactly the three files, one after the other.
    fn of(events: &[ExpectedEvent]) -> Option<Self> {
        let own: Vec<&ExpectedEvent> = events.iter().filter(|e| e.register == RegisterName::Rtmr0).collect();
        let first = own.iter().position(|event| event.depends_on == Dependency::QemuAndShape)?;
        let (before, rest) = own.split_at_checked(first)?;
        let (files, after) = rest.split_at_checked(3)?;
        let is_acpi = |event: &&ExpectedEvent| event.depends_on == Dependency::QemuAndShape;
        if !files.iter().all(is_acpi) || after.iter().any(is_acpi) {
            return None;
        }
        Some(Self {
            before: fold(before.iter().map(|event| &event.digest)),
            after: after.iter().map(|event| event.digest).collect(),
        })
    }

    fn with(&self, acpi: &AcpiReference) -> Sha384Digest {
        let files = [&acpi.loader, &acpi.rsdp, &acpi.tables];
        files.into_iter().chain(&self.after).fold(self.before, |value, digest| value.extend(digest))
    }
}

/// The value of a register with another digest for the event that depends on `dependency`.
fn fold_with(
    events: &[ExpectedEvent],
    register: RegisterName,
    dependency: Dependency,
    digest: &Sha384Digest,
) -> Sha384Digest {
    let own = events.iter().filter(|event| event.register == register);
    fold(own.map(|event| if event.depends_on == dependency { digest } else { &event.digest }))
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn finding(register: RegisterName, code: &'static str, field: &'static str, detail: String, fix: &str) -> Finding {
    Finding { code, register: Some(register), event: None, field, basis: Basis::Digest, detail, fix: fix.to_owned() }
}
