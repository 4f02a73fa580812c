// SPDX-License-Identifier: Apache-2.0
//! `agent.toml`: what a provider declares. Unknown fields are refused; every reason names its field by path.

mod check;
mod read;
mod sources;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use fleet::{Backoff, GuestName, Strategy};
use serde::Deserialize;
use tdx_verify::AcceptedTcb;
use types::{Blake3Digest, ModelId, Refusal, Sha256Digest};
use vfio::PciAddress;

use crate::account::Account;
use crate::limits::Demand;
pub(crate) use sources::{BucketSection, source};

/// The whole file, every reference in it resolved to something that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) agent: AgentSection,
    pub(crate) cache: CacheSection,
    pub(crate) hardware: HardwareSection,
    /// Its presence makes every guest a rehearsal: emulated, on simulated hardware.
    pub(crate) simulate: Option<SimulateSection>,
    /// Its presence makes the daemon watch how long this host's TCB is good enough.
    pub(crate) tcb: Option<TcbSection>,
    pub(crate) buckets: BTreeMap<String, BucketSection>,
    pub(crate) models: BTreeMap<String, ModelSection>,
    pub(crate) releases: BTreeMap<String, ReleaseSection>,
    pub(crate) services: BTreeMap<String, ServiceSection>,
    pub(crate) guests: BTreeMap<GuestName, GuestSection>,
}

/// `[agent]`: the daemon itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentSection {
    /// Run directories, state, copies of releases. A short path: sockets are made in it.
    pub(crate) state_dir: PathBuf,
    /// Where `status`, `stop`, `restart` and `reload` reach the daemon.
    pub(crate) control_socket: PathBuf,
    /// Who may: `owner` (0600) or `group` (0660).
    pub(crate) control_access: Access,
    /// Where Prometheus finds metrics; loopback only. Left out: nowhere.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Whom guests run as, where the daemon is root; `chrysalis` where it is left out.
    pub(crate) user: Option<String>,
    /// Whether guests must have limits of memory, threads and processors (cgroup v2).
    pub(crate) guest_limits: Demand,
    /// What becomes of guests when the daemon is ended by SIGTERM.
    pub(crate) on_stop: OnStop,
    /// Pause before a guest that failed is started again; doubled after each failure in a row. Where somebody has to mend
    /// something first (a wrong pin, a damaged model), pauses are 60 times as long.
    pub(crate) retry_first_ms: u64,
    /// Longest pause; 12 times as long where somebody has to mend something.
    pub(crate) retry_cap_s: u64,
    /// After serving this long a guest's failures are forgotten.
    pub(crate) stable_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    Owner,
    Group,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnStop {
    /// They go on, and the next daemon adopts them: for upgrades of the agent.
    Keep,
    /// They are drained and stopped first.
    Drain,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/chrysalis/agent".into(),
            control_socket: "/run/chrysalis/agent.sock".into(),
            control_access: Access::Owner,
            metrics_listen: None,
            user: None,
            guest_limits: Demand::Try,
            on_stop: OnStop::Keep,
            retry_first_ms: 1_000,
            retry_cap_s: 300,
            stable_s: 600,
        }
    }
}

impl Config {
    /// Whom guests run as.
    ///
    /// # Errors
    /// That account cannot be used.
    pub(crate) fn account(&self) -> Result<Account, Refusal> {
        Account::of(self.agent.user.as_deref(), self.simulate.is_some())
    }
}

impl AgentSection {
    pub(crate) fn backoff(&self) -> Backoff {
        let cap_ms = self.retry_cap_s.saturating_mul(1000);
        Backoff {
            first_ms: self.retry_first_ms,
            cap_ms,
            slow_first_ms: self.retry_first_ms.saturating_mul(60),
            slow_cap_ms: cap_ms.saturating_mul(12),
            stable_ms: self.stable_s.saturating_mul(1000),
        }
    }
}

/// `[cache]`: encrypted model packs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CacheSection {
    pub(crate) dir: PathBuf,
    /// Most GiB of packs.
    pub(crate) quota_gib: u64,
    /// Certificates that https sources are judged by, PEM.
    pub(crate) authorities: PathBuf,
}

impl Default for CacheSection {
    fn default() -> Self {
        Self { dir: "/var/lib/chrysalis/cache".into(), quota_gib: 500, authorities: default_authorities() }
    }
}

/// `[hardware]`: programs and sockets of this host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HardwareSection {
    pub(crate) qemu: PathBuf,
    /// Socket of the quote generation service.
    pub(crate) quote_socket: PathBuf,
    /// Used in a rehearsal, where the kernel's vhost-vsock is not.
    pub(crate) vhost_device_vsock: PathBuf,
    /// The agent binds the GPUs of a guest before it starts and gives them back when no guest is to have them: it must be
    /// allowed to write sysfs. Otherwise somebody binds them before (`host-agent gpu bind`, `chrysalis-gpus.service`).
    pub(crate) bind_gpus: bool,
    /// Files that guests with GPUs may ask for, `rim/NAME` and `ocsp/NAME`; guests' user must be able to read them.
    pub(crate) gpu_blobs: Option<PathBuf>,
    /// Root of the files in which GPUs and free memory are looked up: another than `/` for tests only.
    pub(crate) root: PathBuf,
}

impl Default for HardwareSection {
    fn default() -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            quote_socket: "/var/run/tdx-qgs/qgs.socket".into(),
            vhost_device_vsock: "vhost-device-vsock".into(),
            bind_gpus: false,
            gpu_blobs: None,
            root: "/".into(),
        }
    }
}

/// `[simulate]`: what stands in for the hardware.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SimulateSection {
    /// The program.
    pub(crate) simulator: PathBuf,
    /// Its key directory.
    pub(crate) pki: PathBuf,
}

/// `[tcb]`: what the watch of this host's TCB goes by.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TcbSection {
    /// Intel's collateral, as `attestation-service collateral fetch` writes it. An agent's own: it may write there.
    pub(crate) collateral_dir: PathBuf,
    /// A PCCS, or Intel's PCS, to renew it from; left out, others put the files there.
    pub(crate) pccs: Option<String>,
    /// Certificates that an https PCCS is judged by, PEM.
    #[serde(default = "default_authorities")]
    pub(crate) authorities: PathBuf,
    /// A file with a quote of this host, for as long as no guest has served.
    pub(crate) quote: Option<PathBuf>,
    /// What your clients' and models' policies accept; `UpToDate` alone where it is left out.
    #[serde(default = "super::tcb::up_to_date")]
    pub(crate) accept: Vec<AcceptedTcb>,
}

/// `[models.NAME]`: an encrypted pack.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSection {
    /// `name@revision:identity`.
    pub(crate) model: ModelName,
    /// Its root: BLAKE3 of `pack.json`.
    pub(crate) pack: Blake3Digest,
    /// Directories and addresses, the preferred one first; `s3://NAME/PREFIX` of a section of `buckets`.
    pub(crate) sources: Vec<String>,
}

/// A model's name as text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ModelName(pub(crate) ModelId);

impl TryFrom<String> for ModelName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }
}

/// `[releases.NAME]`: an image and the proof of its release.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseSection {
    /// The sigstore bundle.
    pub(crate) bundle: PathBuf,
    /// Whom to believe: a `chrysalis/release-trust/v1` document.
    pub(crate) trust: PathBuf,
    /// The image's files.
    pub(crate) image: PathBuf,
}

/// `[services.NAME]`: an attestation service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceSection {
    pub(crate) address: SocketAddr,
    pub(crate) spki_sha256: Sha256Digest,
}

/// `[guests.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestSection {
    /// Where clients reach it.
    pub(crate) listen: SocketAddrV4,
    pub(crate) release: String,
    pub(crate) model: String,
    pub(crate) service: String,
    pub(crate) vcpus: u16,
    pub(crate) memory_mib: u32,
    /// Width of physical addresses; left out, that of the processor (40 in a rehearsal).
    pub(crate) physical_bits: Option<u8>,
    /// The host's NUMA node that it runs on, that of its GPUs as a rule; left out, the kernel chooses.
    pub(crate) numa_node: Option<u16>,
    /// PCI addresses of its GPUs.
    #[serde(default)]
    pub(crate) gpus: Vec<GpuAddress>,
    /// PCI addresses of the NVSwitches of its board: the four of a whole board of eight GPUs in protected PCIe, or none.
    #[serde(default)]
    pub(crate) nvswitches: Vec<GpuAddress>,
    #[serde(default = "default_context")]
    pub(crate) context_tokens: u32,
    #[serde(default = "default_decode")]
    pub(crate) threads_decode: u16,
    #[serde(default = "default_prefill")]
    pub(crate) threads_prefill: u16,
    /// Tokens that are computed at once; left out, as many as leave answers the same in any company.
    pub(crate) prompt_rows: Option<u16>,
    #[serde(default = "default_address")]
    pub(crate) guest_address: Ipv4Addr,
    #[serde(default = "default_port")]
    pub(crate) guest_port: u16,
    /// How it is exchanged; left out, `beside` without GPUs and `replace` with.
    pub(crate) strategy: Option<Strategy>,
    /// It must serve within this many seconds.
    #[serde(default = "default_boot")]
    pub(crate) boot_deadline_s: u64,
    /// Serving, it may be silent for this many seconds before it is ended and started again; 0: for ever.
    #[serde(default = "default_silence")]
    pub(crate) silence_deadline_s: u64,
    /// Connections of what was replaced or stopped may go on for this many seconds.
    #[serde(default = "default_drain")]
    pub(crate) drain_deadline_s: u64,
    /// Launch although the release has no reference for this machine. Clients whose policy does not take ACPI from the
    /// guest's log refuse such a guest.
    #[serde(default)]
    pub(crate) unpublished_shape: bool,
}

/// A PCI address as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct GpuAddress(pub(crate) PciAddress);

impl TryFrom<String> for GpuAddress {
    type Error = vfio::AddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl GuestSection {
    pub(crate) fn strategy(&self) -> Strategy {
        self.strategy.unwrap_or(if self.gpus.is_empty() { Strategy::Beside } else { Strategy::Replace })
    }
}

fn default_authorities() -> PathBuf {
    "/etc/ssl/certs/ca-certificates.crt".into()
}

const fn default_context() -> u32 {
    4096
}

const fn default_decode() -> u16 {
    1
}

const fn default_prefill() -> u16 {
    2
}

const fn default_address() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 15)
}

const fn default_port() -> u16 {
    8443
}

const fn default_boot() -> u64 {
    600
}

const fn default_silence() -> u64 {
    300
}

const fn default_drain() -> u64 {
    300
}
