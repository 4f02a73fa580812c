// SPDX-License-Identifier: Apache-2.0
//! Which known machine fits a quote best.

use calculator::AcpiReference;
use event_log::Pairing;
use types::{Device, MachineShape, RegisterName, shape::ShapeFacts};

use crate::{
    document::{Change, ExpectedValue, Nearest},
    input::Input,
    limits::MAX_SHAPES,
    model::{COMPUTED, Model},
    session::Session,
};

/// The listed machine that fits best when none was named: by matching registers, then by matching events.
pub(crate) fn best_of_listed(
    input: &Input<'_>,
    acpi: &[AcpiReference],
    pairings: Option<&[Pairing; 4]>,
) -> Option<MachineShape> {
    let score = |shape: &MachineShape| {
        let model = Model::of(input.reference.image, acpi, Some(shape));
        let fits = |(name, values): (&RegisterName, &Vec<ExpectedValue>)| {
            values.iter().any(|expected| expected.value == *input.registers.value(*name))
        };
        let registers = COMPUTED.iter().zip(&model.values).filter(|pair| fits(*pair)).count();
        let logged = |digest| {
            let positions = pairings.iter().flat_map(|list| list.iter()).flat_map(|pairing| &pairing.positions);
            let mut events = positions.filter_map(|at| input.log?.log.events.get(*at)?.sha384());
            events.any(|found| Some(found) == digest)
        };
        // A log of thousands of events must not make a thousand machines expensive.
        let few = pairings.is_some_and(|list| list.iter().map(|p| p.positions.len()).sum::<usize>() <= 64);
        let events = if few { model.events.iter().filter(|event| logged(event.digest)).count() } else { 0 };
        (registers, events)
    };
    let listed = input.reference.shapes.iter().take(MAX_SHAPES);
    // The first of equals, so that the order of the release decides.
    listed.rev().max_by_key(|shape| score(shape)).cloned()
}

/// A machine on which more registers match than on the expected one.
pub(crate) fn find(session: &Session<'_>) -> Option<Nearest> {
    let expected = session.shape.as_ref();
    let now = COMPUTED.into_iter().filter(|name| session.is_match(*name)).count();
    let listed = session.input.reference.shapes.iter().take(MAX_SHAPES).cloned();
    let candidates = found(session).into_iter().chain(listed).filter(|shape| Some(shape) != expected);
    let mut best: Option<(Vec<RegisterName>, MachineShape)> = None;
    for shape in candidates {
        let matches = matching(session, &shape);
        if matches.len() > best.as_ref().map_or(now, |(most, _)| most.len()) {
            best = Some((matches, shape));
        }
    }
    let (matches, shape) = best?;
    let differs = COMPUTED.into_iter().filter(|name| !matches.contains(name)).collect();
    let changes = expected.map_or_else(Vec::new, |expected| changes(expected, &shape));
    Some(Nearest { shape, matches, differs, changes })
}

/// The machine that the causes so far add up to.
fn found(session: &Session<'_>) -> Option<MachineShape> {
    let expected = session.shape.as_ref().map(MachineShape::facts);
    let memory_mib = session.memory.or(expected.as_ref().map(|facts| facts.memory_mib));
    match (&session.machine, expected) {
        (Some(machine), _) => shape_of(machine, memory_mib?),
        (None, Some(facts)) => MachineShape::new(ShapeFacts { memory_mib: session.memory?, ..facts }).ok(),
        (None, None) => None,
    }
}

/// A machine with these ACPI files and this memory; `None` when the numbers are no shape's.
pub(crate) fn shape_of(acpi: &AcpiReference, memory_mib: u32) -> Option<MachineShape> {
    let AcpiReference { qemu, vcpus, physical_bits, devices, .. } = acpi.clone();
    MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices }).ok()
}

/// The registers that match on a machine, as far as anything is known about it.
fn matching(session: &Session<'_>, shape: &MachineShape) -> Vec<RegisterName> {
    let model = Model::of(session.image, &session.acpi, Some(shape));
    let fits = |(name, values): (RegisterName, &Vec<ExpectedValue>)| {
        values.iter().any(|expected| expected.value == *session.quoted(name)).then_some(name)
    };
    COMPUTED.into_iter().zip(&model.values).filter_map(fits).collect()
}

/// The facts in which two machines differ.
pub(crate) fn changes(from: &MachineShape, to: &MachineShape) -> Vec<Change> {
    let (from, to) = (from.facts(), to.facts());
    let list = |devices: &[Device]| {
        let names: Vec<&str> = devices.iter().map(|device| device_name(*device)).collect();
        names.join(", ")
    };
    let facts = [
        ("shape.vcpus", from.vcpus.to_string(), to.vcpus.to_string()),
        ("shape.memory_mib", from.memory_mib.to_string(), to.memory_mib.to_string()),
        ("shape.physical_bits", from.physical_bits.to_string(), to.physical_bits.to_string()),
        ("shape.qemu", from.qemu.to_string(), to.qemu.to_string()),
        ("shape.devices", list(&from.devices), list(&to.devices)),
    ];
    let differing = facts.into_iter().filter(|(_, from, to)| from != to);
    differing.map(|(field, from, to)| Change { field, from, to }).collect()
}

const fn device_name(device: Device) -> &'static str {
    match device {
        Device::ConfigDisk => "config-disk",
        Device::ModelDisk => "model-disk",
        Device::Network => "network",
        Device::Vsock => "vsock",
        Device::RootDisk => "root-disk",
    }
}
