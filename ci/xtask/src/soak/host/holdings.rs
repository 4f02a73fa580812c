// SPDX-License-Identifier: Apache-2.0
//! What a run holds of its machine: files, listening sockets, locks, control groups, open descriptors. Counted under names
//! without generation numbers and digests, so that two moments can be compared.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::processes::{Kind, Process};

/// How often each thing is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holdings(BTreeMap<String, usize>);

impl Holdings {
    /// Counts what is below `directory`, and what these processes hold.
    pub(super) fn count(directory: &Path, processes: &[Process], guests: &[&str]) -> Self {
        let (mut counted, mut inodes) = (Self::default(), BTreeMap::new());
        counted.files(directory, directory, &mut inodes);
        counted.locks(&read("/proc/locks"), &inodes);
        counted.unix_sockets(&read("/proc/net/unix"), directory);
        let listeners = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| tcp_listeners(&read(path)));
        let listeners: BTreeMap<u64, u16> = listeners.into_iter().flatten().collect();
        for process in processes {
            counted.descriptors(process, &listeners);
        }
        counted.control_groups(Path::new("/sys/fs/cgroup"), guests, GROUP_DEPTH);
        counted
    }

    /// What is there now and was not, and the reverse. Of descriptors only more than there were.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let mut found = Vec::new();
        for name in names {
            let of = |holdings: &Self| holdings.0.get(name).copied().unwrap_or(0);
            let (had, has) = (of(self), of(now));
            let fewer = has < had && !name.starts_with(DESCRIPTORS);
            if has > had || fewer {
                found.push(format!("{name}: {has}, not {had}"));
            }
        }
        found
    }

    /// Those of one sort, summed.
    pub(super) fn sum(&self, sort: &str) -> usize {
        self.0.iter().filter(|(name, _)| name.starts_with(sort)).map(|(_, count)| count).sum()
    }

    fn add(&mut self, name: String) {
        *self.0.entry(name).or_default() += 1;
    }

    fn files(&mut self, base: &Path, directory: &Path, inodes: &mut BTreeMap<u64, String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let (path, kind) = (entry.path(), metadata.file_type());
            let name = plain(path.strip_prefix(base).unwrap_or(&path));
            let sort = match kind {
                kind if kind.is_dir() => "directory",
                kind if kind.is_socket() => "socket file",
                kind if kind.is_symlink() => "link",
                _ => "file",
            };
            self.add(format!("{sort} {name}"));
            inodes.insert(metadata.ino(), name);
            if kind.is_dir() {
                self.files(base, &path, inodes);
            }
        }
    }

    /// Locks on files of the run (proc(5), `/proc/locks`). Who waits for one is another line, with an arrow.
    fn locks(&mut self, text: &str, inodes: &BTreeMap<u64, String>) {
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let inode = words.get(5).and_then(|word| word.rsplit(':').next()?.parse::<u64>().ok());
            if let Some(name) = inode.and_then(|inode| inodes.get(&inode)) {
                self.add(format!("lock {name}"));
            }
        }
    }

    fn unix_sockets(&mut self, text: &str, directory: &Path) {
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(flags), Some(path)) = (words.get(3), words.get(7)) else { continue };
            if let (Ok(path), true) = (Path::new(path).strip_prefix(directory), *flags == LISTENING) {
                self.add(format!("listening socket {}", plain(path)));
            }
        }
    }

    fn descriptors(&mut self, process: &Process, listeners: &BTreeMap<u64, u16>) {
        let who = format!("{} {}", process.kind.as_str(), process.guest.as_deref().unwrap_or("-"));
        for entry in std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten() {
            if matches!(process.kind, Kind::Daemon | Kind::Keeper | Kind::Front) {
                self.add(format!("{DESCRIPTORS} {who}"));
            }
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(port) = inode.and_then(|inode: u64| listeners.get(&inode)) else { continue };
            // Where clients connect is declared; the other ports are any.
            let port =
                if matches!(process.kind, Kind::Front | Kind::Daemon) { port.to_string() } else { "any".to_owned() };
            self.add(format!("port {port} of {who}"));
        }
    }

    fn control_groups(&mut self, directory: &Path, guests: &[&str], depth: u32) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(guest) = guests.iter().find(|guest| name.starts_with(&format!("guest-{guest}-g"))) {
                self.add(format!("control group of {guest}"));
            }
            if let Some(depth) = depth.checked_sub(1) {
                self.control_groups(&entry.path(), guests, depth);
            }
        }
    }
}

/// Port of each listening socket by its inode (proc(5), `/proc/net/tcp`).
fn tcp_listeners(text: &str) -> BTreeMap<u64, u16> {
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let port = u16::from_str_radix(words.get(1)?.rsplit(':').next()?, 16).ok()?;
        let listens = *words.get(3)? == "0A";
        Some((words.get(9)?.parse().ok()?, port)).filter(|_| listens)
    };
    text.lines().filter_map(socket).collect()
}

/// A path without what differs from one moment to the next.
fn plain(path: &Path) -> String {
    let word = |part: std::path::Component<'_>| {
        let text = part.as_os_str().to_string_lossy().into_owned();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.strip_prefix('g') {
            Some(number) if digits(number) => "gN".to_owned(),
            _ if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => "DIGEST".to_owned(),
            _ => text,
        }
    };
    path.components().map(word).collect::<Vec<_>>().join("/")
}

fn read(path: &str) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

const DESCRIPTORS: &str = "descriptors of";
/// `__SO_ACCEPTCON` of Linux.
const LISTENING: &str = "00010000";
const GROUP_DEPTH: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_shows_whatever_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let run = |number: u32| directory.path().join(format!("s/guests/one/g{number}"));
        std::fs::create_dir_all(run(1)).unwrap();
        std::fs::write(run(1).join("launch.json"), "").unwrap();
        let count = || Holdings::count(directory.path(), &[], &["one"]);
        let before = count();
        // Another generation in place of the first is the same.
        std::fs::rename(run(1), run(12)).unwrap();
        assert!(before.differences(&count()).is_empty());
        std::fs::create_dir(run(3)).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(run(3).join("vsock")).unwrap();
        let found = before.differences(&count());
        assert!(found.iter().any(|line| line.starts_with("directory s/guests/one/gN: 2")), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("socket file s/guests/one/gN/vsock")), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("listening socket s/guests/one/gN/vsock")), "{found:?}");
        drop(socket);
        std::fs::remove_dir_all(run(3)).unwrap();
        std::fs::remove_file(run(12).join("launch.json")).unwrap();
        assert_eq!(before.differences(&count()), ["file s/guests/one/gN/launch.json: 0, not 1"]);
    }

    #[test]
    fn locks_and_ports_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.pid");
        let file = std::fs::File::create(&path).unwrap();
        let before = Holdings::count(directory.path(), &[], &[]);
        file.lock().unwrap();
        let locked = Holdings::count(directory.path(), &[], &[]);
        assert_eq!(before.differences(&locked), ["lock agent.pid: 1, not 0"]);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(tcp_listeners(&read("/proc/net/tcp")).into_values().any(|found| found == port));
    }

    #[test]
    fn fewer_descriptors_are_no_leak() {
        let of = |count| Holdings(BTreeMap::from([("descriptors of front one".to_owned(), count)]));
        assert!(of(9).differences(&of(8)).is_empty());
        assert_eq!(of(9).differences(&of(10)), ["descriptors of front one: 10, not 9"]);
        assert_eq!(of(9).sum("descriptors"), 9);
    }
}
