// SPDX-License-Identifier: Apache-2.0
//! What the confined process may do, tried in processes of their own: this binary starts itself again for each trial.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::ExitStatusExt as _,
    },
    process::{Command, exit},
    time::Duration,
};

use serve::confine;

const DONE: i32 = 7;
const FAILED: i32 = 8;

/// Whether the trial was done (`true`) or killed by the filter.
fn attempt(name: &str) -> bool {
    // What a trial that is killed leaves goes with this.
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "trial", "--nocapture", "--test-threads=1"]).env("TRIAL", name).env("TMPDIR", room.path());
    let status = command.output().unwrap().status;
    match (status.code(), status.signal()) {
        (Some(DONE), _) => true,
        (_, Some(libc::SIGSYS)) => false,
        other => panic!("{name}: {other:?}"),
    }
}

/// Not a test by itself: the inside of a trial.
#[test]
fn trial() {
    let Ok(name) = std::env::var("TRIAL") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let socket = directory.path().join("socket");
    let attester = UnixListener::bind(&socket).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let host = directory.path().join("host");
    let drain = UnixListener::bind(&host).unwrap();
    drain.set_nonblocking(true).unwrap();
    let says = UnixStream::connect(&host).unwrap();
    confine().unwrap();
    let done = match name.as_str() {
        "accept and answer" => {
            let (mut ours, _) = listener.accept().unwrap();
            let mut byte = [0];
            ours.set_nodelay(true).is_ok() && ours.write_all(b"x").is_ok() && (&client).read_exact(&mut byte).is_ok()
        }
        "ask the attester" => {
            let asked = UnixStream::connect(&socket).unwrap();
            attester.accept().is_ok() && asked.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        }
        "hear the host" => runtime.block_on(async {
            let link = serve::DrainLink::new(drain.into()).unwrap();
            (&says).write_all(&drain_protocol::REQUEST).unwrap();
            link.hear(|| ()).await.is_ok() && (&says).read_exact(&mut [0; drain_protocol::ANSWER.len()]).is_ok()
        }),
        "make an identifier" => getrandom::fill(&mut [0; 16]).is_ok(),
        "run tasks" => runtime.block_on(async {
            let blocking = tokio::task::spawn_blocking(|| 1);
            let task = tokio::spawn(tokio::time::sleep(Duration::from_millis(1)));
            blocking.await.is_ok() && task.await.is_ok()
        }),
        "read a file" => File::open(&file).is_ok(),
        "create a file" => File::create_new(directory.path().join("new")).is_ok(),
        "remove a file" => std::fs::remove_file(&file).is_ok(),
        "listen again" => UnixListener::bind(directory.path().join("other")).is_ok(),
        "connect by TCP" => TcpStream::connect(listener.local_addr().unwrap()).is_ok(),
        "make a socket" => UdpSocket::bind("127.0.0.1:0").is_ok(),
        "reach the host by vsock" => linux_sys::vsock::to_host(7002, None).is_ok(),
        "run a program" => Command::new("/bin/true").status().is_ok(),
        "take the filter off" => confine().is_ok(),
        _ => panic!("unknown trial"),
    };
    exit(if done { DONE } else { FAILED });
}

#[test]
fn it_can_serve() {
    for trial in ["accept and answer", "ask the attester", "hear the host", "make an identifier", "run tasks"] {
        assert!(attempt(trial), "{trial}");
    }
}

#[test]
fn anything_else_kills_it() {
    let trials = [
        "read a file",
        "create a file",
        "remove a file",
        "listen again",
        "connect by TCP",
        "make a socket",
        "reach the host by vsock",
        "run a program",
        "take the filter off",
    ];
    for trial in trials {
        assert!(!attempt(trial), "{trial}");
    }
}
