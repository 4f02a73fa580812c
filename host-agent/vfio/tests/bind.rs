// SPDX-License-Identifier: Apache-2.0
//! Binding and giving back, on a tree that behaves like the kernel's sysfs; with a crash after every single write.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod kernel;

use std::path::Path;

use kernel::Kernel;
use vfio::{BindError, Binder, GroupError, HostTree, Journal, Outcome, PciAddress, device_nodes, inventory};

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn act(
    kernel: &Kernel,
    state: &Path,
    action: impl FnOnce(&mut Binder<'_>) -> Result<Outcome, BindError>,
) -> Result<Outcome, BindError> {
    let tree = HostTree::open(kernel.root()).unwrap();
    let mut binder = Binder::new(&tree, kernel, Journal::open(state, &tree).unwrap());
    action(&mut binder)
}

/// Two GPUs, one with a sound function in its group, a network card, a boot display.
fn machine() -> Kernel {
    let kernel = Kernel::new(&["vfio-pci", "nvidia", "snd_hda_intel", "mlx5_core"]);
    kernel.add("0000:17:00.0", 0x10de, 0x2330, 0x03_0200, Some("nvidia"), Some(4));
    kernel.add("0000:17:00.1", 0x10de, 0x22bc, 0x04_0300, Some("snd_hda_intel"), Some(4));
    kernel.add("0000:16:01.0", 0x8086, 0x352a, 0x06_0400, Some("pcieport"), Some(4));
    kernel.add("0000:3d:00.0", 0x10de, 0x2330, 0x03_0200, None, Some(9));
    kernel.add("0000:5a:00.0", 0x15b3, 0x1021, 0x02_0000, Some("mlx5_core"), Some(12));
    kernel
}

#[test]
fn the_whole_group_goes_and_comes_back() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let before = kernel.bindings();
    let outcome = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    assert_eq!(outcome.changed, [address("17:00.0"), address("17:00.1")]);
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("vfio-pci"));
    assert_eq!(kernel.driver("0000:17:00.1").as_deref(), Some("vfio-pci"));
    assert_eq!(kernel.driver("0000:16:01.0").as_deref(), Some("pcieport"), "bridges stay with the host");
    let tree = HostTree::open(kernel.root()).unwrap();
    let device = inventory(&tree).unwrap().into_iter().find(|d| d.address == address("17:00.0")).unwrap();
    let nodes: Vec<String> = device_nodes(&tree, &device).into_iter().map(|n| n.path).collect();
    assert_eq!(nodes, ["dev/vfio/vfio", "dev/vfio/4"]);

    let again = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    assert_eq!((again.changed.len(), again.unchanged.len()), (0, 2));
    let back = act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")])).unwrap();
    assert_eq!(back.changed.len(), 2);
    assert_eq!(kernel.bindings(), before);
    let nothing = act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")])).unwrap();
    assert!(nothing.changed.is_empty());
}

#[test]
fn a_crash_after_any_write_is_undone_by_the_next_run() {
    let mut writes = 0;
    loop {
        let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
        let before = kernel.bindings();
        kernel.die_after(writes);
        let result = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0"), address("3d:00.0")]));
        kernel.live();
        if let Ok(outcome) = result {
            assert_eq!(outcome.changed.len(), 3);
            break;
        }
        let recovered = act(&kernel, state.path(), |b| Ok(Outcome { recovered: b.recover()?, ..Outcome::default() }));
        assert_eq!(recovered.unwrap().recovered.len(), 3, "after {writes} writes");
        assert_eq!(kernel.bindings(), before, "after {writes} writes");
        writes += 1;
    }
    assert_eq!(writes, 8, "three overrides, two drivers that let go, three probes");
}

#[test]
fn a_crash_while_giving_back_is_finished_by_the_next_run() {
    let mut writes = 0;
    loop {
        let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
        let before = kernel.bindings();
        act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
        kernel.die_after(writes);
        let result = act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")]));
        kernel.live();
        act(&kernel, state.path(), |b| Ok(Outcome { recovered: b.recover()?, ..Outcome::default() })).unwrap();
        assert_eq!(kernel.bindings(), before, "after {writes} writes");
        if result.is_ok() {
            break;
        }
        writes += 1;
    }
    assert_eq!(writes, 6);
}

/// What a guest gave up goes back; what another guest is to have stays, with its group; what is in use waits.
#[test]
fn releasing_gives_back_all_but_what_is_kept() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let before = kernel.bindings();
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0"), address("3d:00.0")])).unwrap();
    let bound = kernel.bindings();
    let all = [address("17:00.0"), address("3d:00.0")];
    assert_eq!(act(&kernel, state.path(), |b| b.release(&all)).unwrap().changed, []);
    assert_eq!(kernel.bindings(), bound);
    kernel.open_by(77, "/dev/vfio/4");
    let used = act(&kernel, state.path(), |b| b.release(&[])).unwrap();
    assert_eq!(used.changed, [address("3d:00.0")]);
    assert_eq!(used.not_recovered.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>(), ["gpu_busy"; 2]);
    assert_eq!(kernel.driver("0000:17:00.1").as_deref(), Some("vfio-pci"), "with its whole group");
    kernel.close(77);
    let last = act(&kernel, state.path(), |b| b.release(&[])).unwrap();
    assert_eq!((last.changed.len(), last.not_recovered.len()), (2, 0));
    assert_eq!(kernel.bindings(), before);
    // What somebody else bound is none of this journal's business.
    let other = tempfile::tempdir().unwrap();
    act(&kernel, other.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    assert_eq!(act(&kernel, state.path(), |b| b.release(&[])).unwrap().changed, []);
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn a_crash_while_releasing_is_finished_by_the_next_release() {
    let mut writes = 0;
    loop {
        let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
        let before = kernel.bindings();
        act(&kernel, state.path(), |b| b.bind(&[address("17:00.0"), address("3d:00.0")])).unwrap();
        kernel.die_after(writes);
        let result = act(&kernel, state.path(), |b| b.release(&[]));
        kernel.live();
        act(&kernel, state.path(), |b| b.release(&[])).unwrap();
        assert_eq!(kernel.bindings(), before, "dead after {writes} writes");
        if result.is_ok() {
            assert!(writes > 4, "{writes}");
            return;
        }
        writes += 1;
    }
}

#[test]
fn a_driver_that_does_not_take_the_device_changes_nothing() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let before = kernel.bindings();
    kernel.refuse("0000:17:00.1", "vfio-pci");
    let error = act(&kernel, state.path(), |b| b.bind(&[address("3d:00.0"), address("17:00.0")])).unwrap_err();
    assert_eq!(error.refusal().code, "bind_failed");
    assert_eq!(error.refusal().field, "0000:17:00.1");
    assert_eq!(kernel.bindings(), before);
}

#[test]
fn what_may_not_go_is_refused_before_anything_changes() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    kernel.add("0000:99:00.0", 0x10de, 0x2330, 0x03_0200, None, Some(12));
    kernel.add("0000:9a:00.0", 0x10de, 0x2330, 0x03_0200, None, None);
    kernel.add("0000:9b:00.0", 0x10de, 0x2331, 0x03_0000, None, Some(20));
    kernel.set("0000:9b:00.0", "boot_vga", "1\n");
    let before = kernel.bindings();
    for (asked, code) in [
        ("01:00.0", "gpu_not_found"),
        ("5a:00.0", "not_a_gpu"),
        ("16:01.0", "not_a_gpu"),
        ("99:00.0", "iommu_group_shared"),
        ("9a:00.0", "iommu_group_missing"),
        ("9b:00.0", "boot_display"),
    ] {
        // A good one first: it must not be bound, either.
        let error = act(&kernel, state.path(), |b| b.bind(&[address("3d:00.0"), address(asked)])).unwrap_err();
        assert_eq!(error.refusal().code, code, "{asked}: {error}");
        assert!(!error.refusal().fix.is_empty());
        assert_eq!(kernel.bindings(), before, "{asked}");
    }
    let shared = act(&kernel, state.path(), |b| b.bind(&[address("99:00.0")])).unwrap_err();
    assert!(matches!(shared, BindError::Group(GroupError::Shared { other, .. }) if other == address("5a:00.0")));
}

#[test]
fn a_device_that_somebody_has_open_stays() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    kernel.nvidia_minor("0000:17:00.0", 5);
    kernel.open_by(4711, "/dev/nvidia3");
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")])).unwrap();
    kernel.open_by(4712, "/dev/nvidia5");
    let error = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap_err();
    assert_eq!(error.refusal().code, "gpu_busy");
    assert!(error.to_string().contains("process 4712 has /dev/nvidia5 open"), "{error}");
    kernel.close(4712);
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    kernel.open_by(4713, "/dev/vfio/4");
    let error = act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")])).unwrap_err();
    assert_eq!(error.refusal().code, "gpu_busy");
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn without_vfio_pci_nothing_is_touched() {
    let kernel = Kernel::new(&["nvidia"]);
    kernel.add("0000:17:00.0", 0x10de, 0x2330, 0x03_0200, Some("nvidia"), Some(4));
    let state = tempfile::tempdir().unwrap();
    let error = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap_err();
    assert_eq!(error.refusal().code, "vfio_pci_missing");
    assert_eq!(kernel.writes(), 0);
}

#[test]
fn a_device_that_is_gone_needs_no_putting_back() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    kernel.die_after(1);
    act(&kernel, state.path(), |b| b.bind(&[address("3d:00.0")])).unwrap_err();
    kernel.live();
    kernel.unplug("0000:3d:00.0");
    let outcome = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    assert_eq!(outcome.recovered, ["0000:3d:00.0"]);
    assert_eq!(outcome.changed.len(), 2);
}

#[test]
fn the_journal_is_for_one_process_and_is_not_guessed_at() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let tree = HostTree::open(kernel.root()).unwrap();
    let open = Journal::open(state.path(), &tree).unwrap();
    let error = BindError::from(Journal::open(state.path(), &tree).unwrap_err());
    assert_eq!(error.refusal().code, "bindings_locked");
    drop(open);
    for content in [
        "",
        "{}",
        r#"{"version":1,"entries":[]}"#,
        r#"{"version":2,"entries":[],"more":1}"#,
        r#"{"version":2,"entries":[{"address":"../x","phase":"changing","previous_driver":null,"previous_override":null}]}"#,
        r#"{"version":2,"entries":[{"address":"0000:17:00.0","phase":"bound","previous_driver":"../x","previous_override":null}]}"#,
        r#"{"version":2,"entries":[{"address":"0000:17:00.0","phase":"bound","previous_driver":"..","previous_override":null}]}"#,
    ] {
        std::fs::write(state.path().join("gpu-bindings.json"), content).unwrap();
        let error = BindError::from(Journal::open(state.path(), &tree).unwrap_err());
        assert_eq!(error.refusal().code, "journal_unusable", "{content}");
    }
}

/// As a run leaves it that dies while it changes these devices.
fn journal(state: &Path, boot: Option<&str>, entries: &[(&str, Option<&str>)]) {
    let entries: Vec<_> = entries
        .iter()
        .map(|(address, driver)| {
            serde_json::json!({ "address": address, "phase": "changing", "previous_driver": driver, "previous_override": null })
        })
        .collect();
    let document = serde_json::json!({ "version": 2, "boot": boot, "entries": entries });
    std::fs::write(state.join("gpu-bindings.json"), document.to_string()).unwrap();
}

fn recover(kernel: &Kernel, state: &Path) -> Result<Vec<String>, BindError> {
    act(kernel, state, |b| Ok(Outcome { recovered: b.recover()?, ..Outcome::default() })).map(|o| o.recovered)
}

#[test]
fn an_interrupted_change_is_not_undone_under_a_running_guest() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    journal(state.path(), None, &[("0000:17:00.0", Some("nvidia")), ("0000:17:00.1", Some("snd_hda_intel"))]);
    let (before, writes) = (kernel.bindings(), kernel.writes());
    kernel.open_by(4713, "/dev/vfio/4");
    let error = recover(&kernel, state.path()).unwrap_err();
    let codes: Vec<String> = error.refusals().into_iter().map(|refusal| refusal.code).collect();
    assert_eq!(codes, ["gpu_busy", "gpu_busy"]);
    let error = act(&kernel, state.path(), |b| b.unbind(&[address("17:00.0")])).unwrap_err();
    assert_eq!(error.refusal().code, "gpu_busy");
    assert_eq!((kernel.bindings(), kernel.writes()), (before, writes));
    // Another GPU is not held up, and the entries are not forgotten.
    let other = act(&kernel, state.path(), |b| b.bind(&[address("3d:00.0")])).unwrap();
    assert_eq!((other.changed.len(), other.not_recovered.len()), (1, 2));
    kernel.close(4713);
    assert_eq!(recover(&kernel, state.path()).unwrap(), ["0000:17:00.0", "0000:17:00.1"]);
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("nvidia"));
}

#[test]
fn a_guest_that_has_one_function_open_keeps_its_group() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    std::fs::create_dir_all(kernel.root().join("sys/bus/pci/devices/0000:17:00.0/vfio-dev/vfio0")).unwrap();
    kernel.open_by(4713, "/dev/vfio/devices/vfio0");
    journal(state.path(), None, &[("0000:17:00.1", Some("snd_hda_intel"))]);
    assert_eq!(recover(&kernel, state.path()).unwrap_err().refusal().code, "gpu_busy");
    assert_eq!(kernel.driver("0000:17:00.1").as_deref(), Some("vfio-pci"));
}

#[test]
fn an_entry_for_another_kind_of_device_changes_nothing() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let before = kernel.bindings();
    journal(state.path(), None, &[("0000:5a:00.0", Some("nvidia")), ("0000:16:01.0", None)]);
    let error = recover(&kernel, state.path()).unwrap_err();
    let codes: Vec<(String, String)> = error.refusals().into_iter().map(|r| (r.code, r.field)).collect();
    let foreign = |address: &str| ("journal_entry_foreign".to_owned(), address.to_owned());
    assert_eq!(codes, [foreign("0000:16:01.0"), foreign("0000:5a:00.0")]);
    assert_eq!((kernel.bindings(), kernel.writes()), (before, 0));
}

#[test]
fn one_entry_that_cannot_be_restored_holds_up_no_other() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0"), address("3d:00.0")])).unwrap();
    let entries = [("0000:17:00.0", Some("nvidia")), ("0000:17:00.1", Some("snd_hda_intel")), ("0000:3d:00.0", None)];
    journal(state.path(), None, &entries);
    kernel.refuse("0000:17:00.1", "snd_hda_intel");
    let other = act(&kernel, state.path(), |b| b.bind(&[address("3d:00.0")])).unwrap();
    assert_eq!(other.recovered, ["0000:17:00.0", "0000:3d:00.0"]);
    assert_eq!(other.not_recovered.first().unwrap().code, "restore_failed");
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("nvidia"));
    assert_eq!(kernel.driver("0000:3d:00.0").as_deref(), Some("vfio-pci"));
    let same = act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap_err();
    assert_eq!((same.refusal().code.as_str(), same.refusal().field.as_str()), ("restore_failed", "0000:17:00.1"));
}

#[test]
fn entries_end_with_the_boot_and_with_the_driver() {
    let (kernel, state) = (machine(), tempfile::tempdir().unwrap());
    let boot_id = kernel.root().join("proc/sys/kernel/random/boot_id");
    std::fs::create_dir_all(boot_id.parent().unwrap()).unwrap();
    std::fs::write(&boot_id, "second\n").unwrap();
    act(&kernel, state.path(), |b| b.bind(&[address("17:00.0")])).unwrap();
    let entries = [("0000:17:00.0", Some("nouveau")), ("0000:17:00.1", Some("snd_hda_intel"))];
    journal(state.path(), Some("first"), &entries);
    assert!(recover(&kernel, state.path()).unwrap().is_empty());
    assert_eq!(kernel.driver("0000:17:00.0").as_deref(), Some("vfio-pci"));
    journal(state.path(), Some("second"), &entries);
    assert_eq!(recover(&kernel, state.path()).unwrap().len(), 2);
    assert_eq!(kernel.driver("0000:17:00.0"), None, "nouveau is not loaded");
    assert_eq!(kernel.driver("0000:17:00.1").as_deref(), Some("snd_hda_intel"));
}
