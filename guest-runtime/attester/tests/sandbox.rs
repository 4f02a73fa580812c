// SPDX-License-Identifier: Apache-2.0
//! What the confined process may do, tried in processes of their own: this binary starts itself again for each trial.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::UdpSocket,
    os::unix::{
        net::{UnixListener, UnixStream},
        process::ExitStatusExt as _,
    },
    process::{Command, exit},
};

use attester::{Keys, confine};

#[derive(Debug, PartialEq)]
enum End {
    Done,
    Refused,
    Killed,
}

const DONE: i32 = 7;
const REFUSED: i32 = 8;

fn attempt(name: &str) -> End {
    // What a trial that is killed leaves goes with this.
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "trial", "--nocapture", "--test-threads=1"]).env("TRIAL", name).env("TMPDIR", room.path());
    let status = command.output().unwrap().status;
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(REFUSED), _) => End::Refused,
        (_, Some(libc::SIGSYS)) => End::Killed,
        other => panic!("{name}: {other:?}"),
    }
}

/// Not a test by itself: the inside of a trial.
#[test]
fn trial() {
    let Ok(name) = std::env::var("TRIAL") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "generation").unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = UnixStream::connect(&socket).unwrap();
    let device = File::open("/dev/null").unwrap();
    confine().unwrap();
    let done = match name.as_str() {
        "make keys in a thread" => {
            std::thread::Builder::new().name("quotes".into()).spawn(Keys::generate).unwrap().join().unwrap().is_ok()
        }
        "accept and speak" => {
            let (mut ours, _) = listener.accept().unwrap();
            let mut byte = [0];
            let spoke = ours.write_all(b"x").is_ok() && (&client).read_exact(&mut byte).is_ok();
            spoke && ours.shutdown(std::net::Shutdown::Both).is_ok()
        }
        // As the report interface is used: a value written by one call, another read to its end.
        "use the files of a device" => {
            let wrote = OpenOptions::new().write(true).open(&file).unwrap().write(b"0123456789").unwrap() == 10;
            let mut text = String::new();
            wrote && File::open(&file).unwrap().take(64).read_to_string(&mut text).unwrap() == 10
        }
        "ask a device that is none for a TD report" => linux_sys::tdx_guest::report(&device, &[0; 64]).is_ok(),
        "give another command to a device" => linux_sys::net::loopback_up().is_ok(),
        "create a file" => File::create_new(directory.path().join("new")).is_ok(),
        "truncate a file" => File::create(&file).is_ok(),
        "remove a file" => std::fs::remove_file(&file).is_ok(),
        "reach the host by vsock" => linux_sys::vsock::to_host(7002, None).is_ok(),
        "make a socket" => UdpSocket::bind("127.0.0.1:0").is_ok(),
        "connect" => UnixStream::connect(&socket).is_ok(),
        "run a program" => Command::new("/bin/true").status().is_ok(),
        "take the filter off" => confine().is_ok(),
        _ => panic!("unknown trial"),
    };
    exit(if done { DONE } else { REFUSED });
}

#[test]
fn it_can_do_its_work() {
    for trial in ["make keys in a thread", "accept and speak", "use the files of a device"] {
        assert_eq!(attempt(trial), End::Done, "{trial}");
    }
    assert_eq!(attempt("ask a device that is none for a TD report"), End::Refused);
}

#[test]
fn anything_else_kills_it() {
    let trials = [
        "give another command to a device",
        "create a file",
        "truncate a file",
        "remove a file",
        "reach the host by vsock",
        "make a socket",
        "connect",
        "run a program",
        "take the filter off",
    ];
    for trial in trials {
        assert_eq!(attempt(trial), End::Killed, "{trial}");
    }
}
