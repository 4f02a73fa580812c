// SPDX-License-Identifier: Apache-2.0
//! MRTD and RTMR0 to RTMR2 against published releases.

use calculator::{AllowedValue, ExpectedRegisters};
use release::{NoReference, VerifiedRelease};
use tdx_verify::{Hardware, VerifiedQuote};
use types::{MachineShape, RegisterName, Role};

use crate::{AcpiRule, Policy, firmware_log::ExtendedEvents, verdict::Checks};

/// What the registers are judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) shape: &'a MachineShape,
    pub(crate) role: Role,
    pub(crate) quote: &'a VerifiedQuote,
    /// The guest's own log, read only where the policy says so.
    pub(crate) firmware_log: Option<&'a [u8]>,
}

/// The release that the registers were compared with, and where the ACPI digests came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared<'a> {
    pub(crate) release: &'a VerifiedRelease,
    pub(crate) acpi: AcpiRule,
}

/// Computes the registers of the shape for each release, finds the release that the quote fits best, checks that it may
/// be used, and compares the registers by name. Gives the release, where there is one for the shape.
pub(crate) fn check<'a>(
    measured: Measured<'_>,
    releases: &'a [VerifiedRelease],
    policy: &Policy,
    now: u64,
    checks: &mut Checks,
) -> Option<Compared<'a>> {
    let Measured { shape, role, quote, firmware_log } = measured;
    let log = match policy.acpi {
        AcpiRule::Published => Err("the policy takes published ACPI digests only"),
        AcpiRule::FromEventLog => ExtendedEvents::read(firmware_log, quote),
    };
    let usable = |release: &VerifiedRelease| {
        hardware_of(release) == quote.hardware()
            && !policy.revoked_releases.contains(release.digest())
            && policy.releases.as_ref().is_none_or(|list| list.contains(release.digest()))
            && release.is_valid_at(now)
            && release.values().role == role
    };
    let published = releases.iter().filter_map(|release| {
        let compared = Compared { release, acpi: AcpiRule::Published };
        release.registers_for(shape).ok().map(|expected| (compared, expected))
    });
    let from_log = log.as_ref().ok().into_iter().flat_map(|log| {
        releases.iter().filter_map(|release| {
            let compared = Compared { release, acpi: AcpiRule::FromEventLog };
            log.expected(release.values(), shape).map(|expected| (compared, expected))
        })
    });
    let best = published.chain(from_log).max_by_key(|(Compared { release, acpi }, expected)| {
        let matched = MEASURED.iter().filter(|name| expected.allows(**name, quote.registers().value(**name))).count();
        let full = matched == MEASURED.len();
        (full && usable(release), full, usable(release), matched, *acpi == AcpiRule::Published)
    });
    let Some((compared, expected)) = best else {
        // Of several releases, one that may be used says best what is missing.
        let nearest = releases.iter().find(|release| usable(release)).or_else(|| releases.first());
        match nearest.and_then(|release| release.registers_for(shape).err()) {
            None => checks.add(false, RELEASE_UNKNOWN, "a published release", "none"),
            Some(missing) => refuse_shape(shape, &missing, log.err(), checks),
        };
        for name in MEASURED {
            checks.register(name, Vec::new(), *quote.registers().value(name));
        }
        return None;
    };
    let release = compared.release;
    check_release(release, role, quote, policy, now, checks);
    for name in MEASURED {
        let expected: Vec<_> = values(&expected, name).iter().map(|allowed| allowed.value).collect();
        let quoted = *quote.registers().value(name);
        let texts: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let matches = checks.register(name, expected, quoted);
        let depends = depends_on(name);
        checks.add(
            matches,
            (
                "register_mismatch",
                name.as_str(),
                "launch the release's own files on the shape that the configuration names",
            ),
            format!("{} (depends on {depends})", texts.join(" or ")),
            quoted,
        );
    }
    Some(compared)
}

fn check_release(
    release: &VerifiedRelease,
    role: Role,
    quote: &VerifiedQuote,
    policy: &Policy,
    now: u64,
    checks: &mut Checks,
) {
    checks.equal(HARDWARE, &hardware_of(release), &quote.hardware());
    let digest = release.digest();
    let listed = policy.releases.as_ref().is_none_or(|list| list.contains(digest));
    checks.add(listed, NOT_ACCEPTED, "a release of the policy's list", digest);
    checks.add(!policy.revoked_releases.contains(digest), REVOKED, "a release that stands", digest);
    let validity = release.values().validity;
    let span = format!("{} to {} s since 1970", validity.not_before, validity.not_after);
    checks.add(release.is_valid_at(now), VALIDITY, span, now);
    checks.add(release.values().role == role, ROLE, role_name(release.values().role), role_name(role));
    let status = quote.tcb().status;
    let names: Vec<&str> = release.values().tcb_statuses.iter().map(|s| tcb_name(*s)).collect();
    checks.add(names.contains(&status.as_str()), TCB, names.join(" or "), status);
}

/// No release can compute the shape: the reason names the part that is missing.
fn refuse_shape(shape: &MachineShape, missing: &NoReference, log: Option<&str>, checks: &mut Checks) -> bool {
    let facts = ("shape_not_published", "guest_config.shape", missing.fix());
    let log = log.unwrap_or("the firmware event log has other events than the release's firmware");
    let found = format!("{}: {missing}, and {log}", describe(shape));
    checks.add(false, facts, "a shape whose registers the release can compute", found)
}

fn values(expected: &ExpectedRegisters, name: RegisterName) -> &[AllowedValue] {
    expected.allowed(name).unwrap_or_default()
}

const fn hardware_of(release: &VerifiedRelease) -> Hardware {
    match release.values().hardware {
        release::Hardware::Tdx => Hardware::Tdx,
        release::Hardware::Simulated => Hardware::Simulated,
    }
}

/// Intel's name of a status.
const fn tcb_name(status: release::TcbStatus) -> &'static str {
    use release::TcbStatus as S;
    match status {
        S::UpToDate => "UpToDate",
        S::SWHardeningNeeded => "SWHardeningNeeded",
        S::ConfigurationNeeded => "ConfigurationNeeded",
        S::ConfigurationAndSWHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
        S::OutOfDate => "OutOfDate",
        S::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
    }
}

pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Inference => "inference",
        Role::KeyService => "key-service",
    }
}

const fn depends_on(name: RegisterName) -> &'static str {
    match name {
        RegisterName::MrTd => "the firmware file",
        RegisterName::Rtmr0 => {
            "the firmware's configuration volume, memory size, and the ACPI tables of QEMU's version and the machine's shape"
        }
        RegisterName::Rtmr1 => "the kernel; with QEMU before 10.0 also on memory size and the initrd's length",
        RegisterName::Rtmr2 => "the command line and the initrd",
        RegisterName::Rtmr3 => "the events of the boot",
        RegisterName::MrConfigId | RegisterName::MrOwner | RegisterName::MrOwnerConfig => "the launch",
    }
}

fn describe(shape: &MachineShape) -> String {
    let facts = shape.facts();
    let devices = facts.devices.len();
    format!(
        "{} vCPUs, {} MiB, {} address bits, QEMU {}, {devices} devices",
        facts.vcpus, facts.memory_mib, facts.physical_bits, facts.qemu
    )
}

/// The registers that a release fixes.
const MEASURED: [RegisterName; 4] = [RegisterName::MrTd, RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2];

type Facts = (&'static str, &'static str, &'static str);
const RELEASE_UNKNOWN: Facts = ("release_unknown", "release", "import the release that the guest runs");
const HARDWARE: Facts = ("hardware_mismatch", "release.hardware", "launch a release made for this hardware");
const NOT_ACCEPTED: Facts =
    ("release_not_accepted", "release", "launch an accepted release, or accept this one by policy");
const REVOKED: Facts = ("release_revoked", "release", "launch the successor release");
const VALIDITY: Facts = ("release_not_valid_now", "release.validity", "launch the successor release");
const ROLE: Facts = ("role_mismatch", "release.role", "launch an image made for the configuration's role");
const TCB: Facts = ("tcb_beyond_release", "tcb.status", "update the platform's microcode and TDX module");
