// SPDX-License-Identifier: Apache-2.0
//! What a guest may take of the host: a control group (cgroup v2) for each generation, with its keeper, QEMU and helpers.
//!
//! The groups stand beside the daemon's own, below the one that systemd delegates to the unit (`Delegate=`,
//! `DelegateSubgroup=daemon`), so that they outlive the daemon: an adopted guest keeps its own, untouched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use types::{MachineShape, Refusal, shape::ShapeFacts};

use crate::files;

/// Whether guests must have limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Demand {
    /// Where this host allows it; a warning in the log otherwise.
    #[default]
    Try,
    /// No guest is started without.
    Require,
    /// None are set.
    Off,
}

/// The limits of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `memory.max`: the guest's memory and [`OVERHEAD_MIB`], a 64th of it for page tables, and what emulation takes.
    memory_bytes: u64,
    /// `pids.max`: threads count.
    threads: u32,
    /// `cpu.max` in microseconds of each [`PERIOD_US`]: a processor more than it has.
    cpu_us: u64,
    /// `cpu.weight`; the daemon and the fronts have 100.
    weight: u32,
}

/// Where the groups of guests stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Groups {
    base: PathBuf,
    /// A directory of a test, in which files do not go with their directory.
    files: bool,
}

/// Why a guest has no limits.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitsError {
    /// No cgroup v2, or a hybrid whose controllers are those of version 1.
    #[error("{0} is not a control group of version 2")]
    NoUnified(PathBuf),
    /// The daemon's group is not one that may have others beside it.
    #[error("the daemon runs in the control group {0}, and systemd gave it none to divide")]
    NotDelegated(String),
    /// Controllers that were not delegated.
    #[error("{base} lacks the controllers {}", .missing.join(", "))]
    Controllers {
        /// Which group.
        base: PathBuf,
        /// Which controllers.
        missing: Vec<&'static str>,
    },
    /// Processes stand in the group itself: the kernel gives it no groups with limits meanwhile (cgroups(7), no internal
    /// processes).
    #[error("processes from before the daemon had a group of its own are still in {0}")]
    Occupied(PathBuf),
    /// A file of a group.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LimitsError {
    /// For `field`, with what mends it.
    pub(crate) fn refusal(&self) -> Refusal {
        let fix = match self {
            Self::NoUnified(_) => "boot with systemd.unified_cgroup_hierarchy=1, or set agent.guest_limits = \"off\"",
            Self::NotDelegated(_) | Self::Controllers { .. } => {
                "use the packaged unit (Delegate=, DelegateSubgroup=daemon; systemd 254), or agent.guest_limits = \"off\""
            }
            Self::Occupied(_) => {
                "`host-agent stop --all`, then `systemctl restart chrysalis-agent`: guests and fronts from before an upgrade end"
            }
            Self::File { .. } => "see what is named; agent.guest_limits = \"off\" does without limits",
        };
        Refusal::new(CODE, FIELD, self.to_string(), fix)
    }
}

impl Limits {
    /// What a guest of this shape takes at most.
    pub(crate) fn of(shape: &MachineShape, emulated: bool) -> Self {
        let ShapeFacts { vcpus, memory_mib, .. } = shape.facts();
        let emulation = if emulated { EMULATION_MIB } else { 0 };
        let memory = u64::from(memory_mib);
        let memory_mib = memory + memory / 64 + OVERHEAD_MIB + emulation;
        Self {
            memory_bytes: memory_mib << 20,
            threads: u32::from(vcpus) + HELPERS,
            cpu_us: (u64::from(vcpus) + 1) * PERIOD_US,
            weight: (u32::from(vcpus) * 10).clamp(1, 10_000),
        }
    }
}

impl Groups {
    /// Finds where groups can be made, in files below `root`.
    ///
    /// # Errors
    /// They cannot be.
    pub(crate) fn find(root: &Path) -> Result<Self, LimitsError> {
        let mount = root.join("sys/fs/cgroup");
        if !mount.join(CONTROLLERS).is_file() {
            return Err(LimitsError::NoUnified(mount));
        }
        let own = files::read_capped(&root.join("proc/self/cgroup"), 64 * 1024).unwrap_or_default();
        let own = String::from_utf8_lossy(&own).into_owned();
        // proc(5): the group of version 2 is that of hierarchy 0.
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let Some(base) = own.strip_suffix("/daemon").filter(|base| !base.split('/').any(|part| part == "..")) else {
            return Err(LimitsError::NotDelegated(format!("/{own}")));
        };
        let groups = Self { base: mount.join(base), files: root != Path::new("/") };
        let there = read(&groups.base.join(CONTROLLERS))?;
        let has = |wanted: &&str| there.split_whitespace().any(|found| found == *wanted);
        let missing: Vec<&str> = WANTED.into_iter().filter(|wanted| !has(wanted)).collect();
        if missing.is_empty() { Ok(groups) } else { Err(LimitsError::Controllers { base: groups.base, missing }) }
    }

    /// Makes the group of a generation, or takes the one that is there, with these limits. Gives the file through which a
    /// process enters it.
    ///
    /// # Errors
    /// It cannot be made; what was begun is removed.
    pub(crate) fn make(&self, run_dir: &Path, limits: &Limits) -> Result<PathBuf, LimitsError> {
        let Limits { memory_bytes, threads, cpu_us, weight } = limits;
        let enabled = WANTED.map(|controller| format!("+{controller}")).join(" ");
        write(&self.base.join("cgroup.subtree_control"), &enabled).map_err(|error| self.occupied(error))?;
        let group = self.base.join(name(run_dir));
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(LimitsError::File { path: group, source: error });
            }
            _ => {}
        }
        let set = || {
            write(&group.join("memory.max"), &memory_bytes.to_string())?;
            // Keeper and QEMU go together: one without the other is of no use.
            write(&group.join("memory.oom.group"), "1")?;
            write(&group.join("pids.max"), &threads.to_string())?;
            write(&group.join("cpu.max"), &format!("{cpu_us} {PERIOD_US}"))?;
            write(&group.join("cpu.weight"), &weight.to_string())
        };
        if let Err(error) = set() {
            self.remove(run_dir);
            return Err(error);
        }
        Ok(group.join(ENTRANCE))
    }

    /// What the kernel's refusal to divide the base means.
    fn occupied(&self, error: LimitsError) -> LimitsError {
        match error {
            LimitsError::File { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                LimitsError::Occupied(self.base.clone())
            }
            error => error,
        }
    }

    /// Ends whatever is left in the group of a generation that is gone, and removes it.
    pub(crate) fn remove(&self, run_dir: &Path) {
        let group = self.base.join(name(run_dir));
        if !group.is_dir() {
            return;
        }
        // Nothing should be in it any more.
        let _ = write(&group.join("cgroup.kill"), "1");
        for _ in 0..TRIES {
            let removed = if self.files { fs::remove_dir_all(&group) } else { fs::remove_dir(&group) };
            match removed {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(PAUSE),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(code = CODE, "{} stays: {error}", group.display());
                    return;
                }
                _ => return,
            }
        }
        tracing::warn!(code = CODE, "{} stays: processes in it do not end", group.display());
    }
}

/// The group for a generation of this run directory, if there is to be one. Gives the file through which its keeper
/// enters it.
///
/// # Errors
/// `guest_limits_unavailable`, where limits are required.
pub(crate) fn enter(
    demand: Demand,
    root: &Path,
    run_dir: &Path,
    limits: &Limits,
) -> Result<Option<PathBuf>, Box<Refusal>> {
    if demand == Demand::Off {
        return Ok(None);
    }
    match Groups::find(root).and_then(|groups| groups.make(run_dir, limits)) {
        Ok(entrance) => Ok(Some(entrance)),
        Err(error) if demand == Demand::Require => Err(Box::new(error.refusal())),
        Err(error) => {
            let Refusal { code, fix, .. } = error.refusal();
            tracing::warn!(code, fix, "a guest has no limits: {error}");
            Ok(None)
        }
    }
}

/// `guest-NAME-gN`, of `…/NAME/gN`.
fn name(run_dir: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    format!("guest-{}-{}", part(run_dir.parent()), part(Some(run_dir)))
}

fn read(path: &Path) -> Result<String, LimitsError> {
    fs::read_to_string(path).map_err(|source| LimitsError::File { path: path.to_owned(), source })
}

fn write(path: &Path, value: &str) -> Result<(), LimitsError> {
    fs::write(path, value).map_err(|source| LimitsError::File { path: path.to_owned(), source })
}

/// Code of all that keeps a guest from having limits.
const CODE: &str = "guest_limits_unavailable";
const FIELD: &str = "agent.guest_limits";
const CONTROLLERS: &str = "cgroup.controllers";
const ENTRANCE: &str = "cgroup.procs";
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];
/// QEMU, keeper and logs.
const OVERHEAD_MIB: u64 = 512;
/// QEMU keeps up to a GiB of translated code, and a rehearsal measures with a second QEMU.
const EMULATION_MIB: u64 = 2048;
/// Threads that are no vCPU: QEMU's workers, the keeper's, those of helpers.
const HELPERS: u32 = 256;
const PERIOD_US: u64 = 100_000;
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(own: &str, controllers: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("proc/self")).unwrap();
        fs::create_dir_all(at("sys/fs/cgroup/system.slice/a.service/daemon")).unwrap();
        fs::write(at("proc/self/cgroup"), own).unwrap();
        fs::write(at("sys/fs/cgroup/cgroup.controllers"), "cpu memory pids").unwrap();
        fs::write(at("sys/fs/cgroup/system.slice/a.service/cgroup.controllers"), controllers).unwrap();
        root
    }

    fn shape(vcpus: u16, memory_mib: u32) -> MachineShape {
        let facts = ShapeFacts {
            vcpus,
            memory_mib,
            physical_bits: 46,
            qemu: "10.1".parse().unwrap(),
            devices: vec![types::Device::ConfigDisk],
        };
        MachineShape::new(facts).unwrap()
    }

    const OWN: &str = "1:name=systemd:/x\n0::/system.slice/a.service/daemon\n";
    const ALL: &str = "cpuset cpu io memory pids\n";

    #[test]
    fn limits_follow_the_shape() {
        let limits = Limits::of(&shape(8, 65_536), false);
        let expected = Limits { memory_bytes: (65_536 + 1024 + 512) << 20, threads: 264, cpu_us: 900_000, weight: 80 };
        assert_eq!(limits, expected);
        assert_eq!(Limits::of(&shape(8, 65_536), true).memory_bytes, expected.memory_bytes + (2 << 30));
    }

    #[test]
    fn a_group_is_made_beside_the_daemons_and_removed() {
        let root = tree(OWN, ALL);
        let base = root.path().join("sys/fs/cgroup/system.slice/a.service");
        let groups = Groups::find(root.path()).unwrap();
        let run_dir = Path::new("/state/guests/chat-1/g7");
        let entrance = groups.make(run_dir, &Limits::of(&shape(2, 1024), false)).unwrap();
        let group = base.join("guest-chat-1-g7");
        assert_eq!(entrance, group.join("cgroup.procs"));
        let file = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        let memory = ((1024_u64 + 16 + 512) << 20).to_string();
        assert_eq!(file("memory.max"), memory);
        assert_eq!([file("memory.oom.group"), file("pids.max"), file("cpu.weight")], ["1", "258", "20"]);
        assert_eq!(file("cpu.max"), "300000 100000");
        assert_eq!(fs::read_to_string(base.join("cgroup.subtree_control")).unwrap(), "+memory +pids +cpu");
        // The next attempt of the same generation takes the same group.
        groups.make(run_dir, &Limits::of(&shape(2, 1024), false)).unwrap();
        groups.remove(Path::new("/state/guests/chat-1/g8"));
        assert!(group.is_dir());
        groups.remove(run_dir);
        assert!(!group.exists() && base.join("daemon").is_dir());
    }

    #[test]
    fn what_is_missing_is_named() {
        let code = |own: &str, controllers: &str| {
            let root = tree(own, controllers);
            let error = Groups::find(root.path()).unwrap_err();
            let refusal = error.refusal();
            assert_eq!((refusal.code.as_str(), refusal.field.as_str()), ("guest_limits_unavailable", FIELD));
            refusal.detail
        };
        for own in
            ["", "0::/\n", "0::/daemon\n", "0::/system.slice/a.service\n", "0::/a/../b/daemon\n", "3:cpu:/x/daemon\n"]
        {
            assert!(code(own, ALL).contains("gave it none to divide"), "{own}");
        }
        assert!(code(OWN, "cpu io\n").ends_with("lacks the controllers memory, pids"));
        let none = tempfile::tempdir().unwrap();
        let error = Groups::find(none.path()).unwrap_err();
        assert!(error.to_string().ends_with("is not a control group of version 2"), "{error}");
        let limits = Limits::of(&shape(1, 512), false);
        let run_dir = Path::new("/s/a/g1");
        assert_eq!(enter(Demand::Try, none.path(), run_dir, &limits), Ok(None));
        assert_eq!(enter(Demand::Off, none.path(), run_dir, &limits), Ok(None));
        let refused = enter(Demand::Require, none.path(), run_dir, &limits).unwrap_err();
        assert_eq!(refused.code, "guest_limits_unavailable");
    }

    #[test]
    fn a_group_that_cannot_have_all_limits_is_none() {
        let root = tree(OWN, ALL);
        let groups = Groups::find(root.path()).unwrap();
        let run_dir = Path::new("/s/a/g1");
        let group = groups.base.join("guest-a-g1");
        // A file that does not take its value.
        fs::create_dir_all(group.join("pids.max")).unwrap();
        let error = groups.make(run_dir, &Limits::of(&shape(1, 512), false)).unwrap_err();
        assert!(error.to_string().contains("pids.max"), "{error}");
        assert!(!group.exists());
    }

    #[test]
    fn a_base_with_processes_in_it_is_told_from_other_faults() {
        let groups = Groups { base: PathBuf::from("/g"), files: true };
        let of = |errno: i32| {
            let error = LimitsError::File { path: "/g/f".into(), source: io::Error::from_raw_os_error(errno) };
            groups.occupied(error)
        };
        let refusal = of(nix::errno::Errno::EBUSY as i32).refusal();
        assert!(refusal.detail.contains("still in /g") && refusal.fix.contains("stop --all"), "{refusal}");
        assert!(matches!(of(nix::errno::Errno::EACCES as i32), LimitsError::File { .. }));
    }
}
