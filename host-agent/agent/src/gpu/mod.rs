// SPDX-License-Identifier: Apache-2.0
//! `host-agent gpu`: GPUs handed to guests and taken back, and their modes.

mod mode;
pub(crate) mod passing;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use types::Refusal;
use vfio::{
    BindError, Binder, DeviceKind, HostTree, Journal, Outcome, PciAddress, PciDevice, device_nodes, inventory,
    udev_rule,
};

use crate::files;

pub(crate) use mode::shown_mode;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  host-agent gpu list\n  sudo host-agent gpu bind 0000:b8:00.0\n  sudo host-agent gpu mode 0000:b8:00.0 --set on --dry-run\n  sudo host-agent gpu mode --all --set ppcie\n  sudo host-agent gpu unbind 0000:b8:00.0\n  sudo host-agent gpu udev-rule --group kvm --install"
)]
pub(crate) struct GpuArgs {
    #[command(subcommand)]
    command: GpuCommand,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Root of the files to read and write: of this machine, or a tree for tests.
    #[arg(long, global = true, default_value = "/")]
    root: PathBuf,
    /// Where it is written down what was bound, to give it back after a crash. Nobody else may write there.
    #[arg(long, global = true, default_value = "/var/lib/chrysalis-gpus")]
    state_dir: PathBuf,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum GpuCommand {
    /// List GPUs and NVSwitches.
    List,
    /// Bind GPUs, with all of their IOMMU groups, to vfio-pci.
    Bind(Addresses),
    /// Give GPUs, with all of their IOMMU groups, back to the drivers that they had.
    Unbind(Addresses),
    /// Ask or set the confidential computing mode of unused GPUs and NVSwitches.
    Mode(mode::ModeArgs),
    /// Print, or install, the rule that lets a group of users hand bound devices to guests.
    UdevRule(UdevRuleArgs),
}

#[derive(Debug, Args)]
struct Addresses {
    /// PCI addresses, as `gpu list` shows them.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<PciAddress>,
}

#[derive(Debug, Args)]
struct UdevRuleArgs {
    /// The group.
    #[arg(long, default_value = "kvm")]
    group: String,
    /// Write it to /etc/udev/rules.d.
    #[arg(long)]
    install: bool,
}

/// What a command came to: a document and text, or refusals with what was done before them.
enum Done {
    Yes { document: Value, text: String },
    No { document: Value, reasons: Vec<Refusal> },
}

/// Runs the command. Exit code 2 for a refusal.
pub(crate) fn run(args: &GpuArgs) -> anyhow::Result<ExitCode> {
    let Common { root, state_dir, json } = &args.common;
    let tree = HostTree::open(root)?;
    let done = match &args.command {
        GpuCommand::List => list(&tree)?,
        GpuCommand::Bind(Addresses { addresses }) => {
            bindings(&tree, change(&tree, state_dir, |binder| binder.bind(addresses)))?
        }
        GpuCommand::Unbind(Addresses { addresses }) => {
            bindings(&tree, change(&tree, state_dir, |binder| binder.unbind(addresses)))?
        }
        GpuCommand::Mode(args) => mode::run(&tree, state_dir, args)?,
        GpuCommand::UdevRule(args) => rule(root, args)?,
    };
    let (mut document, text, reasons) = match done {
        Done::Yes { document, text } => (document, text, Vec::new()),
        Done::No { document, reasons } => (document, String::new(), reasons),
    };
    if *json {
        if let (Some(object), false) = (document.as_object_mut(), reasons.is_empty()) {
            object.insert("reasons".to_owned(), serde_json::to_value(&reasons)?);
        }
        println!("{document}");
    } else {
        print!("{text}");
        for reason in &reasons {
            eprintln!("refused: {reason}");
        }
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn change(
    tree: &HostTree,
    state_dir: &Path,
    action: impl FnOnce(&mut Binder<'_>) -> Result<Outcome, BindError>,
) -> Result<Outcome, BindError> {
    action(&mut Binder::new(tree, tree, Journal::open(state_dir, tree)?))
}

fn bindings(tree: &HostTree, result: Result<Outcome, BindError>) -> anyhow::Result<Done> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => return Ok(Done::No { document: json!({}), reasons: error.refusals() }),
    };
    let mut text = String::new();
    for address in &outcome.recovered {
        text.push_str(&format!("{address}: an interrupted change was undone\n"));
    }
    for reason in &outcome.not_recovered {
        text.push_str(&format!("an interrupted change was not undone: {reason}\n"));
    }
    for address in &outcome.unchanged {
        text.push_str(&format!("{address}: nothing to do\n"));
    }
    let devices = inventory(tree)?;
    for device in devices.iter().filter(|device| outcome.changed.contains(&device.address)) {
        text.push_str(&format!("{}: {}\n", device.address, device.driver.as_deref().unwrap_or("no driver")));
        text.push_str(&node_advice(tree, device));
    }
    Ok(Done::Yes { document: serde_json::to_value(&outcome)?, text })
}

/// What a user other than root needs to pass a bound device on.
fn node_advice(tree: &HostTree, device: &PciDevice) -> String {
    if device.driver.as_deref() != Some("vfio-pci") {
        return String::new();
    }
    let closed = device_nodes(tree, device).into_iter().filter(|access| !access.usable());
    closed
        .map(|access| format!("  only root can use /{}: host-agent gpu udev-rule --group kvm --install\n", access.path))
        .collect()
}

fn list(tree: &HostTree) -> anyhow::Result<Done> {
    let devices = inventory(tree).context("the PCI devices cannot be listed")?;
    let ours = |kind| matches!(kind, DeviceKind::Gpu | DeviceKind::NvSwitch | DeviceKind::GpuCompanion);
    let mut rows = Vec::new();
    let mut text = String::new();
    for device in devices.iter().filter(|device| ours(device.kind)) {
        let nodes: Vec<Value> = device_nodes(tree, device)
            .into_iter()
            .map(|access| json!({ "path": format!("/{}", access.path), "there": access.node.is_some(), "usable": access.usable() }))
            .collect();
        let mut row = serde_json::to_value(device)?;
        if let Some(row) = row.as_object_mut() {
            row.insert("architecture".to_owned(), serde_json::to_value(device.architecture())?);
            row.insert("nodes".to_owned(), Value::Array(nodes));
        }
        rows.push(row);
        text.push_str(&format!(
            "{}  {:04x}:{:04x}  {:<9}  {:<12}  group {:<5}  numa {:<3}{}\n",
            device.address,
            device.vendor,
            device.device,
            kind_word(device.kind),
            device.driver.as_deref().unwrap_or("no driver"),
            device.iommu_group.map_or("none".to_owned(), |group| group.to_string()),
            device.numa_node.map_or("?".to_owned(), |node| node.to_string()),
            if device.boot_display { "  boot display" } else { "" },
        ));
    }
    if rows.is_empty() {
        text.push_str("no NVIDIA devices\n");
    }
    Ok(Done::Yes { document: json!({ "devices": rows }), text })
}

fn kind_word(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Gpu => "GPU",
        DeviceKind::NvSwitch => "NVSwitch",
        DeviceKind::GpuCompanion => "companion",
        DeviceKind::Bridge | DeviceKind::Other => "other",
    }
}

fn rule(root: &Path, args: &UdevRuleArgs) -> anyhow::Result<Done> {
    let Some(rule) = udev_rule(&args.group) else {
        let reason = Refusal::new(
            "group_name_invalid",
            "--group",
            "a group's name has lower-case letters, digits, - and _, at most 32, and begins with a letter or _",
            "name an existing group, such as kvm",
        );
        return Ok(Done::No { document: json!({}), reasons: vec![reason] });
    };
    if !args.install {
        return Ok(Done::Yes { document: json!({ "rule": rule }), text: rule });
    }
    let path = root.join("etc/udev/rules.d/70-chrysalis-vfio.rules");
    files::write_atomically(&path, rule.as_bytes())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot make {} readable", path.display()))?;
    let text = format!("{} written; now: udevadm control --reload && udevadm trigger\n", path.display());
    Ok(Done::Yes { document: json!({ "rule": rule, "path": path }), text })
}
