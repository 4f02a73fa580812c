// SPDX-License-Identifier: Apache-2.0
//! Guests learn whose connections are, and no client can say so itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rig::{Client, Rig, ask};

/// Behind the front, a guest learns whose connections are; one that was composed before there was such a header goes on
/// without, until it is exchanged.
#[test]
fn guests_are_told_whose_connections_are_if_they_were_composed_so() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    let mut kept = Client::connect(port).unwrap();
    assert_eq!(kept.ask("whose").unwrap(), "first whose 127.0.0.1");
    drop(kept);
    // As an earlier daemon composed it.
    rig.signal_daemon(Signal::SIGKILL);
    for (pid, kind) in rig.processes() {
        if kind == "start" {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    rig.wait("the guest to end", |rig| !rig.processes().iter().any(|(_, kind)| kind == "qemu"));
    let disk = rig.root.join("s/guests/a/g1/config.disk");
    let bytes = std::fs::read(&disk).unwrap();
    let length = u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[12..12 + length]).unwrap();
    let earlier = text.replacen("\"client_address\":\"proxy-protocol\",", "", 1);
    assert_ne!(text, earlier);
    let mut bytes = [&bytes[..8], &u32::try_from(earlier.len()).unwrap().to_be_bytes(), earlier.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    std::fs::write(&disk, bytes).unwrap();
    rig.start();
    rig.wait("the earlier guest", |rig| rig.serves("a") && ask(port, "whose").is_some());
    assert_eq!(rig.guest("a")["active"]["number"], 1);
    assert_eq!(ask(port, "whose").unwrap(), "first whose unknown");
    let mut old = Client::connect(port).unwrap();
    assert_eq!(old.ask("x").unwrap(), "first x");
    rig.guests[0].context += 1;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] == 2 && rig.serves("a"));
    rig.wait("to be told", |_| ask(port, "whose").as_deref() == Some("first whose 127.0.0.1"));
    assert_eq!(old.ask("y").unwrap(), "first y", "its connection went on");
    drop(old);
    rig.assert_no_leak();
}

/// Sent there without headers, a client could say itself whose its connection is.
#[test]
fn no_client_is_sent_to_a_guest_whose_configuration_cannot_be_read() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    rig.signal_daemon(Signal::SIGKILL);
    for (pid, kind) in rig.processes() {
        if kind == "front" {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    rig.wait("the front to end", |rig| !rig.processes().iter().any(|(_, kind)| kind == "front"));
    let disk = rig.root.join("s/guests/a/g1/config.disk");
    let good = std::fs::read(&disk).unwrap();
    std::fs::write(&disk, vec![0; good.len()]).unwrap();
    rig.start();
    let told = |rig: &Rig| rig.guest("a")["reasons"].to_string().contains("\"guest_configuration_unreadable\"");
    rig.wait("a report", told);
    // The front comes up after the report, and is told where to send clients after that: who lies tries again.
    let header = proxy_protocol::header("203.0.113.9:1".parse().unwrap(), ([127, 0, 0, 1], port).into());
    rig.wait("a front", |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let mut liar = TcpStream::connect(("127.0.0.1", port)).unwrap();
        liar.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut heard = String::new();
        // Whether it may say anything at all before it is turned away is no matter.
        let _ = liar.write_all(&[&header, &b"whose\n"[..]].concat());
        let _ = BufReader::new(&liar).read_line(&mut heard);
        assert_eq!(heard, "");
        std::thread::sleep(Duration::from_millis(50));
    }
    let whose = |_: &Rig| ask(port, "whose").as_deref() == Some("first whose 127.0.0.1");
    std::fs::write(&disk, &good).unwrap();
    rig.wait("clients to be sent there", whose);
    rig.wait("no report", |rig| !told(rig));
    // Who may write there cannot fill the log.
    std::fs::write(&disk, vec![0; good.len()]).unwrap();
    rig.wait("another report", told);
    std::fs::write(&disk, &good).unwrap();
    rig.wait("no report any more", |rig| !told(rig));
    let log = std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    assert_eq!(log.matches("its configuration cannot be read").count(), 1, "{log}");
    assert!(whose(&rig));
    rig.assert_no_leak();
}

/// Else the front would be left with the address of a generation that ends, which may be somebody else's next.
#[test]
fn a_generation_whose_configuration_cannot_be_read_takes_nobodys_place() {
    let mut rig = Rig::new(&["a"]);
    rig.drain = 1;
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    rig.say("name", "second");
    rig.say("manner", "wait");
    rig.guests[0].context = 1024;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("half a boot", |rig| {
        rig.guest("a")["candidate"]["phases"].as_array().is_some_and(|phases| phases.len() == 4)
    });
    let disk = rig.root.join("s/guests/a/g2/config.disk");
    let good = std::fs::read(&disk).unwrap();
    std::fs::write(&disk, vec![0; good.len()]).unwrap();
    rig.say("manner", "");
    rig.wait("a report", |rig| rig.guest("a")["reasons"].to_string().contains("\"guest_configuration_unreadable\""));
    // Longer than the first one would have had to end.
    std::thread::sleep(Duration::from_secs(3));
    let guest = rig.guest("a");
    assert_eq!(
        (guest["active"]["number"].as_u64(), guest["candidate"]["number"].as_u64()),
        (Some(1), Some(2)),
        "{guest}"
    );
    assert_eq!(ask(port, "x").as_deref(), Some("first x"));
    std::fs::write(&disk, good).unwrap();
    rig.wait("the second generation", |_| ask(port, "x").as_deref() == Some("second x"));
    rig.wait("the first to be gone", |rig| rig.guest("a")["retiring"].as_array().is_some_and(Vec::is_empty));
    rig.assert_no_leak();
}

/// A front that was started before there were headers goes when no client of a guest that lives is left on it.
#[test]
fn a_front_that_writes_no_headers_is_replaced_when_it_is_idle() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    rig.signal_daemon(Signal::SIGKILL);
    let directory = rig.root.join("s/guests/a");
    let fronts =
        |rig: &Rig| rig.processes().into_iter().filter(|(_, kind)| kind == "front").map(|(pid, _)| pid).collect();
    let new: Vec<i32> = fronts(&rig);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(new[0]), Signal::SIGKILL).unwrap();
    rig.wait("the front to end", |rig| fronts(rig).is_empty());
    let connections = |text: &str| std::fs::write(directory.join("connections"), text).unwrap();
    connections("{\"1\":1}");
    let old = std::process::Command::new(rig::program("stand-in"))
        .args(["front", directory.to_str().unwrap(), &format!("127.0.0.1:{port}")])
        .spawn();
    let mut old = old.unwrap();
    rig.wait("the earlier front", |_| directory.join("front.sock").exists() && ask(port, "x").is_none());
    rig.start();
    rig.wait("the daemon", |rig| rig.guest("a")["connections"] == 1);
    std::thread::sleep(Duration::from_secs(3));
    assert!(old.try_wait().unwrap().is_none(), "it has a client");
    connections("{}");
    rig.wait("it to be ended", |_| old.try_wait().unwrap().is_some());
    rig.wait("another one", |_| ask(port, "whose").as_deref() == Some("first whose 127.0.0.1"));
    let log = std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    assert_eq!(log.matches("front_outdated").count(), 1, "{log}");
    rig.assert_no_leak();
}
