// SPDX-License-Identifier: Apache-2.0
//! The command line of the launched QEMU, and that of its twin.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::MeasureError;

/// A launched QEMU: program, arguments, directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
}

impl Launch {
    /// A launch with given arguments (without the program), run in `directory`.
    #[must_use]
    pub const fn new(program: PathBuf, arguments: Vec<String>, directory: PathBuf) -> Self {
        Self { program, arguments, directory }
    }

    /// The launch of a running process, from `/proc/PID`.
    ///
    /// # Errors
    /// [`MeasureError::File`], [`MeasureError::BadOption`] when an argument is not UTF-8.
    pub fn of_process(pid: u32) -> Result<Self, MeasureError> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let link = |name: &str| {
            let path = proc.join(name);
            fs::read_link(&path).map_err(|source| MeasureError::File { path, source })
        };
        let text = read(&proc.join("cmdline"))?;
        let mut arguments = Vec::new();
        for argument in text.strip_suffix(b"\0").unwrap_or(&text).split(|byte| *byte == 0) {
            let argument = String::from_utf8(argument.to_vec());
            arguments.push(argument.map_err(|e| MeasureError::BadOption(e.to_string()))?);
        }
        if arguments.is_empty() {
            return Err(MeasureError::MissingOption("the program"));
        }
        arguments.remove(0);
        Ok(Self { program: link("exe")?, arguments, directory: link("cwd")? })
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory it runs in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The firmware image that `-bios` names.
    pub(super) fn firmware(&self) -> Result<Vec<u8>, MeasureError> {
        let position = self.arguments.iter().position(|argument| argument == "-bios");
        let name = position.and_then(|position| self.arguments.get(position + 1));
        let name = name.ok_or(MeasureError::MissingOption("-bios"))?;
        read(&self.directory.join(name))
    }

    /// The arguments of the twin: the same machine without the outside world. Disks are empty, the network reaches
    /// nothing, and a vsock device, which needs a backend, is replaced by another virtio device with the same PCI
    /// resources; the ACPI tables describe slots and windows, not what stands in them.
    pub(super) fn twin_arguments(&self) -> Result<Vec<String>, MeasureError> {
        let mut out = Vec::new();
        let mut rest = self.arguments.iter();
        while let Some(option) = rest.next() {
            let name = option.strip_prefix('-').ok_or_else(|| MeasureError::UnknownOption(option.clone()))?;
            let name = name.strip_prefix('-').unwrap_or(name);
            if KEPT_FLAGS.contains(&name) {
                out.push(option.clone());
                continue;
            }
            if DROPPED_FLAGS.contains(&name) {
                continue;
            }
            let value = rest.next().ok_or_else(|| MeasureError::BadOption(option.clone()))?;
            if let Some(value) = twin_value(name, value)? {
                out.extend([option.clone(), value]);
            }
        }
        Ok(out)
    }
}

/// The value of an option in the twin, or nothing when the option is left out.
fn twin_value(name: &str, value: &str) -> Result<Option<String>, MeasureError> {
    let bad = || MeasureError::BadOption(format!("-{name} {value}"));
    Ok(match name {
        _ if KEPT_OPTIONS.contains(&name) => Some(value.to_owned()),
        _ if DROPPED_OPTIONS.contains(&name) => None,
        "serial" | "debugcon" | "parallel" => Some(if value == "none" { "none" } else { "null" }.to_owned()),
        "chardev" => Some(format!("null,id={}", property(value, "id").ok_or_else(bad)?)),
        "netdev" => Some(format!("user,id={},restrict=on", property(value, "id").ok_or_else(bad)?)),
        "drive" => Some(format!("if=none,id={},driver=null-co,read-only=on", property(value, "id").ok_or_else(bad)?)),
        "blockdev" => {
            let node = node_name(value).ok_or_else(bad)?;
            Some(format!("driver=null-co,node-name={node},read-only=on"))
        }
        "device" => Some(twin_device(value)?),
        _ => return Err(MeasureError::UnknownOption(format!("-{name}"))),
    })
}

fn twin_device(value: &str) -> Result<String, MeasureError> {
    let model = value.split(',').next().unwrap_or_default();
    if OPTION_ROM_MODELS.iter().any(|prefix| model.starts_with(prefix)) && property(value, "romfile") != Some("") {
        return Err(MeasureError::OptionRom(value.to_owned()));
    }
    if !VSOCK_MODELS.contains(&model) {
        return Ok(value.to_owned());
    }
    let mut out = String::from("virtio-rng-pci,disable-legacy=on");
    for name in ["id", "bus", "addr"] {
        if let Some(value) = property(value, name) {
            out.push_str(&format!(",{name}={value}"));
        }
    }
    Ok(out)
}

/// The value of `name=` in a comma-separated option.
fn property<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn node_name(value: &str) -> Option<String> {
    if !value.starts_with('{') {
        return property(value, "node-name").map(str::to_owned);
    }
    let node: serde_json::Value = serde_json::from_str(value).ok()?;
    node.get("node-name")?.as_str().map(str::to_owned)
}

/// Reads a file of at most [`LARGEST_FILE`] bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, MeasureError> {
    let file = |source| MeasureError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).map_err(file)?;
    opened.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(file)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(MeasureError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

const LARGEST_FILE: u64 = 1 << 30;
const KEPT_FLAGS: [&str; 3] = ["nodefaults", "no-user-config", "no-reboot"];
const DROPPED_FLAGS: [&str; 2] = ["S", "daemonize"];
const KEPT_OPTIONS: [&str; 13] =
    ["M", "machine", "accel", "cpu", "m", "smp", "object", "bios", "kernel", "initrd", "append", "display", "global"];
const DROPPED_OPTIONS: [&str; 5] = ["qmp", "monitor", "pidfile", "name", "sandbox"];
const VSOCK_MODELS: [&str; 3] = ["vhost-vsock-pci", "vhost-user-vsock-pci", "vhost-user-vsock-pci-non-transitional"];
const OPTION_ROM_MODELS: [&str; 5] = ["virtio-net-pci", "e1000", "rtl8139", "ne2k_pci", "vmxnet3"];

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(arguments: &[&str]) -> Result<Vec<String>, MeasureError> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Launch::new("qemu".into(), arguments, "/".into()).twin_arguments()
    }

    #[test]
    fn the_twin_has_the_machine_but_no_outside_world() {
        let arguments = twin(&[
            "-machine",
            "q35",
            "-S",
            "-blockdev",
            r#"{"driver":"raw","node-name":"config","file":{"driver":"file","filename":"/secret"}}"#,
            "-device",
            "virtio-blk-pci,drive=config,addr=0x2",
            "-netdev",
            "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:8443-10.0.2.15:8443",
            "-device",
            "virtio-net-pci,netdev=net0,romfile=,addr=0x4",
            "-chardev",
            "socket,id=vsock0,path=/run/v",
            "-device",
            "vhost-user-vsock-pci,chardev=vsock0,disable-legacy=on,addr=0x5",
            "-qmp",
            "unix:/run/qmp,server=on",
        ])
        .unwrap()
        .join(" ");
        assert_eq!(
            arguments,
            "-machine q35 -blockdev driver=null-co,node-name=config,read-only=on \
             -device virtio-blk-pci,drive=config,addr=0x2 -netdev user,id=net0,restrict=on \
             -device virtio-net-pci,netdev=net0,romfile=,addr=0x4 -chardev null,id=vsock0 \
             -device virtio-rng-pci,disable-legacy=on,addr=0x5"
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(matches!(twin(&["-fw_cfg", "name=opt/x,string=y"]), Err(MeasureError::UnknownOption(_))));
        assert!(matches!(twin(&["disk.img"]), Err(MeasureError::UnknownOption(_))));
        assert!(matches!(twin(&["-bios"]), Err(MeasureError::BadOption(_))));
        assert!(matches!(twin(&["-device", "virtio-net-pci,netdev=n"]), Err(MeasureError::OptionRom(_))));
        assert!(matches!(twin(&["-device", "e1000e,romfile=x.rom"]), Err(MeasureError::OptionRom(_))));
    }
}
