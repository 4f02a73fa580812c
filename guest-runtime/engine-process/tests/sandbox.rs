// SPDX-License-Identifier: Apache-2.0
//! What a confined process may do, tried in processes of their own: this binary starts itself again for each trial.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

use engine_process::{Stage, confine};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
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
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status: ExitStatus = command
        .args(["--exact", "trial", "--nocapture", "--test-threads=1"])
        .env("TRIAL", format!("{stage} {name}"))
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

/// Not a test by itself: the inside of a trial.
#[test]
fn trial() {
    let Ok(trial) = std::env::var("TRIAL") else { return };
    let (stage, name) = trial.split_once(' ').unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (mut here, mut there) = UnixStream::pair().unwrap();
    confine(if stage == "load" { Stage::Load } else { Stage::Serve }).unwrap();
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

#[test]
fn loading_reads_files_and_no_more() {
    for trial in ["compute", "speak", "read a file", "print", "take the filter off"] {
        assert_eq!(attempt("load", trial), End::Done, "{trial}");
    }
    for trial in ["write a file", "create a file", "remove a file", "make a socket", "connect", "run a program"] {
        assert_eq!(attempt("load", trial), End::Killed, "{trial}");
    }
}
