// SPDX-License-Identifier: Apache-2.0
//! Attacks 0 and 21 to 28: what was launched is not what was published.

use anyhow::{Context as _, Result, ensure};
use types::{
    Document as _, EventName, MachineShape, RegisterName, Registers, RuntimeEvent, Sha384Digest, event::replay,
};

use super::Made;
use super::world::{Guest, World, flip, shape, with};
use crate::case::Verifier::Appraise;

pub(super) fn cases(world: &World) -> Result<Vec<Made>> {
    let mut cases = vec![Made::new(
        Appraise,
        "00-accepted",
        "a guest that was launched as published asks for its key",
        "simulated hardware quotes the registers that the release gives for the guest's shape",
        &[],
    )?];
    cases.extend(registers(world)?);
    cases.extend(command_line(world)?);
    cases.extend(owner(world)?);
    cases.extend(events(world)?);
    cases.extend(configuration(world)?);
    cases.extend(injection(world)?);
    cases.extend(other_machine(world)?);
    Ok(cases)
}

/// A guest as published, changed; the quote is made of what results.
fn changed(world: &World, change: impl FnOnce(&mut Guest)) -> Result<Vec<u8>> {
    let mut guest = world.guest(&world.config()?)?;
    let before = guest.clone();
    change(&mut guest);
    let same = guest.registers == before.registers && guest.claimed == before.claimed && guest.config == before.config;
    ensure!(!same, "an attack that changes nothing");
    world.evidence(&guest)
}

fn slot(registers: &mut Registers, name: RegisterName) -> &mut Sha384Digest {
    match name {
        RegisterName::MrTd => &mut registers.mr_td,
        RegisterName::Rtmr0 => &mut registers.rtmr_0,
        RegisterName::Rtmr1 => &mut registers.rtmr_1,
        RegisterName::Rtmr2 => &mut registers.rtmr_2,
        RegisterName::Rtmr3 => &mut registers.rtmr_3,
        RegisterName::MrConfigId => &mut registers.mr_config_id,
        RegisterName::MrOwner => &mut registers.mr_owner,
        RegisterName::MrOwnerConfig => &mut registers.mr_owner_config,
    }
}

/// 21: one bit in each register.
fn registers(world: &World) -> Result<Vec<Made>> {
    let each = RegisterName::ALL.into_iter().map(|name| {
        let evidence = changed(world, |guest| {
            let register = slot(&mut guest.registers, name);
            *register = flip(register);
        })?;
        let code = match name {
            RegisterName::MrConfigId => "config_digest_mismatch",
            RegisterName::MrOwner | RegisterName::MrOwnerConfig => "mr_owner_nonzero",
            _ => "register_mismatch",
        };
        let directory = format!("21-one-bit-in-{}", name.as_str().replace('_', "-"));
        let title = format!("the last bit of {} differs", name.as_str());
        let origin = "the quote is genuine: simulated hardware measured another value";
        Ok(Made::new(Appraise, &directory, &title, origin, &[(code, name.as_str())])?.with("evidence", evidence))
    });
    let mut cases = each.collect::<Result<Vec<_>>>()?;
    // The same bit in the bytes of a genuine quote: then nobody signed it. MRTD begins 184 bytes into a version 4 quote.
    let guest = world.guest(&world.config()?)?;
    let mut evidence = types::Evidence::from_canonical(&world.evidence(&guest)?)?;
    let mut quote = evidence.quote.as_slice().to_vec();
    *quote.get_mut(48 + 136).context("a short quote")? ^= 1;
    evidence.quote = types::Base64::new(quote).context("quote")?;
    let title = "one bit of MRTD changed in the quote's bytes";
    let origin = "the bit was changed after simulated hardware had signed";
    cases.push(
        Made::new(Appraise, "21-one-bit-after-signing", title, origin, &[("quote_signature", "quote.signature")])?
            .with("evidence", evidence.to_canonical()?),
    );
    Ok(cases)
}

/// 22: another command line.
fn command_line(world: &World) -> Result<Vec<Made>> {
    let published = &world.statement.predicate.image.command_line;
    let lines = [
        ("22-extra-word", "a word behind the command line", format!("{published} debug")),
        ("22-extra-word-in-front", "a word in front of the command line", format!("init=/bin/sh {published}")),
        ("22-word-removed", "the command line without its last word", {
            let (head, _) = published.rsplit_once(' ').context("a command line of one word")?;
            head.to_owned()
        }),
        ("22-second-space", "two spaces between two words", published.replacen(' ', "  ", 1)),
    ];
    let cases = lines.into_iter().map(|(name, title, line)| {
        ensure!(line != *published, "the same command line");
        let mut values = world.statement.predicate.clone();
        values.image.command_line.clone_from(&line);
        let measured = sample_release::registers(&values, &shape()?, Sha384Digest::ZERO).rtmr_2;
        let evidence = changed(world, |guest| guest.registers.rtmr_2 = measured)?;
        let origin = format!("RTMR2 as firmware and kernel measure the command line \"{line}\"");
        Ok(Made::new(Appraise, name, title, &origin, &[("register_mismatch", "rtmr_2")])?.with("evidence", evidence))
    });
    cases.collect()
}

/// 23: what a TD's creator sets.
fn owner(world: &World) -> Result<Vec<Made>> {
    let zero = Sha384Digest::ZERO;
    let other = {
        let mut config = world.config()?;
        config.engine.context_tokens.0 += 1;
        Sha384Digest::of(&config.to_canonical()?)
    };
    let some = Sha384Digest::of(b"somebody");
    let forms = [
        ("23-mrconfigid-zero", "MRCONFIGID is zero", RegisterName::MrConfigId, zero, "config_digest_mismatch"),
        (
            "23-mrconfigid-of-another-configuration",
            "MRCONFIGID is the digest of another configuration",
            RegisterName::MrConfigId,
            other,
            "config_digest_mismatch",
        ),
        ("23-mrowner", "MROWNER is not zero", RegisterName::MrOwner, some, "mr_owner_nonzero"),
        ("23-mrownerconfig", "MROWNERCONFIG is not zero", RegisterName::MrOwnerConfig, some, "mr_owner_nonzero"),
    ];
    let cases = forms.into_iter().map(|(name, title, register, value, code)| {
        let evidence = changed(world, |guest| *slot(&mut guest.registers, register) = value)?;
        let origin = "the TD was created with this value, and simulated hardware quotes it";
        Ok(Made::new(Appraise, name, title, origin, &[(code, register.as_str())])?.with("evidence", evidence))
    });
    cases.collect()
}

type Change = fn(&mut Vec<RuntimeEvent>);

/// Repeats the second event.
fn twice(events: &mut Vec<RuntimeEvent>) {
    let second = events.get(1).cloned();
    events.splice(2..2, second);
}

/// 24: the events of the boot.
fn events(world: &World) -> Result<Vec<Made>> {
    let forms: [(&str, &str, Change, &str); 3] = [
        ("reordered", "two events in the other order", |events| events.swap(3, 4), "rtmr3_event_order"),
        ("duplicated", "one event twice", twice, "rtmr3_event_unexpected"),
        (
            "missing",
            "the event 'lockdown' is missing",
            |events| events.retain(|event| event.name != EventName::Lockdown),
            "rtmr3_event_missing",
        ),
    ];
    let mut cases = Vec::new();
    for (form, title, change, code) in forms {
        let (list, register) = ((code, "events"), ("register_mismatch", "rtmr_3"));
        let listed = changed(world, |guest| change(&mut guest.claimed))?;
        let extended = changed(world, |guest| {
            let mut events = guest.claimed.clone();
            change(&mut events);
            guest.registers.rtmr_3 = replay(&events);
        })?;
        let both = changed(world, |guest| {
            change(&mut guest.claimed);
            guest.registers.rtmr_3 = replay(&guest.claimed);
        })?;
        for (suffix, place, evidence, expected) in [
            ("", "in RTMR3 and in the evidence's list", both, &[list, register][..]),
            ("-in-the-list", "in the evidence's list, not in RTMR3", listed, &[list]),
            ("-in-the-register", "in RTMR3, not in the evidence's list", extended, &[register]),
        ] {
            let name = format!("24-events-{form}{suffix}");
            let made = Made::new(Appraise, &name, &format!("{title}: {place}"), "a boot by another init", expected)?;
            cases.push(made.with("evidence", evidence));
        }
    }
    Ok(cases)
}

const MALFORMED: &[(&str, &str)] = &[("config_malformed", "guest_config")];

/// 25 and 26: configurations that the guest's init never accepts. MRCONFIGID fits each: only the form is wrong.
fn configuration(world: &World) -> Result<Vec<Made>> {
    let text = String::from_utf8(world.config()?.to_canonical()?)?;
    let replaced = |from: &str, to: &str| {
        ensure!(text.matches(from).count() == 1, "'{from}' does not stand once in {text}");
        Ok(text.replacen(from, to, 1))
    };
    let name = "\"name\":\"model\"";
    let forms = [
        (
            "25-unknown-field",
            "a field that the schema does not have",
            replaced("{\"engine\"", "{\"debug\":true,\"engine\"")?,
        ),
        (
            "25-unknown-nested-field",
            "a field that a part does not have",
            replaced("\"network\":{", "\"network\":{\"a\":1,")?,
        ),
        ("25-repeated-field", "a field twice", replaced("\"port\":8443", "\"port\":8443,\"port\":8444")?),
        ("25-other-schema", "another schema", replaced("guest-config/v1", "guest-config/v2")?),
        ("25-trailing-bytes", "bytes behind the document", format!("{text}{{}}")),
        ("25-not-canonical", "the same fields, written with a space", replaced("{\"engine\"", "{ \"engine\"")?),
        ("26-newline-behind", "a newline behind the document", format!("{text}\n")),
        ("26-newline-in-a-name", "a newline in the model's name", replaced(name, "\"name\":\"model\\nroot\"")?),
        ("26-path-in-a-name", "a path as the model's name", replaced(name, "\"name\":\"../../etc/passwd\"")?),
        (
            "26-absolute-path-in-a-name",
            "an absolute path as the model's name",
            replaced(name, "\"name\":\"/dev/vda\"")?,
        ),
        ("26-nul-in-a-name", "a zero byte in the model's name", replaced(name, "\"name\":\"model\\u0000\"")?),
        ("26-link-to-a-file", "a field that names a file (a symbolic link)", {
            replaced("\"engine\":{", "\"engine\":{\"weights\":\"/run/link\",")?
        }),
        (
            "26-newline-in-the-address",
            "a newline in the network address",
            replaced("\"10.0.2.15\"", "\"10.0.2.15\\n\"")?,
        ),
    ];
    let cases = forms.into_iter().map(|(name, title, text)| {
        let evidence = world.evidence(&world.guest_with(text.into_bytes(), &shape()?)?)?;
        let origin = "the host gave these bytes as configuration and launched with their digest as MRCONFIGID";
        Ok(Made::new(Appraise, name, title, origin, MALFORMED)?.with("evidence", evidence))
    });
    cases.collect()
}

/// 27: what a host adds to the machine. Nothing of it has a name in the configuration, and what firmware sees of it
/// stands in the ACPI tables.
fn injection(world: &World) -> Result<Vec<Made>> {
    let text = String::from_utf8(world.config()?.to_canonical()?)?;
    let mut cases = Vec::new();
    for (name, device) in [("fw-cfg", "fw-cfg-file"), ("9p", "virtio-9p"), ("smbios", "smbios-oem-strings")] {
        let from = "\"devices\":[";
        ensure!(text.matches(from).count() == 1, "no list of devices in {text}");
        let config = text.replacen(from, &format!("{from}\"{device}\","), 1);
        let evidence = world.evidence(&world.guest_with(config.into_bytes(), &shape()?)?)?;
        let title = format!("a configuration whose machine has the device {device}");
        let origin = "the shape knows no such device, so neither the launcher nor a verifier can be told of one";
        let made = Made::new(Appraise, &format!("27-{name}-in-the-configuration"), &title, origin, MALFORMED)?;
        cases.push(made.with("evidence", evidence));
    }
    // More devices than the configuration names: other tables, so other digests of the files that firmware reads.
    for (name, file) in [("27-device-in-the-acpi-tables", "tables"), ("27-command-in-the-acpi-loader", "loader")] {
        let other = sample_release::acpi(&with(|facts| facts.devices.truncate(3))?);
        let mut values = world.statement.predicate.clone();
        for reference in &mut values.acpi {
            match file {
                "tables" => reference.tables = other.tables,
                _ => reference.loader = other.loader,
            }
        }
        let measured = sample_release::registers(&values, &shape()?, Sha384Digest::ZERO).rtmr_0;
        let evidence = changed(world, |guest| guest.registers.rtmr_0 = measured)?;
        let title = format!(
            "the machine's etc/{} is not that of the configuration's machine",
            match file {
                "tables" => "acpi/tables",
                _ => "table-loader",
            }
        );
        let origin = "RTMR0 as firmware measures it with other ACPI bytes from fw_cfg; the digests stand for bytes of no real QEMU";
        let made = Made::new(Appraise, name, &title, origin, &[("register_mismatch", "rtmr_0")])?;
        cases.push(made.with("evidence", evidence));
    }
    Ok(cases)
}

/// 28: the configuration claims one machine, another one runs.
fn other_machine(world: &World) -> Result<Vec<Made>> {
    let claims = |claimed: &MachineShape, real: &MachineShape| {
        let mut config = world.config()?;
        config.shape.0 = claimed.clone();
        world.evidence(&world.guest_with(config.to_canonical()?, real)?)
    };
    let [vcpus, memory, qemu] = [
        with(|facts| facts.vcpus = 4)?,
        with(|facts| facts.memory_mib = 4096)?,
        with(|facts| facts.qemu = types::QemuVersion { major: 11, minor: 1 })?,
    ];
    let real = shape()?;
    let mut cases = Vec::new();
    for (name, title, claimed, real) in [
        ("28-more-vcpus-claimed", "4 vCPUs claimed, 2 launched", &vcpus, &real),
        ("28-fewer-vcpus-claimed", "2 vCPUs claimed, 4 launched", &real, &vcpus),
        ("28-more-memory-claimed", "4096 MiB claimed, 2048 launched", &memory, &real),
        ("28-less-memory-claimed", "2048 MiB claimed, 4096 launched", &real, &memory),
        ("28-other-qemu-claimed", "QEMU 11.1 claimed, 10.1 ran", &qemu, &real),
    ] {
        let origin = "both machines stand in the release; RTMR0 is that of the machine that ran";
        let made = Made::new(Appraise, name, title, origin, &[("register_mismatch", "rtmr_0")])?;
        cases.push(made.with("evidence", claims(claimed, real)?));
    }
    for (name, title, claimed) in [
        (
            "28-vcpus-not-published",
            "a number of vCPUs that the release has no ACPI tables for",
            with(|facts| facts.vcpus = 3)?,
        ),
        (
            "28-memory-not-published",
            "a memory size that the release has no ACPI tables for",
            with(|facts| facts.memory_mib = 3072)?,
        ),
        (
            "28-qemu-not-published",
            "a QEMU that the release has no ACPI tables for",
            with(|facts| {
                facts.qemu = types::QemuVersion { major: 9, minor: 2 };
            })?,
        ),
        (
            "28-width-not-published",
            "a width of addresses that the release has no ACPI tables for",
            with(|facts| facts.physical_bits = 52)?,
        ),
    ] {
        let origin = "the configuration claims this machine; the registers are those of a published one";
        let made = Made::new(Appraise, name, title, origin, &[("shape_not_published", "guest_config.shape")])?;
        cases.push(made.with("evidence", claims(&claimed, &real)?));
    }
    Ok(cases)
}
