// SPDX-License-Identifier: Apache-2.0
//! Attack 29: tables with code of the host's.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::{aml, machine::Image, need, view::View};

const VALUE: u32 = 0x4c4d_4f44;

/// Where the tables reach: a mark, an address, what it is.
struct Targets(Vec<(u8, u64, &'static str)>);

impl Targets {
    /// One of each kind from the firmware's map of this very machine.
    fn of(map: &[(u64, u64, String)]) -> Self {
        let first = |kind: &str| map.iter().find(|(_, _, found)| found == kind).map(|(first, ..)| *first);
        // Above the pages that the kernel's loader takes, at random.
        let last = |kind: &str| map.iter().rfind(|(_, _, found)| found == kind).map(|(first, ..)| *first);
        let ram = map.iter().find(|(first, last, kind)| kind == "usable" && (*first..*last).contains(&RAM));
        assert!(ram.is_some(), "the machine has no RAM where the test wants it: {map:?}");
        assert!(map.iter().all(|(first, last, _)| !(*first..=*last).contains(&DEVICE)), "{map:?}");
        // Run-time code or data of the firmware lies below the end of RAM; higher entries are devices.
        let reserved = map.iter().find(|(first, _, kind)| kind == "reserved" && (0x10_0000..RAM_END).contains(first));
        Self(vec![
            (b'R', RAM, "RAM"),
            (b'N', first("ACPI NVS").unwrap(), "ACPI NVS"),
            (b'T', last("ACPI data").unwrap(), "tables"),
            (b'F', reserved.map(|(first, ..)| *first).unwrap(), "firmware"),
        ])
    }

    /// QEMU's options for tables that write to each target, and one that reads a device.
    fn options(&self, directory: &Path) -> Vec<String> {
        let mut tables: Vec<_> =
            self.0.iter().map(|(mark, address, _)| (*mark, aml::table(*address, Some(VALUE), *mark))).collect();
        tables.push((b'D', aml::table(DEVICE, None, b'D')));
        let mut options = vec![
            "-chardev".to_owned(),
            format!("file,id=marks,path={}", directory.join("marks").display()),
            "-device".to_owned(),
            format!("isa-debugcon,iobase={:#x},chardev=marks", aml::PORT),
        ];
        for (mark, table) in tables {
            let path = directory.join(format!("table-{}", char::from(mark)));
            std::fs::write(&path, table).unwrap();
            options.extend(["-acpitable".to_owned(), format!("file={}", path.display())]);
        }
        options
    }
}

/// Boots twice: once to see the firmware's memory map, once with the hostile tables. Gives the marks, the view and whether the
/// value stands in memory at each target.
fn attacked(image: &Image, kernel: &Path) -> (String, View, Targets, Vec<bool>) {
    let directory = tempfile::tempdir().unwrap();
    // As many tables of the same size, since the map depends on it: these read a device.
    let harmless = Targets([b'R', b'N', b'T', b'F'].map(|mark| (mark, DEVICE, "device")).to_vec());
    let map = View::of(image, kernel, directory.path(), &harmless.options(directory.path())).memory_map();
    let targets = Targets::of(&map);
    let view = View::of(image, kernel, directory.path(), &targets.options(directory.path()));
    assert_eq!(Targets::of(&view.memory_map()).0, targets.0, "the map has changed");
    let marks = std::fs::read_to_string(directory.path().join("marks")).unwrap();
    let mut memory = std::fs::File::open(directory.path().join("memory")).unwrap();
    let written = targets.0.iter().map(|(_, address, _)| {
        let mut bytes = [0; 4];
        *address < RAM_END
            && memory.seek(SeekFrom::Start(*address)).is_ok()
            && memory.read_exact(&mut bytes).is_ok()
            && bytes == VALUE.to_le_bytes()
    });
    let written = written.collect();
    (marks, view, targets, written)
}

#[test]
fn code_of_the_host_reaches_devices_and_no_memory() {
    let image = need!(Image::find(), "a boot with hostile ACPI tables");
    let (marks, view, targets, written) = attacked(&image, &image.kernel);
    // Every table ran, and stopped where it reached for memory.
    for (mark, _, what) in &targets.0 {
        assert!(marks.contains(char::from(*mark)), "the table for {what} did not run: {marks}");
        assert!(!marks.contains(char::from(mark.to_ascii_lowercase())), "AML reached {what}: {marks}");
    }
    assert!(written.iter().all(|written| !written), "memory was changed");
    // What AML is for still works: it read a device, and the machine booted.
    assert!(marks.contains("Dd"), "{marks}");
    let refused = view.all("log").filter(|line| line.contains("refused AML an access to memory")).count();
    assert!(refused >= 4, "the kernel named {refused} refusals");
}

/// That the check can fail: the same tables on a kernel without the patch, named by `CHRYSALIS_UNPATCHED_KERNEL`.
#[test]
fn without_the_patch_the_same_code_writes_to_memory() {
    let image = need!(Image::find(), "hostile ACPI tables on a kernel without the patch");
    let kernel = std::env::var_os("CHRYSALIS_UNPATCHED_KERNEL").ok_or("CHRYSALIS_UNPATCHED_KERNEL is not set");
    let kernel = need!(kernel, "hostile ACPI tables on a kernel without the patch");
    let (marks, _, _, written) = attacked(&image, Path::new(&kernel));
    assert!(marks.contains("Rr"), "AML did not reach RAM: {marks}");
    assert!(written.iter().any(|written| *written), "nothing was written: {marks}");
}

const RAM: u64 = 0x1000_0000;
const RAM_END: u64 = 512 << 20;
/// The HPET, which firmware does not list; the kernel does not use it.
const DEVICE: u64 = 0xfed0_0000;
