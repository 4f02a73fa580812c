// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tdx_verify::TrustAnchors;
use types::{ModelId, Sha256Digest};
use vfio::PciAddress;

use crate::daemon::DaemonArgs;
use crate::front::FrontArgs;
use crate::gpu::passing::{self, OpenSysfs};
use crate::record::LaunchRecord;
use crate::{cache, daemon, front, gpu, launch, manage, manual, preflight, prepare, top};

/// Prepares a host and runs guests on it.
#[derive(Debug, Parser)]
#[command(
    name = "host-agent",
    version,
    after_help = "Examples:\n  host-agent preflight\n  host-agent launch --run-dir run --image image --model-pack pack \\\n      --model smollm2@q4_1:<identity> --service 192.0.2.7:8443 --service-spki <sha256>\n  host-agent status --run-dir run --json"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check what this host has and name what is missing, with the fix.
    Preflight(Box<preflight::PreflightArgs>),
    /// GPUs: list them, hand them to guests and take them back, ask and set their modes.
    Gpu(gpu::GpuArgs),
    /// Compose the disks and the launch record of a guest, without starting it.
    Prepare(PrepareArgs),
    /// Compose and start a guest, and watch over it in the foreground until it ends.
    Launch(Box<LaunchArgs>),
    /// Start what `prepare` composed, and watch over it in the foreground until it ends.
    Start(StartPreparedArgs),
    /// Run the guests that a file declares, and keep them running: the daemon.
    Agent(DaemonArgs),
    /// Say how the daemon's guests are, or the guest of a run directory.
    Status(manage::StatusArgs),
    /// Stop one of the daemon's guests until it is restarted, all of them, or the guest of a run directory.
    Stop(manage::StopArgs),
    /// Start a stopped guest, or exchange a running one for a new generation of the same.
    Restart(manage::RestartArgs),
    /// Have the daemon read its configuration again.
    Reload(manage::SocketArgs),
    /// Live view of the daemon's guests.
    Top(top::TopArgs),
    /// Show what keeper, QEMU and their helpers said on this host. Nothing of a guest is in it.
    Logs(manage::LogsArgs),
    /// Encrypted model packs on this host.
    Cache(cache::CacheArgs),
    /// Pass clients' connections on to a guest; the daemon starts it.
    #[command(hide = true)]
    Front(FrontArgs),
    /// Write manual pages and completions for shells, for packages.
    Manual(manual::ManualArgs),
}

/// What a launch is composed of.
#[derive(Debug, Clone, Args)]
pub(crate) struct PrepareArgs {
    /// Directory of this guest: disks, sockets, logs. Made if missing, readable by its owner alone.
    #[arg(long)]
    pub(crate) run_dir: PathBuf,
    /// The image: firmware.fd, vmlinuz, initrd, cmdline; the one for GPUs also has rootfs and image.json.
    #[arg(long)]
    pub(crate) image: PathBuf,
    /// The encrypted model pack, a directory: it is laid out anew in the run directory.
    #[arg(long, required_unless_present = "model_disk", conflicts_with = "model_disk")]
    pub(crate) model_pack: Option<PathBuf>,
    /// The pack as a disk, which several guests may share (`host-agent cache path`, `model disk`).
    #[arg(long)]
    pub(crate) model_disk: Option<PathBuf>,
    /// The model's name, name@revision:identity.
    #[arg(long)]
    pub(crate) model: ModelId,
    /// Address of the attestation service that the guest's connections are forwarded to.
    #[arg(long)]
    pub(crate) service: SocketAddr,
    /// SHA-256 of the service's SPKI (`attestation-service identity`).
    #[arg(long)]
    pub(crate) service_spki: Sha256Digest,
    /// Where clients reach the guest. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddrV4,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 2)]
    pub(crate) vcpus: u16,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024)]
    pub(crate) memory_mib: u32,
    /// NVIDIA GPUs that the guest shall find, 0 to 16; it halts when it finds another number. As many as --gpu names,
    /// where it names some.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub(crate) gpus: u8,
    /// A GPU of this host that the guest gets, by its PCI address; several can be named. Bind it first (`host-agent gpu
    /// bind`). Such a guest is accepted only by clients whose policy takes ACPI tables from the guest's log.
    #[arg(long = "gpu", value_name = "ADDRESS")]
    pub(crate) gpu: Vec<PciAddress>,
    /// An NVSwitch of this host that the guest gets with the GPUs of its board (protected PCIe: eight GPUs and four switches).
    #[arg(long = "nvswitch", value_name = "ADDRESS")]
    pub(crate) nvswitch: Vec<PciAddress>,
    /// Root of the files in which GPUs are looked up: another than / for tests only.
    #[arg(long, hide = true, default_value = "/")]
    pub(crate) hardware_root: PathBuf,
    /// The host's NUMA node whose processors QEMU runs on and whose memory it takes first. The guest sees nothing of it.
    #[arg(long)]
    pub(crate) numa_node: Option<u16>,
    /// Width of the guest's physical addresses in bits, part of its measured shape. Left out: that of this host's
    /// processor under KVM (TDX allows no other), 40 under emulation.
    #[arg(long)]
    pub(crate) physical_bits: Option<u8>,
    /// QEMU to run.
    #[arg(long, default_value = "qemu-system-x86_64")]
    pub(crate) qemu: PathBuf,
    /// How vCPUs run.
    #[arg(long, value_enum, default_value_t = AcceleratorArg::Kvm)]
    pub(crate) accel: AcceleratorArg,
    /// The kind of trust domain.
    #[arg(long, value_enum, default_value_t = TeeArg::Tdx)]
    pub(crate) tee: TeeArg,
    /// Socket of the quote generation service (TDX).
    #[arg(long, default_value = "/var/run/tdx-qgs/qgs.socket")]
    pub(crate) quote_socket: PathBuf,
    /// The guest's context identifier for vsock (TDX).
    #[arg(long, default_value_t = 3)]
    pub(crate) cid: u32,
    /// Somebody else takes vsock connections and passes them on to Unix sockets in the run directory.
    #[arg(long, hide = true)]
    pub(crate) switched: bool,
    /// Whoever connects to the guest says first whose the connection is, by a header of the PROXY protocol, version 2.
    #[arg(long, hide = true)]
    pub(crate) proxy_protocol: bool,
    /// The guest's address on its own network.
    #[arg(long, default_value = "10.0.2.15")]
    pub(crate) guest_address: Ipv4Addr,
    /// Port of the attested API inside the guest.
    #[arg(long, default_value_t = 8443)]
    pub(crate) guest_port: u16,
    /// Context window in tokens.
    #[arg(long, default_value_t = 4096)]
    pub(crate) context_tokens: u32,
    /// Threads that decode.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads_decode: u16,
    /// Threads that read prompts.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads_prefill: u16,
    /// Tokens that are computed at once, 1 to 512. With more than by default (63; GPUs always compute 512) prompts are read
    /// faster, and an answer depends on what is computed beside it, in the rounding of its sums.
    #[arg(long)]
    pub(crate) prompt_rows: Option<u16>,
}

/// A launch: composed anew, then started.
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    #[command(flatten)]
    pub(crate) prepare: PrepareArgs,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// Starting what `prepare` left in a run directory, as it is.
#[derive(Debug, Args)]
pub(crate) struct StartPreparedArgs {
    /// The guest's directory.
    #[arg(long)]
    pub(crate) run_dir: PathBuf,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// How a guest is started and watched.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// `vhost-device-vsock` to run where the kernel's vhost-vsock is not used.
    #[arg(long, default_value = "vhost-device-vsock")]
    pub(crate) vhost_device_vsock: PathBuf,
    /// Program that stands in for the hardware (with --tee simulated).
    #[arg(long)]
    pub(crate) simulator: Option<PathBuf>,
    /// Key directory of that program.
    #[arg(long)]
    pub(crate) simulator_pki: Option<PathBuf>,
    /// Give up when the guest does not serve within this many seconds; 0 waits for ever.
    #[arg(long, default_value_t = 600)]
    pub(crate) boot_timeout: u64,
    /// End a guest that serves and has not answered for this many seconds; 0 only says that it does not.
    #[arg(long, default_value_t = 0)]
    pub(crate) silence_timeout: u64,
    /// Directory whose files the guest may ask for: `rim/NAME`, `ocsp/NAME`. For guests with GPUs.
    #[arg(long)]
    pub(crate) gpu_blobs: Option<PathBuf>,
    /// Which attempt this is; written to progress.json for who counts them.
    #[arg(long, default_value_t = 1, hide = true)]
    pub(crate) attempt: u32,
    /// Print one JSON document per line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceleratorArg {
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TeeArg {
    Tdx,
    Simulated,
}

/// What the program takes the machine for. A test takes another.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Whose quotes and collateral count when the daemon watches this host's TCB.
    pub anchors: TrustAnchors,
    /// How GPUs are bound.
    pub sysfs: OpenSysfs,
}

impl Surroundings {
    /// Intel's root, and the kernel.
    #[must_use]
    pub const fn real() -> Self {
        Self { anchors: TrustAnchors::intel(), sysfs: passing::kernel }
    }
}

/// Runs the command. Exit code 0 for success, 1 for a failure, 2 for a guest or host that was refused, 64 for wrong usage.
#[must_use]
pub fn run(surroundings: &Surroundings, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no error. A closed stream leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Preflight(args) => preflight::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Prepare(args) => prepare::run(&args).map(|_| ExitCode::SUCCESS),
        Command::Launch(args) => {
            prepare::run(&args.prepare).and_then(|record| launch::run(&args.start, &args.prepare.run_dir, &record))
        }
        Command::Start(args) => {
            LaunchRecord::load(&args.run_dir).and_then(|record| launch::run(&args.start, &args.run_dir, &record))
        }
        Command::Agent(args) => daemon::run(&args, surroundings),
        Command::Status(args) => manage::status(&args),
        Command::Stop(args) => manage::stop(&args),
        Command::Restart(args) => manage::restart(&args),
        Command::Reload(args) => manage::reload(&args),
        Command::Top(args) => top::run(&args),
        Command::Logs(args) => manage::logs(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Front(args) => front::run(&args),
        Command::Manual(args) => manual::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("host-agent: {error:#}");
        ExitCode::FAILURE
    })
}

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
