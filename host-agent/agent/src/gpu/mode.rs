// SPDX-License-Identifier: Apache-2.0
//! `host-agent gpu mode`.

use std::path::Path;

use clap::Args;
use gpu_mode::{Bar0, Chip, KnobStep, Mode, ModeError, Reading, knob_steps, planned, query, set, verify};
use serde_json::{Value, json};
use types::Refusal;
use vfio::{
    Architecture, BindError, DeviceKind, HostTree, Journal, PciAddress, PciDevice, RegisterAccess, gpus_and_switches,
    usage,
};

use super::Done;

#[derive(Debug, Args)]
pub(super) struct ModeArgs {
    /// PCI addresses, as `gpu list` shows them.
    #[arg(value_name = "ADDRESS", required_unless_present = "all", conflicts_with = "all")]
    addresses: Vec<PciAddress>,
    /// All GPUs and NVSwitches.
    #[arg(long)]
    all: bool,
    /// Set this mode and reset the device: off, on, devtools or ppcie (all GPUs and NVSwitches of a board). NVSwitches
    /// have no mode `on`: with --all they are set to `off` then.
    #[arg(long, value_name = "MODE", value_parser = str::parse::<Mode>)]
    set: Option<Mode>,
    /// Print what would be written, and write nothing.
    #[arg(long, requires = "set")]
    dry_run: bool,
    /// With --dry-run: every register access, too.
    #[arg(long, requires = "dry_run")]
    registers: bool,
}

/// One device and what shall become of it.
struct Target {
    device: PciDevice,
    chip: Chip,
    mode: Option<Mode>,
}

pub(super) fn run(tree: &HostTree, state_dir: &Path, args: &ModeArgs) -> anyhow::Result<Done> {
    let devices = gpus_and_switches(tree)?;
    let targets = match targets(&devices, args) {
        Ok(targets) => targets,
        Err(reason) => return Ok(Done::No { document: json!({ "devices": [] }), reasons: vec![reason] }),
    };
    if args.dry_run {
        return dry_run(&targets, args.registers);
    }
    // Nobody binds or unbinds while modes are set.
    let lock = args.set.map(|_| Journal::open(state_dir, tree)).transpose();
    let _lock = match lock {
        Ok(lock) => lock,
        Err(error) => {
            let reasons = vec![BindError::from(error).refusal()];
            return Ok(Done::No { document: json!({ "devices": [] }), reasons });
        }
    };
    // Every device is looked at before one is changed.
    let reasons: Vec<Refusal> = targets.iter().filter_map(|target| unused(tree, &target.device).err()).collect();
    if !reasons.is_empty() {
        return Ok(Done::No { document: json!({ "devices": [] }), reasons });
    }
    let (mut rows, mut text) = (Vec::new(), String::new());
    for target in &targets {
        match handle(tree, target) {
            Ok(Handled { before, changed, now }) => {
                let address = target.device.address;
                let changed: Vec<KnobStep> = changed;
                rows.push(json!({
                    "address": address, "chip": target.chip, "before": mode_word(before), "mode": mode_word(now),
                    "cc": now.cc, "ppcie": now.ppcie, "changed": changed,
                }));
                let was = if target.mode.is_some() { format!(" (was {})", mode_word(before)) } else { String::new() };
                text.push_str(&format!("{address}: {}{was}\n", mode_word(now)));
            }
            Err(reason) => return Ok(Done::No { document: json!({ "devices": rows }), reasons: vec![reason] }),
        }
    }
    Ok(Done::Yes { document: json!({ "devices": rows }), text })
}

/// The mode of an unused device as one word.
pub(crate) fn shown_mode(tree: &HostTree, address: PciAddress) -> Result<String, String> {
    let devices = gpus_and_switches(tree).map_err(|error| error.to_string())?;
    let device = devices.into_iter().find(|device| device.address == address).ok_or("no such GPU")?;
    let chip = chip_of(&device).ok_or("a GPU without a confidential computing mode")?;
    unused(tree, &device).map_err(|reason| reason.detail)?;
    let target = Target { device, chip, mode: None };
    handle(tree, &target).map(|handled| mode_word(handled.now)).map_err(|reason| reason.detail)
}

struct Handled {
    before: Reading,
    changed: Vec<KnobStep>,
    now: Reading,
}

fn handle(tree: &HostTree, target: &Target) -> Result<Handled, Refusal> {
    let address = target.device.address;
    let refused = |error: &dyn std::fmt::Display| {
        Refusal::new(
            "gpu_registers_unreachable",
            &address.to_string(),
            error.to_string(),
            "run it as root, with kernel lockdown off; if the device is off the bus, power the server off and on",
        )
    };
    let access = RegisterAccess::take(tree, address).map_err(|error| refused(&error))?;
    let file = tree.open_read_write(&address.file("resource0")).map_err(|error| refused(&error))?;
    let mut space = Bar0::map(&file, target.chip.register_bytes()).map_err(|error| refused(&error))?;
    let failed = |error: ModeError| mode_refusal(address, &error);
    let before = query(&mut space, target.chip).map_err(failed)?;
    let Some(mode) = target.mode else { return Ok(Handled { before, changed: Vec::new(), now: before }) };
    let changed = set(&mut space, target.chip, mode).map_err(failed)?;
    if changed.is_empty() && before.mode() == Some(mode) {
        return Ok(Handled { before, changed, now: before });
    }
    tree.write(&address.file("reset"), "1").map_err(|error| {
        Refusal::new(
            "gpu_reset_failed",
            &address.file("reset"),
            format!("{error}: the mode is set, but not in force"),
            "reboot the server, then ask again: host-agent gpu mode",
        )
    })?;
    access.again().map_err(|error| refused(&error))?;
    let now = verify(&mut space, target.chip, mode).map_err(failed)?;
    Ok(Handled { before, changed, now })
}

fn targets(devices: &[PciDevice], args: &ModeArgs) -> Result<Vec<Target>, Refusal> {
    let selected: Vec<PciDevice> = if args.all {
        devices.iter().filter(|device| chip_of(device).is_some()).cloned().collect()
    } else {
        let find = |address: &PciAddress| {
            let device = devices.iter().find(|device| device.address == *address);
            device.cloned().ok_or_else(|| {
                let detail = format!("no GPU or NVSwitch has the address {address}");
                Refusal::new("gpu_not_found", &address.to_string(), detail, "host-agent gpu list shows what is there")
            })
        };
        args.addresses.iter().map(find).collect::<Result<_, _>>()?
    };
    if selected.is_empty() {
        let detail = "no GPU or NVSwitch with a confidential computing mode is there";
        return Err(Refusal::new("gpu_not_found", "--all", detail, "host-agent gpu list shows what is there"));
    }
    if args.set == Some(Mode::Ppcie) {
        whole_board(devices, &selected)?;
    }
    selected.into_iter().map(|device| target(device, args)).collect()
}

fn target(device: PciDevice, args: &ModeArgs) -> Result<Target, Refusal> {
    let field = device.address.to_string();
    let fix = "use Hopper or Blackwell GPUs, or NVSwitches of their boards";
    let chip = chip_of(&device).ok_or_else(|| {
        let detail = format!("{:04x}:{:04x} has no confidential computing mode", device.vendor, device.device);
        Refusal::new("gpu_mode_unsupported", &field, detail, fix)
    })?;
    let mode = match args.set {
        Some(Mode::On | Mode::DevTools) if args.all && chip == Chip::NvSwitch3 => Some(Mode::Off),
        mode => mode,
    };
    if let Some(mode) = mode {
        knob_steps(chip, mode).map_err(|error| mode_refusal(device.address, &error))?;
    }
    Ok(Target { device, chip, mode })
}

/// Protected PCIe holds for a board as a whole: with a GPU or switch outside, NVLink would reach out of the guest.
fn whole_board(devices: &[PciDevice], selected: &[PciDevice]) -> Result<(), Refusal> {
    let missing = devices.iter().find(|device| {
        matches!(chip_of(device), Some(Chip::Hopper | Chip::NvSwitch3))
            && !selected.iter().any(|other| other.address == device.address)
    });
    match missing {
        None => Ok(()),
        Some(device) => Err(Refusal::new(
            "ppcie_set_incomplete",
            &device.address.to_string(),
            "Protected PCIe is for all GPUs and NVSwitches of a board together; this one was not named",
            "host-agent gpu mode --all --set ppcie",
        )),
    }
}

fn chip_of(device: &PciDevice) -> Option<Chip> {
    match (device.kind, device.architecture()) {
        (DeviceKind::NvSwitch, _) if device.device == NVSWITCH_3 => Some(Chip::NvSwitch3),
        (_, Architecture::Hopper) => Some(Chip::Hopper),
        (_, Architecture::Blackwell100) => Some(Chip::Blackwell100),
        (_, Architecture::Blackwell200) => Some(Chip::Blackwell200),
        _ => None,
    }
}

/// No driver that uses the device, nobody who has it open.
fn unused(tree: &HostTree, device: &PciDevice) -> Result<(), Refusal> {
    let field = device.address.to_string();
    if device.boot_display {
        let fix = "set the primary display to the onboard controller in the firmware, reboot";
        return Err(Refusal::new("boot_display", &field, "it shows the host's boot messages", fix));
    }
    if let Some(driver) = device.driver.as_deref().filter(|driver| *driver != "vfio-pci") {
        let detail = format!("the driver {driver} has it");
        return Err(Refusal::new("gpu_busy", &field, detail, format!("host-agent gpu bind {}", device.address)));
    }
    let usage = usage(tree, std::slice::from_ref(device));
    match usage.holders.first() {
        Some(holder) => {
            let detail = format!("process {} has {} open", holder.pid, holder.node);
            Err(Refusal::new("gpu_busy", &field, detail, "stop the guest that has it"))
        }
        None if usage.is_free() => Ok(()),
        None => {
            let detail = format!("the open files of {} processes cannot be seen", usage.unseen);
            Err(Refusal::new("permission_missing", &field, detail, "run it as root"))
        }
    }
}

fn dry_run(targets: &[Target], registers: bool) -> anyhow::Result<Done> {
    let (mut rows, mut text) = (Vec::new(), String::new());
    for Target { device, chip, mode } in targets {
        let Some(mode) = *mode else { continue };
        let steps = knob_steps(*chip, mode)?;
        text.push_str(&format!("{}: {mode}, for a {chip:?}\n", device.address));
        for step in &steps {
            let when = if step.optional { ", if the firmware knows it" } else { "" };
            text.push_str(&format!("  knob {:>2} ({:?}) = {}{when}\n", step.knob.id(), step.knob, step.value));
        }
        let accesses: Vec<String> =
            if registers { planned(*chip, mode)?.iter().map(ToString::to_string).collect() } else { Vec::new() };
        for access in &accesses {
            text.push_str(&format!("    {access}\n"));
        }
        text.push_str("  reset, wait until it has started, ask the mode\n");
        let mut row = json!({ "address": device.address, "chip": chip, "mode": mode, "steps": steps });
        if let (Some(row), true) = (row.as_object_mut(), registers) {
            row.insert("registers".to_owned(), json!(accesses));
        }
        rows.push(row);
    }
    Ok(Done::Yes { document: json!({ "dry_run": true, "devices": Value::Array(rows) }), text })
}

fn mode_refusal(address: PciAddress, error: &ModeError) -> Refusal {
    let (code, fix) = match error {
        ModeError::Unsupported { .. } => (
            "gpu_mode_unsupported",
            "Hopper GPUs have on, devtools and ppcie; Blackwell has on and devtools; NVSwitches have ppcie",
        ),
        ModeError::Firmware { .. } => (
            "gpu_firmware_refused",
            "update the device's firmware; if it stays, the setting is locked out of band (by the server's management controller)",
        ),
        ModeError::NotInForce { .. } => {
            ("gpu_mode_not_in_force", "reboot the server, then ask again: host-agent gpu mode")
        }
        _ => ("gpu_not_answering", "power the server off and on; then ask again: host-agent gpu mode"),
    };
    Refusal::new(code, &address.to_string(), error.to_string(), fix)
}

fn mode_word(reading: Reading) -> String {
    reading.mode().map_or_else(|| "invalid".to_owned(), |mode| mode.to_string())
}

/// The third generation's device identifier.
const NVSWITCH_3: u16 = 0x22a3;
