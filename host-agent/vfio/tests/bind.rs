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
    let mut binder = Binder::new(&tree, kernel, Journal::open(state).unwrap());
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
    let state = tempfile::tempdir().unwrap();
    let open = Journal::open(state.path()).unwrap();
    let error = BindError::from(Journal::open(state.path()).unwrap_err());
    assert_eq!(error.refusal().code, "bindings_locked");
    drop(open);
    for content in [
        "",
        "{}",
        r#"{"version":2,"entries":[]}"#,
        r#"{"version":1,"entries":[],"more":1}"#,
        r#"{"version":1,"entries":[{"address":"../x","phase":"changing","previous_driver":null,"previous_override":null}]}"#,
        r#"{"version":1,"entries":[{"address":"0000:17:00.0","phase":"bound","previous_driver":"../x","previous_override":null}]}"#,
    ] {
        std::fs::write(state.path().join("gpu-bindings.json"), content).unwrap();
        let error = BindError::from(Journal::open(state.path()).unwrap_err());
        assert_eq!(error.refusal().code, "journal_unusable", "{content}");
    }
}
