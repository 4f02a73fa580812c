// SPDX-License-Identifier: Apache-2.0
//! `host-agent preflight` and `host-agent gpu` on trees: exit codes, documents, what is written and what is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host-agent")).args(arguments).output().unwrap()
}

fn document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(last).unwrap()
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn device(root: &Path, address: &str, id: u16, class: &str, driver: Option<&str>) {
    let directory = format!("sys/bus/pci/devices/{address}");
    for (name, content) in [
        ("vendor", "0x10de\n"),
        ("device", &format!("{id:#06x}\n")),
        ("class", class),
        ("numa_node", "0\n"),
        ("driver_override", "(null)\n"),
        ("reset", ""),
    ] {
        write(root, &format!("{directory}/{name}"), content);
    }
    let config = [0xde, 0x10, 0, 0, 0, 0, 0, 0];
    std::fs::write(root.join(&directory).join("config"), config).unwrap();
    let link = |name: &str, target: &str| std::os::unix::fs::symlink(target, root.join(&directory).join(name)).unwrap();
    link("iommu_group", &format!("../../../../kernel/iommu_groups/{}", u32::from(id)));
    if let Some(driver) = driver {
        link("driver", &format!("../../drivers/{driver}"));
    }
}

/// A device's registers: the started security processor and a mode.
fn registers(root: &Path, address: &str, bytes: u64, values: &[(u64, u32)]) {
    let file = std::fs::File::create(root.join(format!("sys/bus/pci/devices/{address}/resource0"))).unwrap();
    file.set_len(bytes).unwrap();
    for (offset, value) in values {
        file.write_all_at(&value.to_le_bytes(), *offset).unwrap();
    }
}

/// An H100, a switch, a sound function that no guest gets by itself.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    device(root.path(), "0000:b8:00.0", 0x2330, "0x030200\n", None);
    device(root.path(), "0000:07:00.0", 0x22a3, "0x068000\n", Some("vfio-pci"));
    registers(root.path(), "0000:b8:00.0", 16 << 20, &[(0x2_00bc, 0xff), (0x11_82cc, 1)]);
    registers(root.path(), "0000:07:00.0", 32 << 20, &[(0x6_60bc, 0xff), (0x2_8c50, 1)]);
    write(root.path(), "sys/bus/pci/drivers/vfio-pci/bind", "");
    write(root.path(), "sys/bus/pci/drivers_probe", "");
    write(root.path(), "proc/1/status", "");
    root
}

#[test]
fn gpus_are_listed() {
    let root = tree();
    let root = root.path().to_str().unwrap();
    let output = agent(&["gpu", "list", "--root", root, "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let devices = document(&output)["devices"].clone();
    assert_eq!(devices[0]["address"], "0000:07:00.0");
    assert_eq!(devices[0]["kind"], "nv-switch");
    assert_eq!(devices[0]["driver"], "vfio-pci");
    assert_eq!(devices[1]["architecture"], "hopper");
    assert_eq!(devices[1]["iommu_group"], 0x2330);
    assert_eq!(devices[1]["nodes"][0]["usable"], false);
    let text = agent(&["gpu", "list", "--root", root]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("0000:b8:00.0  10de:2330  GPU        no driver"));
}

#[test]
fn modes_are_read_from_registers_and_the_device_is_left_as_it_was() {
    let root = tree();
    let config = root.path().join("sys/bus/pci/devices/0000:b8:00.0/config");
    let before = std::fs::read(&config).unwrap();
    let output = agent(&["gpu", "mode", "--all", "--root", root.path().to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let devices = document(&output)["devices"].clone();
    assert_eq!((devices[0]["mode"].as_str(), devices[0]["ppcie"].as_bool()), (Some("ppcie"), Some(true)));
    assert_eq!((devices[1]["mode"].as_str(), devices[1]["cc"].as_str()), (Some("on"), Some("on")));
    assert_eq!(std::fs::read(&config).unwrap(), before);
}

#[test]
fn a_dry_run_writes_nothing_and_shows_all() {
    let root = tree();
    let path = root.path().to_str().unwrap();
    let resource = root.path().join("sys/bus/pci/devices/0000:b8:00.0/resource0");
    let before = std::fs::read(&resource).unwrap();
    let arguments = ["gpu", "mode", "b8:00.0", "--set", "on", "--dry-run", "--registers", "--root", path, "--json"];
    let output = agent(&arguments);
    assert_eq!(output.status.code(), Some(0));
    let row = document(&output)["devices"][0].clone();
    assert_eq!(row["steps"].as_array().unwrap().len(), 7);
    assert_eq!(row["registers"][0], "read  0200bc 000000ff");
    assert_eq!(row["registers"][7], "write 8f2ad0 03000800");
    assert!(before == std::fs::read(&resource).unwrap());
}

#[test]
fn modes_that_may_not_be_set_are_refused_before_anything_is_written() {
    let root = tree();
    let path = root.path().to_str().unwrap();
    device(root.path(), "0000:c0:00.0", 0x20b5, "0x030200\n", None);
    device(root.path(), "0000:c1:00.0", 0x2901, "0x030200\n", Some("nvidia"));
    device(root.path(), "0000:c2:00.0", 0x2901, "0x030200\n", None);
    write(root.path(), "sys/bus/pci/devices/0000:c2:00.0/boot_vga", "1\n");
    let resource = root.path().join("sys/bus/pci/devices/0000:b8:00.0/resource0");
    let before = std::fs::read(&resource).unwrap();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let code = |address: &str, mode: &str| {
        let arguments =
            ["gpu", "mode", "b8:00.0", address, "--set", mode, "--root", path, "--state-dir", state, "--json"];
        let output = agent(&arguments);
        assert_eq!(output.status.code(), Some(2), "{address} {mode}");
        let reason = document(&output)["reasons"][0].clone();
        assert!(!reason["fix"].as_str().unwrap().is_empty());
        reason["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code("01:00.0", "on"), "gpu_not_found");
    assert_eq!(code("c0:00.0", "on"), "gpu_mode_unsupported");
    assert_eq!(code("07:00.0", "on"), "gpu_mode_unsupported");
    assert_eq!(code("c1:00.0", "on"), "gpu_busy");
    assert_eq!(code("c2:00.0", "on"), "boot_display");
    assert_eq!(code("b8:00.0", "ppcie"), "ppcie_set_incomplete");
    std::fs::create_dir_all(root.path().join("proc/77/fd")).unwrap();
    std::os::unix::fs::symlink("/dev/vfio/8867", root.path().join("proc/77/fd/3")).unwrap();
    assert_eq!(code("07:00.0", "ppcie"), "gpu_busy", "0x22a3 is group 8867");
    assert!(before == std::fs::read(&resource).unwrap());
    // A file does not answer as a security processor does: it is said, and the queue is all that was touched.
    let output = agent(&["gpu", "mode", "b8:00.0", "--set", "off", "--root", path, "--state-dir", state, "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(document(&output)["reasons"][0]["code"], "gpu_not_answering");
}

#[test]
fn wrong_usage_of_modes() {
    for arguments in [
        &["gpu", "mode"][..],
        &["gpu", "mode", "b8:00.0", "--all"],
        &["gpu", "mode", "b8:00.0", "--set", "half"],
        &["gpu", "mode", "b8:00.0", "--dry-run"],
        &["gpu", "bind"],
        &["gpu", "bind", "b8:00.9"],
    ] {
        assert_eq!(agent(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn bindings_are_refused_with_codes_and_nothing_stays_changed() {
    let (root, state) = (tree(), tempfile::tempdir().unwrap());
    let (path, state_dir) = (root.path().to_str().unwrap(), state.path().to_str().unwrap());
    let bind = |action: &str, address: &str| {
        let output = agent(&["gpu", action, address, "--root", path, "--state-dir", state_dir, "--json"]);
        (output.status.code(), document(&output))
    };
    let (status, refused) = bind("bind", "01:00.0");
    assert_eq!((status, refused["reasons"][0]["code"].as_str()), (Some(2), Some("gpu_not_found")));
    // Nobody takes the device in a tree of plain files.
    let (status, refused) = bind("bind", "b8:00.0");
    assert_eq!((status, refused["reasons"][0]["code"].as_str()), (Some(2), Some("bind_failed")));
    let over = std::fs::read_to_string(root.path().join("sys/bus/pci/devices/0000:b8:00.0/driver_override")).unwrap();
    assert_eq!(over, "\n");
    let (status, outcome) = bind("bind", "07:00.0");
    assert_eq!((status, outcome["unchanged"][0].as_str()), (Some(0), Some("0000:07:00.0")));
    let (status, outcome) = bind("unbind", "b8:00.0");
    assert_eq!((status, outcome["unchanged"][0].as_str()), (Some(0), Some("0000:b8:00.0")));
}

#[test]
fn a_journal_that_others_could_write_is_not_used() {
    let (root, state) = (tree(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
    let (path, state) = (root.path().to_str().unwrap(), state.path().to_str().unwrap());
    for action in [&["bind", "b8:00.0"][..], &["unbind", "07:00.0"], &["mode", "b8:00.0", "--set", "on"]] {
        let output = agent(&[&["gpu"], action, &["--root", path, "--state-dir", state, "--json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{action:?}");
        assert_eq!(document(&output)["reasons"][0]["code"], "state_directory_open_to_others", "{action:?}");
    }
}

#[test]
fn the_udev_rule_is_installed_readable_by_all() {
    let root = tree();
    let path = root.path().to_str().unwrap();
    let shown = agent(&["gpu", "udev-rule", "--root", path]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("GROUP=\"kvm\""));
    assert_eq!(agent(&["gpu", "udev-rule", "--install", "--root", path]).status.code(), Some(1), "no directory");
    let rules = root.path().join("etc/udev/rules.d");
    std::fs::create_dir_all(&rules).unwrap();
    assert_eq!(agent(&["gpu", "udev-rule", "--install", "--root", path]).status.code(), Some(0));
    let rule = rules.join("70-chrysalis-vfio.rules");
    assert_eq!(std::fs::read(&rule).unwrap(), shown.stdout);
    assert_eq!(std::fs::metadata(&rule).unwrap().permissions().mode() & 0o777, 0o644);
    let refused = agent(&["gpu", "udev-rule", "--group", "k\"vm", "--root", path]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn preflight_reports_records_and_reads_its_recording() {
    let (root, out) = (tree(), tempfile::tempdir().unwrap());
    write(root.path(), "proc/sys/kernel/osrelease", "6.17.0-5-generic\n");
    write(root.path(), "proc/4711/fd/0", "");
    let qemu = out.path().join("qemu");
    let script =
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version 10.1.0 (test)';; *) echo '  tdx-guest';; esac\n";
    std::fs::write(&qemu, script).unwrap();
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (path, qemu) = (root.path().to_str().unwrap(), qemu.to_str().unwrap());
    let tar = out.path().join("host.tar");
    let arguments = ["preflight", "record", "--root", path, "--gpu-registers", "--gpus", "1", "--json", "--out"];
    let output = agent(&[&arguments[..], &[tar.to_str().unwrap(), "--qemu", qemu]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let report = document(&output);
    assert_eq!((report["ready"].as_bool(), report["recorded"].as_bool()), (Some(false), Some(false)));
    let status = |report: &Value, id: &str| {
        let checks = report["checks"].as_array().unwrap().clone();
        let check = checks.into_iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id}"));
        check["status"].as_str().unwrap().to_owned()
    };
    for (id, wanted) in [
        ("kernel_version", "pass"),
        ("qemu_version", "pass"),
        ("qemu_tdx", "pass"),
        ("gpu_mode", "warn"),
        ("gpu_count", "pass"),
        ("kvm_tdx", "fail"),
        ("kvm_device", "fail"),
    ] {
        assert_eq!(status(&report, id), wanted, "{id}");
    }
    let reasons = report["reasons"].as_array().unwrap();
    assert!(reasons.iter().any(|reason| reason["code"] == "kvm_tdx" && reason["fix"] == "modprobe kvm_intel"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("serial numbers"));
    let again = agent(&[&arguments[..], &[tar.to_str().unwrap(), "--qemu", qemu]].concat());
    assert_eq!(again.status.code(), Some(1), "an archive is not overwritten");

    let copy = out.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&copy).status().unwrap();
    assert!(unpacked.success());
    let recorded: Vec<_> = std::fs::read_dir(copy.join("proc")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!recorded.is_empty());
    assert!(!recorded.iter().any(|name| name.to_string_lossy().parse::<u32>().is_ok()), "{recorded:?}");
    let described = std::fs::read_to_string(copy.join("recording.json")).unwrap();
    assert!(!described.contains("proc/4711"), "{described}");
    let copy = copy.to_str().unwrap();
    let read = agent(&["preflight", "--root", copy, "--gpus", "1", "--json"]);
    let second = document(&read);
    assert_eq!(second["recorded"], true);
    assert_eq!(second["checks"], report["checks"]);
    let text = agent(&["preflight", "--root", copy, "--gpus", "1"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("FAILED  kvm_tdx"), "{text}");
    assert!(text.contains("fix: modprobe kvm_intel"), "{text}");
    assert!(text.contains("the recorded host cannot run TDX guests yet"), "{text}");
    // QEMU that is named is asked, whatever the recording says.
    let other = agent(&["preflight", "--root", copy, "--gpus", "1", "--json", "--qemu", "/nonexistent/qemu"]);
    assert_eq!(status(&document(&other), "qemu_version"), "fail");
}

#[test]
fn preflight_of_this_machine_ends_with_a_verdict() {
    let output = agent(&["preflight", "--json"]);
    let report = document(&output);
    let failed = report["checks"].as_array().unwrap().iter().any(|check| check["status"] == "fail");
    assert_eq!(output.status.code(), Some(if failed { 2 } else { 0 }));
    assert_eq!(report["recorded"], false);
}
