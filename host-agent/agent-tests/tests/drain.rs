// SPDX-License-Identifier: Apache-2.0
//! Guests that are told to finish: clients that keep their connections lose no request, and nobody waits for the deadline.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::Signal;
use rig::{Client, Rig};

/// A client as HTTP clients are: it keeps its connection, and opens another one when it finds it closed.
struct Keeping {
    port: u16,
    client: Option<Client>,
}

impl Keeping {
    fn ask(&mut self, line: &str) -> String {
        if let Some(answer) = self.client.as_mut().and_then(|client| client.ask(line)) {
            return answer;
        }
        let mut fresh = Client::connect(self.port).expect("somebody listens");
        let answer = fresh.ask(line).expect("a new connection is answered");
        self.client = Some(fresh);
        answer
    }
}

#[test]
fn an_upgrade_under_load_of_kept_connections_loses_no_request() {
    let mut rig = Rig::new(&["a"]);
    // Nothing here may wait for it.
    rig.drain = 3600;
    rig.say("drains", "yes");
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    let mut idle = Client::connect(port).unwrap();
    assert_eq!(idle.ask("1").unwrap(), "first 1");
    let (stop, second) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for line in ["load", "slow", "slow again", "more"] {
            let (stop, second) = (&stop, &second);
            scope.spawn(move || {
                let mut client = Keeping { port, client: None };
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.ask(line);
                    assert!(answer == format!("first {line}") || answer == format!("second {line}"), "{answer}");
                    second.fetch_add(u32::from(answer.starts_with("second ")), Ordering::Relaxed);
                }
            });
        }
        rig.say("name", "second");
        rig.guests[0].context = 1024;
        rig.write();
        assert_eq!(rig.tell(&["reload"]).0, 0);
        rig.wait("the second generation", |_| second.load(Ordering::Relaxed) > 20);
        // Connections that are kept in use, and the idle one, do not keep it.
        rig.wait("the end of the first", |rig| rig.guest("a")["retiring"].as_array().is_some_and(Vec::is_empty));
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(idle.ask("2"), None);
    drop(idle);
    rig.assert_no_leak();
    let log = std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    assert_eq!(log.matches("telling it to finish").count(), 1, "{log}");
}

#[test]
fn whatever_ends_a_guest_tells_it_first() {
    let mut rig = Rig::new(&["a"]);
    rig.drain = 3600;
    rig.guests[0].more = "strategy = \"replace\"".to_owned();
    rig.say("drains", "yes");
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    // Replaced.
    let mut idle = Client::connect(port).unwrap();
    assert!(idle.ask("x").is_some());
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] == 2 && rig.serves("a"));
    assert_eq!(idle.ask("x"), None);
    // Stopped, by a daemon that was killed after it said so to nobody, and its successor.
    let mut idle = Client::connect(port).unwrap();
    assert!(idle.ask("x").is_some());
    assert_eq!(rig.tell(&["stop", "a"]).0, 0);
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait("a to stop", |rig| rig.guest("a")["state"] == "stopped");
    assert_eq!(idle.ask("x"), None);
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait_serving();
    // Everything is stopped.
    let mut idle = Client::connect(port).unwrap();
    assert!(idle.ask("x").is_some());
    assert_eq!(rig.tell(&["stop", "--all"]).0, 0);
    rig.wait("everything to end", |rig| rig.processes().is_empty());
    assert_eq!(idle.ask("x"), None);
}
