// SPDX-License-Identifier: Apache-2.0
//! What PID 1 may do once it is confined, tried in processes of their own: this binary starts itself again for each trial.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::UdpSocket,
    os::unix::{fs::symlink, net::UnixStream, process::ExitStatusExt as _},
    path::Path,
    process::{Command, exit},
    thread,
};

use init::{Stage, confine};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::{Mode, SFlag, mknod},
    },
    unistd::chroot,
};

/// How a trial ended: the call was done, it failed with an error, the filter killed the process.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    Killed,
}

const DONE: i32 = 7;
const FAILED: i32 = 8;

fn attempt(stage: &str, name: &str) -> End {
    // What a trial that is killed leaves goes with this.
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "trial", "--nocapture", "--test-threads=1"])
        .env("TRIAL", format!("{stage}/{name}"))
        .env("TMPDIR", room.path());
    let status = command.output().unwrap().status;
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(FAILED), _) => End::Failed,
        (_, Some(libc::SIGSYS)) => End::Killed,
        other => panic!("{stage} {name}: {other:?}"),
    }
}

/// Not a test by itself: the inside of a trial.
#[test]
fn trial() {
    let Ok(trial) = std::env::var("TRIAL") else { return };
    let (stage, name) = trial.split_once('/').unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let mut child = Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    match stage {
        "free" => {}
        "boot" => confine(Stage::Boot { shared_libraries: true }).unwrap(),
        "static" => confine(Stage::Boot { shared_libraries: false }).unwrap(),
        "watch" => {
            // As at boot: one after the other.
            confine(Stage::Boot { shared_libraries: true }).unwrap();
            confine(Stage::Watch).unwrap();
        }
        _ => panic!("unknown stage"),
    }
    let opened = |family| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).is_ok();
    let done = match name {
        "wait for a child" => {
            drop(child.stdin.take());
            child.wait().is_ok_and(|status| status.success())
        }
        "start a program" => Command::new("/bin/true").status().is_ok_and(|status| status.success()),
        "use threads" => thread::spawn(|| 1).join().is_ok(),
        "write and rename" => {
            std::fs::create_dir(directory.path().join("d")).is_ok()
                && std::fs::write(directory.path().join("new"), "y").is_ok()
                && std::fs::rename(directory.path().join("new"), &file).is_ok()
        }
        "read a file" => File::open(&file).is_ok(),
        "speak over Unix sockets" => UnixStream::pair().is_ok_and(|(mut ours, mut theirs)| {
            let mut byte = [0];
            ours.write_all(b"x").is_ok() && theirs.read_exact(&mut byte).is_ok()
        }),
        "make an IPv4 socket" => UdpSocket::bind("127.0.0.1:0").is_ok(),
        // A machine may have none: what counts is that the filter lets it be asked for.
        "make a vsock socket" => opened(AddressFamily::Vsock) || !Path::new("/dev/vsock").exists(),
        "make an IPv6 socket" => opened(AddressFamily::Inet6),
        "make a netlink socket" => opened(AddressFamily::Netlink),
        "make a Unix socket" => opened(AddressFamily::Unix),
        "mount" => mount(None::<&str>, "/nonexistent", None::<&str>, MsFlags::empty(), None::<&str>).is_ok(),
        "make a namespace" => unshare(CloneFlags::CLONE_NEWUSER).is_ok(),
        "make a node" => mknod(&directory.path().join("n"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).is_ok(),
        "make a link" => symlink(&file, directory.path().join("link")).is_ok(),
        "change the root" => chroot("/nonexistent").is_ok(),
        "load a module" => linux_sys::modules::insert(&file, "").is_ok(),
        _ => panic!("unknown trial"),
    };
    exit(if done { DONE } else { FAILED });
}

#[test]
fn booting_can_do_what_the_phases_need() {
    for name in [
        "wait for a child",
        "start a program",
        "use threads",
        "write and rename",
        "read a file",
        "speak over Unix sockets",
        "make an IPv4 socket",
        "make a vsock socket",
    ] {
        assert_eq!(attempt("boot", name), End::Done, "{name}");
    }
}

/// Without the filter each of them is done, or fails with an error: the kill is the filter's.
#[test]
fn booting_changes_nothing_of_the_machine() {
    for name in [
        "make an IPv6 socket",
        "make a netlink socket",
        "mount",
        "make a namespace",
        "change the root",
        "load a module",
    ] {
        assert_ne!(attempt("free", name), End::Killed, "{name}");
        assert_eq!(attempt("boot", name), End::Killed, "{name}");
    }
}

/// NVIDIA's libraries try these: where they run, the call fails and they go on; elsewhere it kills.
#[test]
fn nobody_makes_nodes_or_links() {
    for name in ["make a node", "make a link"] {
        assert_eq!(attempt("free", name), End::Done, "{name}");
        assert_eq!(attempt("boot", name), End::Failed, "{name}");
        assert_eq!(attempt("static", name), End::Killed, "{name}");
    }
}

/// The loader of shared libraries is killed in the child; PID 1 sees that it ended.
#[test]
fn only_images_with_shared_libraries_map_them() {
    assert_eq!(attempt("boot", "start a program"), End::Done);
    assert_eq!(attempt("static", "start a program"), End::Failed);
}

#[test]
fn watching_is_waiting_and_telling() {
    for name in ["wait for a child", "use threads", "make a vsock socket"] {
        assert_eq!(attempt("watch", name), End::Done, "{name}");
    }
    for name in [
        "start a program",
        "read a file",
        "write and rename",
        "make a Unix socket",
        "make an IPv4 socket",
        "speak over Unix sockets",
        "mount",
    ] {
        assert_eq!(attempt("watch", name), End::Killed, "{name}");
    }
}
