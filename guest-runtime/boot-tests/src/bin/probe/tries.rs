// SPDX-License-Identifier: Apache-2.0
//! What the probe does as init would, and what it tries then.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    path::Path,
    time::Duration,
};

use init::{Stage, confine};
use linux_sys::{kernel, memory, modules, mounts, process, verity::VerityRoot};
use nix::{
    mount::{MsFlags, mount},
    sys::{prctl, resource::Resource, resource::getrlimit},
};

use super::{Result, report_disk};

/// All mounts as the guest has them when processes run, and what PID 1 is then.
pub(super) fn mounts() -> Result<String> {
    init::mount()?;
    memory::forbid_dumps()?;
    mounts::root_read_only()?;
    memory::lock()?;
    let mut out = String::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        // Fields of proc(5): the fifth is the mount point, the sixth its options.
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, _, _, point, options, ..] = fields.as_slice() else { return Err("a line of mountinfo".into()) };
        writeln!(out, "mount {point} {options}")?;
    }
    let locked = fs::read_to_string("/proc/self/status")?;
    let locked = locked.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or_default();
    writeln!(out, "locked {}", locked.trim())?;
    writeln!(out, "dumpable {}", prctl::get_dumpable()?)?;
    writeln!(out, "core {:?}", getrlimit(Resource::RLIMIT_CORE)?)?;
    writeln!(out, "end")?;
    Ok(out)
}

/// Confined as at a stage of the boot, tries one call. The disk says `begun` before and `survived` after it.
pub(super) fn call(stage: &str, call: &str) -> Result<String> {
    init::mount()?;
    let mut disk = report_disk()?;
    if stage != "free" {
        confine(Stage::Boot { shared_libraries: false })?;
    }
    if stage == "watch" {
        confine(Stage::Watch)?;
    }
    disk.write_all(b"begun\n")?;
    match call {
        // As a panic does in the image's programs.
        "abort" => std::process::abort(),
        "getpid" => drop(std::process::id()),
        "open" => drop(File::open("/proc/self/status")),
        "mount" => drop(mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)),
        _ => return Err("unknown call".into()),
    }
    disk.write_all(b"survived\n")?;
    linux_sys::power::off()
}

/// Mounts a verified root as init does and reads all of its files; then loads its modules, closes loading and starts its daemon.
pub(super) fn root(root: &str) -> Result<String> {
    init::mount()?;
    let mut disk = report_disk()?;
    let root: VerityRoot = root.parse()?;
    let device = root.open("chrysalis-root")?;
    disk.write_all(b"opened\n")?;
    mounts::verified(&device, "/gpu")?;
    disk.write_all(b"mounted\n")?;
    let (files, bytes) = read_all(Path::new("/gpu"))?;
    let mut out = String::new();
    writeln!(out, "opened\nmounted\nfiles {files}\nbytes {bytes}")?;
    let options = fs::read_to_string("/proc/self/mountinfo")?;
    let options = options.lines().find(|line| line.contains(" /gpu ")).unwrap_or_default();
    writeln!(out, "options {options}")?;
    writeln!(out, "write {}", if File::create("/gpu/new").is_ok() { "done" } else { "refused" })?;
    let loaded = modules::load(Path::new("/gpu/lib/modules"), |_| String::new());
    writeln!(out, "modules {}", loaded.map_or_else(|error| error.to_string(), |()| "loaded".to_owned()))?;
    kernel::close_module_loading()?;
    kernel::raise_lockdown()?;
    let closed = modules::load(Path::new("/gpu/lib/modules"), |_| String::new());
    writeln!(out, "closed {}", closed.map_or_else(|error| error.to_string(), |()| "loaded".to_owned()))?;
    writeln!(out, "lockdown {}", fs::read_to_string("/sys/kernel/security/lockdown")?.trim())?;
    link_as_the_image_does()?;
    init::runtime_directories()?;
    let daemon = process::start(init::persistence(false))?;
    writeln!(out, "daemon {:?}", process::wait_for(daemon, Duration::from_secs(60))?)?;
    writeln!(out, "end")?;
    // Written over what stands there: the words so far are the report's first lines.
    Ok(out)
}

/// The probe's own libraries, which are loaded already, make room for the image's links into the verified root.
fn link_as_the_image_does() -> Result<()> {
    for name in ["lib", "lib64", "usr"] {
        fs::rename(format!("/{name}"), format!("/{name}.probe"))?;
        symlink(format!("/gpu/{name}"), format!("/{name}"))?;
    }
    Ok(())
}

/// Number and size of all files below a directory.
fn read_all(directory: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let (more_files, more_bytes) = if kind.is_dir() {
            read_all(&entry.path())?
        } else if kind.is_file() {
            let mut buffer = vec![0; 1 << 16];
            let (mut file, mut length) = (File::open(entry.path())?, 0);
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    read => length += u64::try_from(read)?,
                }
            }
            (1, length)
        } else {
            (0, 0)
        };
        files += more_files;
        bytes += more_bytes;
    }
    Ok((files, bytes))
}
