// SPDX-License-Identifier: Apache-2.0
//! What an appraisal established, as one versioned document: the input of owners' own rules and the claims of EAR tokens.

use attested_channel::Moment;
use gpu_verify::GpuSummary;
use serde::{Deserialize, Serialize};
use tdx_verify::{Hardware, TcbStatus, VerifiedQuote};
use types::{
    Device, Evidence, GuestConfig, Hex32, MachineShape, ModelId, Registers, Role, Sha256Digest, Sha384Digest,
    shape::ShapeFacts,
};

use crate::{Binding, Policy, registers::Compared};

/// `chrysalis/claims/v1`. Facts of a guest as its evidence, the quote and the release show them. They were accepted only
/// where the verdict beside them is; a part that could not be established is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// [`Claims::SCHEMA`].
    pub schema: String,
    /// When it was judged, seconds since 1970.
    pub now: u64,
    /// `key-release` or `serving`.
    pub moment: String,
    /// Whether the evidence was bound to a connection of the verifier; a document alone may be a copy.
    pub bound: bool,
    /// `tdx` or `simulated`.
    pub hardware: Hardware,
    /// SHA-256 of the evidence document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Sha256Digest>,
    /// The release that the registers were compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseClaims>,
    /// The model of the guest's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The measurement registers, as quoted.
    pub registers: Registers,
    /// The TD's own fields.
    pub td: TdClaims,
    /// The platform and its TCB.
    pub platform: PlatformClaims,
    /// The machine of the guest's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineClaims>,
    /// What else the guest's configuration says that policies look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigClaims>,
    /// This boot of the guest.
    pub instance: InstanceClaims,
    /// Which rule gave the ACPI digests in RTMR0: `published` or `from-event-log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acpi: Option<String>,
    /// The guest's time.
    pub time: TimeClaims,
    /// The guest's GPUs, where it has some that could be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuClaims>,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseClaims {
    /// SHA-256 of its statement.
    pub digest: Sha256Digest,
    /// Name of the image's profile.
    pub profile: String,
    /// Commit that it was built from.
    pub source_commit: String,
    /// Its build date, seconds since 1970.
    pub source_date_epoch: u64,
    /// Last second of its validity.
    pub not_after: u64,
}

/// Fields of the TD report beside the registers, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdClaims {
    /// TD attributes, 8 bytes as they stand in the report.
    pub attributes: String,
    /// XFAM, 8 bytes as they stand in the report.
    pub xfam: String,
    /// Measurement of the TDX module.
    pub mr_seam: Sha384Digest,
    /// Security versions of the TDX module, 16 bytes.
    pub tee_tcb_svn: String,
}

/// A platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformClaims {
    /// Its name: SHA-256("chrysalis/platform/v1" ‖ PPID).
    pub id: Sha256Digest,
    /// Kind of platform, 6 bytes in hexadecimal.
    pub fmspc: String,
    /// Intel's name of its TCB status.
    pub tcb_status: TcbStatus,
    /// Date of its TCB level, seconds since 1970.
    pub tcb_date: u64,
    /// Advisories that concern it, sorted.
    pub advisories: Vec<String>,
    /// Smaller of the two `tcbEvaluationDataNumber`s of the collateral.
    pub tcb_evaluation_data_number: u32,
    /// Earliest end of validity among certificates, lists and collateral, seconds since 1970.
    pub collateral_expires: u64,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineClaims {
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Width of physical addresses.
    pub physical_bits: u8,
    /// Major version of QEMU.
    pub qemu_major: u16,
    /// Minor version of QEMU.
    pub qemu_minor: u16,
    /// Devices in PCI slot order.
    pub devices: Vec<Device>,
}

/// Of the guest's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigClaims {
    /// What the guest is for.
    pub role: Role,
    /// Which service gives it its key.
    pub service_pin: Sha256Digest,
    /// Context window in tokens.
    pub context_tokens: u32,
    /// How many GPUs it must have.
    pub gpus: u8,
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceClaims {
    /// Its receipt key.
    pub key: Hex32,
    /// Whether the policy names the platforms or the instances that it accepts.
    pub pinned: bool,
}

/// The time of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeClaims {
    /// The earliest that it can be, seconds since 1970.
    pub floor: u64,
    /// What a service signed for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<u64>,
}

/// The GPUs of a guest. Lists are sorted and without repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuClaims {
    /// GPUs whose own checks passed.
    pub count: u32,
    /// NVSwitches whose own checks passed.
    pub switches: u32,
    /// Generations.
    pub architectures: Vec<String>,
    /// Versions of the driver.
    pub drivers: Vec<String>,
    /// Versions of the VBIOS.
    pub vbioses: Vec<String>,
    /// Modes, of the reports that say one.
    pub modes: Vec<String>,
    /// Whose devices: `nvidia` or another.
    pub hardware: String,
    /// `checked` for every certificate below a root, or `not_checked`.
    pub revocation: String,
    /// `given`: what the driver told the measured guest; or `not_given`.
    pub driver_state: String,
    /// Last second at which all that it rests on is valid.
    pub expires: u64,
}

impl Claims {
    /// Value of the field `schema`.
    pub const SCHEMA: &str = "chrysalis/claims/v1";
}

/// What claims are made from.
pub(crate) struct Sources<'a> {
    pub(crate) evidence: &'a Evidence,
    pub(crate) evidence_digest: Option<Sha256Digest>,
    pub(crate) binding: Binding<'a>,
    pub(crate) quote: &'a VerifiedQuote,
    pub(crate) policy: &'a Policy,
    pub(crate) config: Option<&'a GuestConfig>,
    pub(crate) compared: Option<Compared<'a>>,
    pub(crate) gpu: Option<&'a GpuSummary>,
    pub(crate) now: u64,
}

pub(crate) fn make(sources: &Sources<'_>) -> Claims {
    let Sources { evidence, evidence_digest, binding, quote, policy, config, compared, gpu, now } = *sources;
    Claims {
        schema: Claims::SCHEMA.to_owned(),
        now,
        moment: moment_name(binding.moment()).to_owned(),
        bound: binding.is_connection(),
        hardware: quote.hardware(),
        evidence: evidence_digest,
        release: compared.map(release),
        model: config.map(|config| config.model.0.clone()),
        registers: quote.registers().clone(),
        td: TdClaims {
            attributes: hex(&quote.td_attributes().bits().to_le_bytes()),
            xfam: hex(&quote.xfam().bits().to_le_bytes()),
            mr_seam: *quote.mr_seam(),
            tee_tcb_svn: hex(quote.tee_tcb_svn()),
        },
        platform: platform(quote),
        machine: config.map(|config| machine(&config.shape.0)),
        config: config.map(of_config),
        instance: InstanceClaims { key: evidence.instance_key, pinned: policy.pins_instance() },
        acpi: compared.map(|compared| compared.acpi.as_str().to_owned()),
        time: TimeClaims {
            floor: evidence.time.floor,
            attested: evidence.time.attested.as_ref().map(|attested| attested.unix),
        },
        gpu: gpu.map(gpus),
    }
}

pub(crate) const fn moment_name(moment: Moment) -> &'static str {
    match moment {
        Moment::KeyRelease => "key-release",
        Moment::Serving => "serving",
    }
}

fn release(compared: Compared<'_>) -> ReleaseClaims {
    let values = compared.release.values();
    ReleaseClaims {
        digest: *compared.release.digest(),
        profile: values.profile.clone(),
        source_commit: values.source_commit.clone(),
        source_date_epoch: values.source_date_epoch,
        not_after: values.validity.not_after,
    }
}

fn platform(quote: &VerifiedQuote) -> PlatformClaims {
    let tcb = quote.tcb();
    PlatformClaims {
        id: *quote.platform(),
        fmspc: hex(quote.fmspc()),
        tcb_status: tcb.status,
        tcb_date: tcb.date,
        advisories: tcb.advisories.clone(),
        tcb_evaluation_data_number: tcb.evaluation_data_number,
        collateral_expires: quote.collateral_expires(),
    }
}

fn machine(shape: &MachineShape) -> MachineClaims {
    // A new fact of a shape must be handled here.
    let ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices } = shape.facts();
    let (qemu_major, qemu_minor) = (qemu.major, qemu.minor);
    MachineClaims { vcpus, memory_mib, physical_bits, qemu_major, qemu_minor, devices }
}

fn of_config(config: &GuestConfig) -> ConfigClaims {
    // A new field of the configuration must be handled here: the network is the provider's own affair, and so are threads.
    let GuestConfig { schema: _, role, shape: _, model: _, service, network: _, engine, gpus } = config;
    ConfigClaims {
        role: role.0,
        service_pin: service.spki_sha256.0,
        context_tokens: engine.context_tokens.0,
        gpus: gpus.0,
    }
}

fn gpus(summary: &GpuSummary) -> GpuClaims {
    let distinct = |texts: Vec<String>| {
        let mut texts = texts;
        texts.sort_unstable();
        texts.dedup();
        texts
    };
    let of = |field: &dyn Fn(&gpu_verify::VerifiedGpu) -> Option<String>| {
        distinct(summary.gpus().iter().filter_map(field).collect())
    };
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    GpuClaims {
        count: count(summary.gpus().len()),
        switches: count(summary.switches().len()),
        architectures: of(&|gpu| Some(gpu.architecture().to_string())),
        drivers: of(&|gpu| Some(gpu.driver_version().to_owned())),
        vbioses: of(&|gpu| Some(gpu.vbios_version().to_owned())),
        modes: of(&|gpu| gpu.mode().map(|mode| mode.to_string())),
        hardware: summary.hardware().to_owned(),
        revocation: summary.revocation().to_owned(),
        driver_state: summary.driver_state().to_owned(),
        // As every number of a document: what JSON readers keep exactly.
        expires: summary.expires().min((1 << 53) - 1),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use core::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
