// SPDX-License-Identifier: Apache-2.0
//! What a program inside sees: a boot of the image's kernel through its firmware, with the probe as init.

use std::path::Path;

use crate::{
    machine::{Image, Running, initrd_with, machine},
    need,
};

/// What the probe wrote, one fact a line.
pub(crate) struct View(Vec<String>);

impl View {
    /// Boots with `more` options. The memory of the machine is left in `directory/memory`.
    pub(crate) fn of(image: &Image, kernel: &Path, directory: &Path, more: &[String]) -> Self {
        let (initrd, report, memory) =
            (directory.join("initrd"), directory.join("report"), directory.join("memory").display().to_string());
        std::fs::write(&initrd, initrd_with(Path::new(env!("CARGO_BIN_EXE_probe")))).unwrap();
        std::fs::write(&report, vec![0; 1 << 20]).unwrap();
        let mut command = machine(kernel, &initrd, "panic=-1 quiet loglevel=0 no_timer_check random.trust_cpu=on");
        command
            .arg("-bios")
            .arg(&image.firmware)
            .args(["-object", &format!("memory-backend-file,id=mem0,size=512M,share=on,mem-path={memory}")])
            .args(["-drive", &format!("if=none,id=report,format=raw,file={}", report.display())])
            .args(["-device", "virtio-blk-pci,drive=report,serial=probe-report,disable-legacy=on"])
            .args(more);
        assert!(Running::start(&mut command).ends(), "the guest did not end");
        let report = std::fs::read(&report).unwrap();
        let text = String::from_utf8(report.into_iter().take_while(|byte| *byte != 0).collect()).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.last().map(String::as_str), Some("end"), "the guest's report is incomplete: {text}");
        Self(lines)
    }

    /// The rest of all lines that begin with `kind`.
    pub(crate) fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |line| line.strip_prefix(kind)?.strip_prefix(' '))
    }

    /// The firmware's memory map, as the kernel got it: first and last byte, type.
    pub(crate) fn memory_map(&self) -> Vec<(u64, u64, String)> {
        let entry = |line: &str| {
            let rest = line.strip_prefix("BIOS-e820: [mem 0x")?;
            let (range, kind) = rest.split_once("] ")?;
            let (first, last) = range.split_once("-0x")?;
            Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?, kind.to_owned()))
        };
        self.all("log").filter_map(entry).collect()
    }
}

/// Attack 27: what a host adds to the machine has no driver and no file, and no dangerous interface is there without it.
#[test]
fn nothing_in_the_guest_sees_what_the_host_adds() {
    let image = need!(Image::find(), "a boot with devices that a host adds");
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let more: Vec<String> = [
        "-fw_cfg name=opt/org.chrysalis/configuration,string=hostile",
        "-smbios type=1,manufacturer=hostile,serial=hostile",
        "-device virtio-rng-pci,disable-legacy=on",
        "-device virtio-balloon-pci,disable-legacy=on",
        "-device virtio-serial-pci,disable-legacy=on",
        "-device virtio-scsi-pci,disable-legacy=on",
        "-device virtio-9p-pci,fsdev=share,mount_tag=share,disable-legacy=on",
        "-device vmgenid",
        "-device pvpanic-pci",
        "-device i6300esb",
    ]
    .into_iter()
    .flat_map(|option| option.split(' '))
    .map(str::to_owned)
    .chain(["-fsdev".to_owned(), format!("local,id=share,security_model=none,path={}", share.display())])
    .collect();
    let view = View::of(&image, &image.kernel, directory.path(), &more);

    assert_eq!(view.all("has").collect::<Vec<_>>(), Vec::<&str>::new());
    assert_eq!(view.all("9p").collect::<Vec<_>>(), ["refused"]);
    assert_eq!(view.all("userns").collect::<Vec<_>>(), ["refused"]);
    // virtio device numbers: 2 disk; 3 console, 4 entropy, 5 balloon, 8 SCSI, 9 shared folder. Only the disk is driven.
    let mut devices: Vec<_> = view.all("virtio").collect();
    devices.sort_unstable();
    assert_eq!(
        devices,
        ["0x0002 virtio_blk", "0x0003 none", "0x0004 none", "0x0005 none", "0x0008 none", "0x0009 none"]
    );
    // A disk's file systems are not there to be mounted.
    let allowed = ["sysfs", "tmpfs", "bdev", "proc", "devtmpfs", "configfs", "securityfs", "sockfs", "pipefs", "ramfs"];
    let others: Vec<_> = view.all("filesystem").filter(|name| !allowed.contains(name)).collect();
    assert_eq!(others, Vec::<&str>::new());
    // No clock of the host's but the ACPI timer, by which an emulated machine measures its TSC (emulation.config).
    let clocks: Vec<_> = view.all("clocks").flat_map(str::split_whitespace).collect();
    assert!(
        clocks.iter().all(|clock| ["tsc", "tsc-early", "acpi_pm", "jiffies", "refined-jiffies"].contains(clock)),
        "{clocks:?}"
    );
    // The test can fail: the probe does see what is there.
    assert!(view.all("log").any(|line| line.contains("Lockdown") || line.contains("lockdown")));
    assert!(view.all("device").count() > 0);
}
