// SPDX-License-Identifier: Apache-2.0
//! Registers that the launch sets: MRCONFIGID, MROWNER, MROWNERCONFIG.

use types::{GuestConfig, RegisterName, Sha384Digest};

use crate::{
    document::{Basis, Finding},
    limits::MAX_KNOWLEDGE,
    session::Session,
};

pub(crate) fn find(session: &mut Session<'_>) {
    configuration(session);
    for register in [RegisterName::MrOwner, RegisterName::MrOwnerConfig] {
        if !session.is_match(register) {
            session.find(Finding {
                code: "owner_not_zero",
                register: Some(register),
                event: None,
                field: "",
                basis: Basis::Difference,
                detail: format!("{register} must be zero, found {}", session.quoted(register)),
                fix: format!("launch with {register} zero"),
            });
        }
    }
}

fn configuration(session: &mut Session<'_>) {
    let Some(bytes) = session.input.configuration else { return };
    let found = *session.quoted(RegisterName::MrConfigId);
    if GuestConfig::mr_config_id(bytes) == found {
        return;
    }
    let other = session.input.knowledge.configurations.iter().take(MAX_KNOWLEDGE);
    let other = other.filter(|(_, bytes)| GuestConfig::mr_config_id(bytes) == found).map(|(name, _)| name).next();
    let (code, basis, detail, fix) = if found == Sha384Digest::ZERO {
        (
            "configuration_not_measured",
            Basis::Digest,
            "mr_config_id is zero: the launch named no configuration".to_owned(),
            "launch with mrconfigid = SHA-384 of the configuration's bytes",
        )
    } else if let Some(name) = other {
        (
            "configuration_of_other",
            Basis::Digest,
            format!("mr_config_id is SHA-384 of another configuration: {}", event_log::escaped(name.as_bytes())),
            "give the guest the configuration that it was launched for",
        )
    } else if let Some(how) = same_but_for_space(bytes, &found) {
        (
            "configuration_formatting",
            Basis::Digest,
            format!("mr_config_id is SHA-384 of the same configuration {how}"),
            "launch with SHA-384 of exactly the bytes that the guest reads",
        )
    } else {
        (
            "configuration_differs",
            Basis::Difference,
            format!("mr_config_id is {found}, SHA-384 of the configuration is {}", GuestConfig::mr_config_id(bytes)),
            "launch with SHA-384 of exactly the configuration's bytes, and do not change it afterwards",
        )
    };
    session.find(Finding {
        code,
        register: Some(RegisterName::MrConfigId),
        event: None,
        field: "guest_config",
        basis,
        detail,
        fix: fix.to_owned(),
    });
}

/// A newline too many or too few is the usual mistake.
fn same_but_for_space(bytes: &[u8], found: &Sha384Digest) -> Option<&'static str> {
    let trimmed = bytes.trim_ascii();
    let with = |end: &[u8]| GuestConfig::mr_config_id(&[trimmed, end].concat()) == *found;
    if with(b"") {
        Some("without the space around it")
    } else if with(b"\n") {
        Some("with a newline at its end")
    } else if with(b"\r\n") {
        Some("with a carriage return and a newline at its end")
    } else {
        None
    }
}
