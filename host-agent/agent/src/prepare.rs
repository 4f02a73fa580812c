// SPDX-License-Identifier: Apache-2.0
//! Composing a launch: configuration disk, model disk, TD parameters, record.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use types::config::{ClientAddress, EngineSettings, Fixed, Free, Network, Policy, ServiceLink};
use types::{Device, Document, GuestConfig, MachineShape, QemuVersion, Role, Sha384Digest, shape::ShapeFacts};

use crate::cli::{AcceleratorArg, PrepareArgs, TeeArg};
use crate::gpu::passing as gpus;
use crate::numa::NumaPlace;
use crate::record::{CONFIG_DISK, LaunchRecord, MODEL_DISK, TD_PARAMS};
use crate::{files, image};

/// Composes everything that a launch needs in the run directory.
pub(crate) fn run(args: &PrepareArgs) -> anyhow::Result<LaunchRecord> {
    files::private_directory(&args.run_dir)?;
    let run_dir = args.run_dir.canonicalize().context("run directory")?;
    anyhow::ensure!(
        run_dir.as_os_str().len() + LONGEST_SOCKET_NAME <= MAX_SOCKET_PATH,
        "{} is too long for the names of sockets in it: choose a run directory of at most {} bytes",
        run_dir.display(),
        MAX_SOCKET_PATH - LONGEST_SOCKET_NAME
    );
    let image = args.image.canonicalize().with_context(|| format!("image {}", args.image.display()))?;
    let devices = image::devices(&image)?;
    let count = gpu_count(args)?;
    anyhow::ensure!(
        count == 0 || devices.contains(&Device::RootDisk),
        "the image {} has no driver for a GPU: take the release's image for GPUs, or leave --gpus out",
        image.display()
    );
    let listen = free_port(args.listen)?;
    let shape = shape(args, devices)?;
    let config = GuestConfig { gpus: Free(count), ..guest_config(args, &shape) };
    let bytes = config.to_canonical().context("guest configuration")?;
    GuestConfig::parse(&bytes).context("guest configuration")?;
    let mr_config_id = GuestConfig::mr_config_id(&bytes);
    files::write_atomically(&run_dir.join(CONFIG_DISK), &config_disk(&bytes)?)?;
    let model_disk = match (&args.model_pack, &args.model_disk) {
        (Some(pack), None) => {
            let disk = run_dir.join(MODEL_DISK);
            compose_model_disk(pack, &disk)?;
            disk
        }
        (None, Some(disk)) => disk.canonicalize().with_context(|| format!("model disk {}", disk.display()))?,
        _ => anyhow::bail!("name either --model-pack or --model-disk"),
    };
    if args.tee == TeeArg::Simulated {
        files::write_atomically(&run_dir.join(TD_PARAMS), td_params(&mr_config_id).as_bytes())?;
    }
    let record = LaunchRecord {
        schema: LaunchRecord::SCHEMA.to_owned(),
        shape,
        image,
        model_disk,
        qemu: args.qemu.clone(),
        kvm: args.accel == AcceleratorArg::Kvm,
        simulated: args.tee == TeeArg::Simulated,
        mr_config_id,
        quote_socket: args.quote_socket.clone(),
        cid: args.cid,
        switched: args.switched,
        service: args.service,
        listen,
        guest_address: args.guest_address,
        guest_port: args.guest_port,
        gpus: args.gpu.iter().map(ToString::to_string).collect(),
        nvswitches: args.nvswitch.iter().map(ToString::to_string).collect(),
        iommufd: gpus::over_iommufd(&args.hardware_root, &[&args.gpu[..], &args.nvswitch].concat()),
        numa: numa(args)?,
    };
    record.store(&run_dir)?;
    Ok(record)
}

fn numa(args: &PrepareArgs) -> anyhow::Result<Option<NumaPlace>> {
    let find = |node| NumaPlace::find(&args.hardware_root, node, "--numa-node");
    args.numa_node.map(find).transpose().map_err(|refusal| anyhow::anyhow!("{refusal}"))
}

/// Version of a QEMU binary, from what it says of itself.
pub(crate) fn qemu_version(qemu: &Path) -> anyhow::Result<QemuVersion> {
    let output = Command::new(qemu).arg("--version").output().with_context(|| {
        format!("cannot run {}: install Debian's package qemu-system-x86 or name another with --qemu", qemu.display())
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("{} does not say its version", qemu.display()))
}

fn parse_version(text: &str) -> Option<QemuVersion> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some(QemuVersion { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
}

fn shape(args: &PrepareArgs, devices: Vec<Device>) -> anyhow::Result<MachineShape> {
    MachineShape::new(ShapeFacts {
        vcpus: args.vcpus,
        memory_mib: args.memory_mib,
        physical_bits: physical_bits(args)?,
        qemu: qemu_version(&args.qemu)?,
        devices,
    })
    .context("machine shape")
}

/// Width of the guest's physical addresses, as the shape says it.
fn physical_bits(args: &PrepareArgs) -> anyhow::Result<u8> {
    match (args.physical_bits, args.accel) {
        (Some(bits), _) => Ok(bits),
        (None, AcceleratorArg::Tcg) => Ok(EMULATED_PHYSICAL_BITS),
        // CPUID, as QEMU reads it, and not /proc/cpuinfo, which subtracts the bits that memory encryption takes.
        (None, AcceleratorArg::Kvm) => {
            let [width, ..] = core::arch::x86_64::__cpuid(ADDRESS_SIZES_LEAF).eax.to_le_bytes();
            anyhow::ensure!(width != 0, "the processor does not say how wide its addresses are: name --physical-bits");
            Ok(width)
        }
    }
}

/// How many GPUs the guest shall find.
fn gpu_count(args: &PrepareArgs) -> anyhow::Result<u8> {
    let named = u8::try_from(args.gpu.len()).unwrap_or(u8::MAX);
    anyhow::ensure!(named <= 16, "--gpu: a guest has at most 16, {named} are named");
    let fits = named == 0 || args.gpus == 0 || args.gpus == named;
    anyhow::ensure!(fits, "--gpus says {}, --gpu names {named}: leave --gpus out", args.gpus);
    Ok(named.max(args.gpus))
}

fn guest_config(args: &PrepareArgs, shape: &MachineShape) -> GuestConfig {
    GuestConfig {
        schema: GuestConfig::SCHEMA.to_owned(),
        role: Fixed(Role::Inference),
        shape: Policy(shape.clone()),
        model: Policy(args.model.clone()),
        service: ServiceLink { vsock_port: Free(guest_link::SERVICE_PORT), spki_sha256: Policy(args.service_spki) },
        network: Network {
            address: Free(args.guest_address),
            prefix: Free(24),
            port: Free(args.guest_port),
            client_address: Free(if args.proxy_protocol {
                ClientAddress::ProxyProtocol
            } else {
                ClientAddress::Connection
            }),
        },
        engine: EngineSettings {
            context_tokens: Free(args.context_tokens),
            threads_decode: Free(args.threads_decode),
            threads_prefill: Free(args.threads_prefill),
            prompt_rows: args.prompt_rows.map(Free),
        },
        gpus: Free(0),
    }
}

/// Magic, length (u32, big-endian), bytes; padded to whole sectors.
fn config_disk(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u32::try_from(bytes.len()).context("guest configuration")?;
    let mut disk = [CONFIG_MAGIC.as_slice(), &length.to_be_bytes(), bytes].concat();
    disk.resize(disk.len().next_multiple_of(SECTOR), 0);
    Ok(disk)
}

/// How the guest of a run directory learns whose its connections are. Its own configuration says so, whichever version of
/// the agent composed it.
pub(crate) fn client_address(run_dir: &Path) -> anyhow::Result<ClientAddress> {
    let disk = files::read_shared(&run_dir.join(CONFIG_DISK), MAX_CONFIG_DISK)?;
    let bytes = configuration(&disk).context("the configuration's disk is damaged")?;
    Ok(GuestConfig::parse(bytes).context("guest configuration")?.network.client_address.0)
}

/// What [`config_disk`] was made of.
fn configuration(disk: &[u8]) -> Option<&[u8]> {
    let (length, rest) = disk.strip_prefix(&CONFIG_MAGIC)?.split_first_chunk()?;
    rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// What the creator of a trust domain sets: SEPT_VE_DISABLE alone, and the extended features that every guest gets.
fn td_params(mr_config_id: &Sha384Digest) -> String {
    let zero = Sha384Digest::ZERO;
    serde_json::json!({
        "schema": "chrysalis/td-params/v1",
        "mr_config_id": mr_config_id,
        "mr_owner": zero,
        "mr_owner_config": zero,
        "attributes": "0000001000000000",
        "xfam": "e702060000000000",
    })
    .to_string()
}

/// Takes a free port where the address asks for port 0.
fn free_port(listen: std::net::SocketAddrV4) -> anyhow::Result<std::net::SocketAddrV4> {
    let probe = TcpListener::bind(listen)
        .with_context(|| format!("cannot listen on {listen}: choose another address with --listen"))?;
    let port = probe.local_addr().context("listen address")?.port();
    Ok(std::net::SocketAddrV4::new(*listen.ip(), port))
}

fn compose_model_disk(pack: &Path, disk: &Path) -> anyhow::Result<()> {
    let source = model::Directory::open(pack).with_context(|| format!("model pack {}", pack.display()))?;
    model::disk::compose(&source, disk, &|_| ()).with_context(|| format!("model pack {}", pack.display()))
}

/// What QEMU's emulated processors have by default.
const EMULATED_PHYSICAL_BITS: u8 = 40;
/// CPUID leaf of address sizes: bits 7:0 of EAX (Intel SDM volume 2A, CPUID).
const ADDRESS_SIZES_LEAF: u32 = 0x8000_0008;
const CONFIG_MAGIC: [u8; 8] = *b"CHRYCFG1";
const SECTOR: usize = 512;
/// A configuration of any length, what stands before it, and padding.
const MAX_CONFIG_DISK: usize = GuestConfig::MAX_BYTES + 2 * SECTOR;
/// `sun_path` without its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// `/t/.tmp123456/qtest` of the simulator; `/vhost.sock` and `/vsock_7002` are shorter.
const LONGEST_SOCKET_NAME: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_qemu_says() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse_version(debian), Some(QemuVersion { major: 7, minor: 2 }));
        assert_eq!(parse_version("QEMU emulator version x"), None);
        assert_eq!(parse_version("something else 7.2"), None);
    }

    #[test]
    fn the_configuration_disk_has_whole_sectors() {
        let disk = config_disk(b"{}").unwrap();
        assert_eq!(disk.len(), 512);
        assert_eq!(&disk[..14], b"CHRYCFG1\0\0\0\x02{}");
        assert_eq!(configuration(&disk), Some(b"{}".as_slice()));
        assert_eq!(configuration(&disk[..13]), None);
        for length in 0..12 {
            assert_eq!(configuration(&disk[..length]), None);
        }
        assert_eq!(configuration(b"CHRYCFG2\0\0\0\x02{}"), None);
    }
}
