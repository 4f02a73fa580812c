// SPDX-License-Identifier: Apache-2.0
//! What PID 1 does to its own machine before it runs anything: seen from inside, and by how the guest ends.

use std::path::Path;

use crate::{
    machine::{Image, Running, initrd_with, machine},
    need,
};

/// Boots the probe with words of its own, without firmware, and gives what it wrote.
pub(crate) fn probe(image: &Image, words: &str, more: &[String]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (initrd, report) = (directory.path().join("initrd"), directory.path().join("report"));
    std::fs::write(&initrd, initrd_with(Path::new(env!("CARGO_BIN_EXE_probe")))).unwrap();
    std::fs::write(&report, vec![0; 1 << 20]).unwrap();
    let line = format!("panic=-1 quiet loglevel=0 no_timer_check random.trust_cpu=on -- {words}");
    let mut command = machine(&image.kernel, &initrd, &line);
    command
        .args(["-object", "memory-backend-memfd,id=mem0,size=512M,share=on"])
        .args(["-drive", &format!("if=none,id=report,format=raw,file={}", report.display())])
        .args(["-device", "virtio-blk-pci,drive=report,serial=probe-report,disable-legacy=on"])
        .args(more);
    assert!(Running::start(&mut command).ends(), "the guest did not end");
    let report = std::fs::read(&report).unwrap();
    String::from_utf8(report.into_iter().take_while(|byte| *byte != 0).collect()).unwrap()
}

/// Every file system is mounted without what it does not need; memory of PID 1 is locked and never dumped.
#[test]
fn every_mount_has_its_flags() {
    let image = need!(Image::find(), "the mounts of a guest");
    let report = probe(&image, "mounts", &[]);
    assert_eq!(report.lines().last(), Some("end"), "{report}");
    let mounts: Vec<(&str, Vec<&str>)> = report
        .lines()
        .filter_map(|line| line.strip_prefix("mount ")?.split_once(' '))
        .map(|(point, options)| (point, options.split(',').collect()))
        .collect();
    let mut points: Vec<&str> = mounts.iter().map(|(point, _)| *point).collect();
    points.sort_unstable();
    assert_eq!(points, ["/", "/dev", "/proc", "/run", "/run/model", "/sys", "/sys/kernel/config"], "{report}");
    for (point, options) in &mounts {
        let lacks: Vec<_> = ["nosuid", "nodev", "noexec"].into_iter().filter(|flag| !options.contains(flag)).collect();
        let expected: &[&str] = match *point {
            // Programs lie in the root, which is read-only; nodes in /dev, which the kernel keeps.
            "/" => &["noexec"],
            "/dev" => &["nodev"],
            _ => &[],
        };
        assert_eq!(lacks, expected, "{point}");
        assert_eq!(options.contains(&"ro"), *point == "/", "{point}");
    }
    let fact = |name: &str| report.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert!(fact("locked ").is_some_and(|size| size.ends_with(" kB") && size != "0 kB"), "{report}");
    assert_eq!(fact("dumpable "), Some("false"));
    assert_eq!(fact("core "), Some("(0, 0)"));
}

/// A call outside of PID 1's filter is the end of the guest; one inside of it is not.
#[test]
fn a_call_outside_of_its_filter_ends_pid_1_and_the_guest() {
    let image = need!(Image::find(), "a boot that breaks PID 1's filter");
    for (call, survives) in [("boot open", true), ("boot mount", false), ("watch getpid", true), ("watch open", false)]
    {
        let expected = if survives { "begun\nsurvived\n" } else { "begun\n" };
        assert_eq!(probe(&image, &format!("call {call}"), &[]), expected, "{call}");
    }
}

/// A panic aborts (the profile `release` says so), and that is the end of the guest, whether PID 1 is confined yet or not.
#[test]
fn a_panic_of_pid_1_ends_the_guest() {
    let image = need!(Image::find(), "a panic of PID 1");
    for stage in ["free", "watch"] {
        assert_eq!(probe(&image, &format!("call {stage} abort"), &[]), "begun\n", "{stage}");
    }
}
