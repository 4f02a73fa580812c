// SPDX-License-Identifier: Apache-2.0
//! What a confined process may do, tried in processes of their own: this binary starts itself again for each trial.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]
#![allow(unsafe_code, reason = "loading a library is a trial")]

use engine_process::{Stage, confine, confine_with_gpus};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, exit};

/// What a trial ends with.
#[derive(Debug, PartialEq)]
enum End {
    Done,
    Refused,
    Killed,
}

const DONE: i32 = 7;
const REFUSED: i32 = 8;

/// Runs the trial `name` confined to `stage`, and gives how it ended.
fn attempt(stage: &str, name: &str) -> End {
    // What a trial that is killed leaves goes with this.
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status: ExitStatus = command
        .args(["--exact", "trial", "--nocapture", "--test-threads=1"])
        .env("TRIAL", format!("{stage} {name}"))
        .env("TMPDIR", room.path())
        .output()
        .unwrap()
        .status;
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(REFUSED), _) => End::Refused,
        (_, Some(libc::SIGSYS)) => End::Killed,
        other => panic!("{stage} {name}: {other:?}"),
    }
}

fn last_error() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Whether a shared library can be loaded: its code is mapped for execution.
fn maps_a_program() -> bool {
    let name = c"libutil.so.1";
    // SAFETY: the name ends with a zero; the library has no code that runs when it is loaded.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) }.is_null()
}

/// Not a test by itself: the inside of a trial.
#[test]
fn trial() {
    let Ok(trial) = std::env::var("TRIAL") else { return };
    let (stage, name) = trial.split_once(' ').unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (mut here, mut there) = UnixStream::pair().unwrap();
    match stage {
        "load" => confine(Stage::Load),
        "serve" => confine(Stage::Serve),
        "load-on-gpus" => confine_with_gpus(Stage::Load),
        // As in the engine: one after the other.
        "serve-on-gpus" => confine_with_gpus(Stage::Load).and_then(|()| confine_with_gpus(Stage::Serve)),
        _ => panic!("unknown stage"),
    }
    .unwrap();
    let done = match name {
        "compute" => std::thread::spawn(|| vec![1_u8; 64 << 20].iter().map(|byte| u64::from(*byte)).sum())
            .join()
            .is_ok_and(|sum: u64| sum == 64 << 20),
        "speak" => {
            let mut byte = [0];
            here.write_all(b"x").is_ok() && there.read_exact(&mut byte).is_ok() && byte == *b"x"
        }
        "read a file" => File::open(&file).is_ok(),
        "write a file" => OpenOptions::new().write(true).open(&file).is_ok(),
        "create a file" => File::create_new(directory.path().join("new")).is_ok(),
        "remove a file" => std::fs::remove_file(&file).is_ok(),
        "make a socket" => std::net::UdpSocket::bind("127.0.0.1:0").is_ok(),
        "connect" => UnixStream::connect(&file).is_ok(),
        "run a program" => Command::new("/bin/true").status().is_ok(),
        "print" => std::io::stderr().write_all(b"a prompt\n").is_ok(),
        "take the filter off" => confine(Stage::Load).is_ok(),
        "control a file" => {
            std::io::IsTerminal::is_terminal(&File::open(&file).unwrap()) || last_error() == libc::ENOTTY
        }
        "change a mode" => std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).is_ok(),
        "map a program" => maps_a_program(),
        _ => panic!("unknown trial"),
    };
    exit(if done { DONE } else { REFUSED });
}

#[test]
fn serving_can_compute_and_speak() {
    assert_eq!(attempt("serve", "compute"), End::Done);
    assert_eq!(attempt("serve", "speak"), End::Done);
}

#[test]
fn serving_opens_nothing_and_prints_nothing() {
    assert_eq!(attempt("serve", "read a file"), End::Refused);
    assert_eq!(attempt("serve", "print"), End::Refused);
}

#[test]
fn anything_else_kills_it() {
    let trials = [
        "write a file",
        "create a file",
        "remove a file",
        "make a socket",
        "connect",
        "run a program",
        "take the filter off",
    ];
    for trial in trials {
        assert_eq!(attempt("serve", trial), End::Killed, "{trial}");
    }
}

/// An engine on GPUs controls devices: it opens files that exist and speaks to them. All else is as without.
#[test]
fn with_gpus_files_that_exist_are_opened_and_controlled() {
    for stage in ["load-on-gpus", "serve-on-gpus"] {
        for trial in ["compute", "speak", "read a file", "write a file", "control a file"] {
            assert_eq!(attempt(stage, trial), End::Done, "{stage} {trial}");
        }
        for trial in ["make a socket", "connect", "remove a file", "run a program", "change a mode"] {
            assert_eq!(attempt(stage, trial), End::Refused, "{stage} {trial}");
        }
        for trial in ["create a file", "map a program"] {
            assert_eq!(attempt(stage, trial), End::Killed, "{stage} {trial}");
        }
    }
    assert_eq!(attempt("serve-on-gpus", "print"), End::Refused);
    assert_eq!(attempt("serve-on-gpus", "take the filter off"), End::Killed);
    assert_eq!(attempt("load", "control a file"), End::Killed);
}

#[test]
fn loading_reads_files_and_no_more() {
    for trial in ["compute", "speak", "read a file", "print", "take the filter off"] {
        assert_eq!(attempt("load", trial), End::Done, "{trial}");
    }
    for trial in ["write a file", "create a file", "remove a file", "make a socket", "connect", "run a program"] {
        assert_eq!(attempt("load", trial), End::Killed, "{trial}");
    }
}
