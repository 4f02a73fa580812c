// SPDX-License-Identifier: Apache-2.0
//! The daemon with stand-ins: started, adopted, upgraded, rolled back, refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use collateral::{Keeper, Wanted};
use nix::sys::signal::Signal;
use rig::{Client, Rig, ask};
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdParams, TdReport};
use tdx_verify::TrustAnchors;
use types::{Registers, Sha384Digest};

/// A host that falls out with the next TCB evaluation says so everywhere, and its guests serve on.
#[test]
fn a_host_that_falls_out_says_so() {
    let mut rig = Rig::new(&["a"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let platform = SimulatedPlatform::generate(now).unwrap();
    let (root, directory) = (rig.root.join("root.der"), rig.root.join("collateral"));
    std::fs::write(&root, platform.root_der()).unwrap();
    let quote = sample_quote(&platform);
    let keeper = Keeper::open(&directory, TrustAnchors::custom(platform.root_der().to_vec())).unwrap();
    let issue = |number, fault| platform.collateral_numbered(now, number, fault).unwrap().to_json();
    let early = issue(18, Some(Fault::OutOfDateTcb));
    let wanted = Wanted::of_quote(&quote).unwrap();
    keeper.keep(&wanted, issue(17, None).as_bytes(), Some(early.as_bytes()), now).unwrap();
    std::fs::write(rig.root.join("quote"), quote).unwrap();
    rig.flags = vec!["--sim-root".to_owned(), root.to_str().unwrap().to_owned()];
    rig.sections =
        format!("[tcb]\ncollateral_dir = \"{}\"\nquote = \"{}/quote\"\n", directory.display(), rig.root.display());
    rig.start();
    rig.wait_serving();
    rig.wait("the watch", |rig| rig.status().unwrap()["tcb"]["state"] == "falls-out");
    let tcb = rig.status().unwrap()["tcb"].clone();
    let days = tcb["days_left"].as_u64().unwrap();
    assert!((41..=42).contains(&days), "{tcb}");
    assert!(tcb["reasons"][0]["fix"].as_str().unwrap().starts_with("update "), "{tcb}");
    let metrics = rig.metrics();
    for line in [
        "chrysalis_host_tcb_state{state=\"falls-out\"} 1".to_owned(),
        "chrysalis_host_tcb_state{state=\"good\"} 0".to_owned(),
        format!("chrysalis_host_tcb_days_left {days}"),
    ] {
        assert!(metrics.contains(&line), "{line}:\n{metrics}");
    }
    let socket = rig.socket();
    let text = rig.agent(&["status", "--socket", socket.to_str().unwrap()]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("TCB of this host: falls-out") && text.contains("tcb_falls_out"), "{text}");
    let log = std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    assert_eq!(log.matches("this host falls out on").count(), 1, "{log}");
    assert_eq!(ask(rig.guests[0].port, "hello").unwrap(), "first hello");
}

/// GPUs are bound before their guest starts, given to its QEMU, and given back when it is stopped; another guest's stay.
#[test]
fn gpus_are_bound_passed_on_and_given_back() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.with_gpus();
    let before = rig.bindings();
    rig.guests[0].more = "gpus = [\"0000:17:00.0\"]".to_owned();
    rig.guests[1].more = "gpus = [\"0000:3d:00.0\"]\nunpublished_shape = true".to_owned();
    rig.start();
    // No release has references for a machine with GPUs: that must be said by who knows its clients.
    rig.wait("a to be refused", |rig| rig.guest("a")["state"] == "refused");
    assert_eq!(rig.guest("a")["reasons"][0]["code"], "shape_not_published");
    rig.wait("b", |rig| rig.serves("b"));
    let vfio = ("vfio-pci".to_owned(), "vfio-pci".to_owned());
    assert_eq!(rig.bindings(), [before[0].clone(), before[1].clone(), vfio.clone()]);
    rig.guests[0].more.push_str("\nunpublished_shape = true");
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait_serving();
    assert_eq!(rig.bindings(), vec![vfio.clone(); 3]);
    let qemu = rig.guest("a")["active"]["qemu_pid"].as_u64().unwrap();
    let line = std::fs::read(format!("/proc/{qemu}/cmdline")).unwrap();
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.contains("vfio-pci,host=0000:17:00.0,bus=gpu0,rombar=0"), "{line}");
    assert!(!line.contains("17:00.1") && !line.contains("3d:00.0"), "{line}");
    assert_eq!(rig.tell(&["stop", "a"]).0, 0);
    rig.wait("a's GPU to come back", |rig| rig.bindings() == [before[0].clone(), before[1].clone(), vfio.clone()]);
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait_serving();
    assert_eq!(rig.bindings(), vec![vfio; 3]);
    // The daemon goes with its guests, and nothing stays bound.
    assert_eq!(rig.tell(&["stop", "--all"]).0, 0);
    rig.wait("the end", |rig| rig.processes().is_empty());
    assert_eq!(rig.bindings(), before);
}

/// A full disk stops no guest and changes nothing, and says so; with room the daemon takes orders again.
#[test]
fn a_full_state_directory_changes_nothing() {
    let mut rig = Rig::new(&["a"]);
    let state = rig.root.join("s");
    std::fs::create_dir_all(&state).unwrap();
    let Some(_mounted) = Small::mount(&state, "size=64m") else { return };
    rig.start();
    rig.wait_serving();
    let qemu = rig.guest("a")["active"]["qemu_pid"].clone();
    let filler = state.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    // To the last page.
    while std::io::Write::write(&mut file, &[0; 65_536]).is_ok_and(|written| written > 0) {}
    let (code, reasons) = rig.tell(&["restart", "a"]);
    assert_eq!((code, reasons[0]["code"].as_str()), (2, Some("state_not_written")), "{reasons:?}");
    assert_eq!(rig.guest("a")["active"]["qemu_pid"], qemu);
    assert_eq!(ask(rig.guests[0].port, "hello").unwrap(), "first hello");
    // A daemon that dies meanwhile finds what runs, too.
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait("the next daemon", |rig| rig.guest("a")["active"]["serving"] == true);
    assert_eq!(rig.guest("a")["active"]["qemu_pid"], qemu);
    std::fs::remove_file(&filler).unwrap();
    drop(file);
    rig.wait("room", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait("another generation", |rig| rig.serves("a") && rig.guest("a")["active"]["qemu_pid"] != qemu);
    rig.assert_no_leak();
}

/// A small file system, until it is dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &std::path::Path, options: &str) -> Option<Self> {
        let mounted = nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options));
        if mounted.is_err() {
            println!("SKIPPED: a small file system cannot be mounted");
        }
        mounted.ok().map(|()| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// Attack 57, as far as the agent goes: what clients and guests say to each other is in no byte that it writes, shows or
/// tells. The stand-in guest takes it in the clear, so that nothing but the agent's own conduct keeps it from being seen.
#[test]
fn what_passes_is_written_nowhere() {
    const CANARY: &str = "canary-5b1d7e";
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    let mut kept = Client::connect(port).unwrap();
    for line in [CANARY.to_owned(), format!("GET /{CANARY} HTTP/1.1"), CANARY.repeat(10_000)] {
        assert!(ask(port, &line).unwrap().contains(CANARY));
        assert!(kept.ask(&line).unwrap().contains(CANARY));
    }
    // Over an exchange of the guest, a death of everything that carries it, and while nobody serves.
    rig.guests[0].context += 1;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] == 2 && rig.serves("a"));
    // The old one is drained, and cut at the deadline.
    let _ = kept.ask(CANARY);
    for kind in ["qemu", "start", "front"] {
        let _ = kept.ask(CANARY);
        // One of the old generation may be gone before the signal comes.
        rig.wait("a death", |rig| {
            let found = rig.processes().into_iter().find(|(_, found)| found == kind);
            found.is_some_and(|(pid, _)| {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).is_ok()
            })
        });
        let _ = ask(port, CANARY);
        rig.wait_serving();
        kept = Client::connect(port).unwrap();
    }
    assert!(kept.ask(CANARY).unwrap().contains(CANARY));
    let mut seen = vec![("metrics".to_owned(), rig.metrics().into_bytes())];
    let (socket, state) = (rig.socket(), rig.root.join("s"));
    let (socket, state) = (socket.to_str().unwrap(), state.to_str().unwrap());
    for words in [
        &["status", "--socket", socket][..],
        &["status", "--json", "--socket", socket],
        &["logs", "a", "--state-dir", state],
    ] {
        seen.push((words.join(" "), rig.agent(words).stdout));
    }
    for (pid, kind) in rig.processes() {
        for file in ["cmdline", "environ"] {
            seen.push((format!("{kind}'s {file}"), std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()));
        }
    }
    files(&rig.root, &mut seen);
    assert!(seen.len() > 20, "{}", seen.len());
    for (place, bytes) in seen {
        let found = bytes.windows(CANARY.len()).position(|window| window == CANARY.as_bytes());
        assert_eq!(found, None, "{place}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]));
    }
}

/// Everything below a directory: names and contents.
fn files(directory: &std::path::Path, seen: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        seen.push((path.display().to_string(), path.display().to_string().into_bytes()));
        if kind.is_dir() {
            files(&path, seen);
        } else if kind.is_file() {
            // What goes away meanwhile was a temporary file's name.
            seen.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        }
    }
}

fn sample_quote(platform: &SimulatedPlatform) -> Vec<u8> {
    let params = TdParams::with_config(Sha384Digest::ZERO);
    let zero = Sha384Digest::ZERO;
    let registers = Registers {
        mr_td: zero,
        rtmr_0: zero,
        rtmr_1: zero,
        rtmr_2: zero,
        rtmr_3: zero,
        mr_config_id: zero,
        mr_owner: zero,
        mr_owner_config: zero,
    };
    let report = TdReport { registers, attributes: params.attributes, xfam: params.xfam, report_data: [0; 64] };
    platform.quote(&report, QuoteVersion::V4, None).unwrap()
}

#[test]
fn guests_serve_and_are_adopted_by_the_next_daemon() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.start();
    rig.wait_serving();
    rig.assert_no_leak();
    let before = (rig.guest("a"), rig.guest("b"));
    let mut client = Client::connect(rig.guests[0].port).unwrap();
    assert_eq!(client.ask("hello").unwrap(), "first hello");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        rig.signal_daemon(signal);
        assert_eq!(client.ask("nobody noticed").unwrap(), "first nobody noticed");
        assert_eq!(ask(rig.guests[1].port, "new").unwrap(), "first new");
        rig.start();
        rig.wait_serving();
    }
    let after = (rig.guest("a"), rig.guest("b"));
    assert_eq!(before.0["active"]["qemu_pid"], after.0["active"]["qemu_pid"]);
    assert_eq!(before.1["active"]["keeper_pid"], after.1["active"]["keeper_pid"]);
    assert_eq!(client.ask("still here").unwrap(), "first still here");
    rig.assert_no_leak();
    let metrics = rig.metrics();
    for line in [
        "chrysalis_guest_state{guest=\"a\",state=\"serving\"} 1",
        "chrysalis_guest_connections{guest=\"a\"} 1",
        "chrysalis_agent_simulated 1",
        "chrysalis_guest_boot_milliseconds{guest=\"b\",phase=\"serve\"}",
        "chrysalis_cache_packs 1",
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    // Stopped until it is restarted, also over a restart of the daemon.
    assert_eq!(rig.tell(&["stop", "a"]).0, 0);
    rig.wait("a to stop", |rig| rig.guest("a")["state"] == "stopped");
    assert!(ask(rig.guests[0].port, "x").is_none());
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait("the daemon", |rig| rig.guest("b")["active"]["serving"] == true);
    assert_eq!(rig.guest("a")["state"], "stopped");
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait_serving();
    // All drained, then the daemon ends: nothing is left.
    drop(client);
    assert_eq!(rig.tell(&["stop", "--all"]).0, 0);
    rig.wait("everything to end", |rig| rig.processes().is_empty());
}

#[test]
fn an_upgrade_under_load_loses_no_request_and_no_connection() {
    let mut rig = Rig::new(&["a"]);
    rig.drain = 600;
    rig.start();
    rig.wait_serving();
    let port = rig.guests[0].port;
    let mut old = Client::connect(port).unwrap();
    assert_eq!(old.ask("1").unwrap(), "first 1");
    let (stop, second) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(port, "load").expect("no request fails");
                    second.fetch_add(u32::from(answer == "second load"), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        rig.say("name", "second");
        rig.guests[0].context = 1024;
        rig.write();
        assert_eq!(rig.tell(&["reload"]).0, 0);
        rig.wait("the second generation", |_| second.load(Ordering::Relaxed) > 20);
        // Whoever was there before is still served by the first.
        assert_eq!(old.ask("2").unwrap(), "first 2");
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(rig.guest("a")["retiring"].as_array().unwrap().len(), 1);
    drop(old);
    rig.assert_no_leak();
    // Its time is limited.
    let mut old = Client::connect(port).unwrap();
    assert_eq!(old.ask("3").unwrap(), "second 3");
    rig.drain = 1;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait("the drain deadline", |rig| {
        let guest = rig.guest("a");
        guest["active"]["number"] == 3 && guest["retiring"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(old.ask("4"), None);
    rig.assert_no_leak();
}

#[test]
fn what_does_not_serve_is_rolled_back_without_a_failed_request() {
    for (strategy, manner) in [("beside", "halt"), ("replace", "halt"), ("beside", "hang")] {
        let mut rig = Rig::new(&["a"]);
        rig.guests[0].more = format!("strategy = \"{strategy}\"\nboot_deadline_s = 5\n");
        rig.start();
        rig.wait_serving();
        rig.say("manner", manner);
        rig.guests[0].context = 1024;
        rig.write();
        assert_eq!(rig.tell(&["reload"]).0, 0);
        rig.wait("the rollback", |rig| {
            if strategy == "beside" {
                assert_eq!(ask(rig.guests[0].port, "x").unwrap(), "first x");
            }
            let reasons = rig.guest("a")["reasons"].to_string();
            // The old one comes back as it was, whatever new ones do.
            rig.say("manner", if reasons.contains("upgrade_rolled_back") { "" } else { manner });
            reasons.contains("upgrade_rolled_back")
        });
        rig.wait_serving();
        let guest = rig.guest("a");
        assert_eq!(guest["active"]["number"], 1);
        let codes: Vec<&str> =
            guest["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect();
        assert!(codes.contains(&if manner == "halt" { "key_refused" } else { "guest_ended" }), "{codes:?}");
        rig.assert_no_leak();
        // Mended, and asked for.
        rig.say("manner", "");
        assert_eq!(rig.tell(&["restart", "a"]).0, 0);
        rig.wait("the second attempt", |rig| rig.guest("a")["active"]["number"] == 3);
        rig.wait_serving();
        assert_eq!(rig.guest("a")["reasons"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn what_is_refused_changes_nothing_that_runs() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let pid = rig.guest("a")["active"]["qemu_pid"].clone();
    let refused = |rig: &Rig, code: &str, field: &str| {
        let (exit, reasons) = rig.tell(&["reload"]);
        assert_eq!(exit, 2, "{code}");
        let found = reasons.iter().find(|reason| reason["code"] == code);
        let found = found.unwrap_or_else(|| panic!("{code}: {reasons:?}"));
        assert!(found["field"].as_str().unwrap().contains(field), "{found}");
        assert!(found["fix"].as_str().is_some_and(|fix| !fix.is_empty()));
        let guest = rig.guest("a");
        assert_eq!((&guest["active"]["qemu_pid"], guest["active"]["serving"].as_bool()), (&pid, Some(true)), "{code}");
        assert!(ask(rig.guests[0].port, "x").is_some());
    };
    let good = std::fs::read_to_string(rig.config()).unwrap();
    let write = |rig: &Rig, from: &str, to: &str| std::fs::write(rig.config(), good.replace(from, to)).unwrap();
    write(&rig, "vcpus = 2", "vcpus = 2\nvpcus = 4");
    refused(&rig, "config_unknown_field", "guests.a.vpcus");
    write(&rig, "vcpus = 2", "vcpus = 2\ngpus = [\"b8\"]");
    refused(&rig, "config_value", "guests.a.gpus");
    std::fs::create_dir_all(rig.root.join("tree/sys/bus/pci/devices")).unwrap();
    write(&rig, "vcpus = 2", "vcpus = 2\ngpus = [\"0000:b8:00.0\"]");
    refused(&rig, "gpu_not_found", "guests.a.gpus");
    write(&rig, "vcpus = 2", "vcpus = 4");
    assert_eq!(
        rig.tell(&["reload"]).0,
        0,
        "the release is good; that it has no such machine shows when it is composed"
    );
    rig.wait("the refusal", |rig| rig.guest("a")["reasons"].to_string().contains("shape_not_published"));
    assert_eq!(rig.guest("a")["active"]["qemu_pid"], pid);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    write(&rig, &format!("127.0.0.1:{}", rig.guests[0].port), &format!("127.0.0.1:{port}"));
    refused(&rig, "port_taken", "guests.a.listen");
    rig.write();
    // Tampered: a byte of the kernel, then the bundle's signature.
    std::fs::write(rig.root.join("image/vmlinuz"), "another kernel").unwrap();
    refused(&rig, "release_image_mismatch", "releases.r.image");
    rig::release(&rig.root, 1);
    let bundle = std::fs::read_to_string(rig.root.join("bundle")).unwrap();
    std::fs::write(rig.root.join("bundle"), bundle.replace("\"sig\":\"M", "\"sig\":\"N")).unwrap();
    refused(&rig, "release_signature", "releases.r.bundle");
    // What was accepted before still comes back after it fell: from the daemon's own copy.
    let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    rig.wait("another QEMU", |rig| rig.serves("a") && rig.guest("a")["active"]["qemu_pid"] != pid);
    // Unless the copy was tampered with.
    let releases = rig.root.join("s/releases");
    let copy = std::fs::read_dir(&releases).unwrap().flatten().next().unwrap().path();
    std::fs::write(copy.join("initrd"), "tampered").unwrap();
    let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    rig.wait("the refusal", |rig| {
        let guest = rig.guest("a");
        guest["state"] == "waiting" && guest["reasons"].to_string().contains("release_image_mismatch")
    });
    assert!(rig.processes().iter().all(|(_, kind)| kind != "qemu"));
    // Published well again, the same release is copied anew.
    rig::release(&rig.root, 1);
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait_serving();
    assert_eq!(rig.guest("a")["active"]["number"], 1);
    // So it is without a word from anybody, as long as what is published is good.
    std::fs::write(copy.join("initrd"), "tampered").unwrap();
    let pid = rig.guest("a")["active"]["qemu_pid"].clone();
    let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    rig.wait("a good copy", |rig| rig.serves("a") && rig.guest("a")["active"]["qemu_pid"] != pid);
    rig.assert_no_leak();
}

#[test]
fn a_configuration_that_cannot_be_run_is_refused_at_once() {
    let mut rig = Rig::new(&["a"]);
    rig.write();
    let config = rig.config();
    let check = |code: i32| {
        let output = rig.agent(&["agent", "--check", "--json", "--config", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(check(0).contains("\"accepted\":true"));
    std::fs::remove_file(rig.root.join("image/initrd")).unwrap();
    assert!(check(2).contains("release_image_mismatch"));
    std::fs::write(&config, "[agent]\nmetrics_listen = \"0.0.0.0:1\"\n").unwrap();
    assert!(check(2).contains("agent.metrics_listen"));
    std::fs::remove_file(&config).unwrap();
    assert!(check(2).contains("config_unreadable"));
    let output = rig.agent(&["status", "--socket", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));
    // Two daemons do not share a directory.
    rig::release(&rig.root, 1);
    rig.start();
    rig.wait_serving();
    let second = rig.agent(&["agent", "--config", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent"));
}

#[test]
fn a_model_that_is_not_there_is_waited_for() {
    let mut rig = Rig::new(&["a"]);
    let object = rig.pack_directory().join("objects/000001");
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(&object).unwrap();
    rig.start();
    rig.wait("the refusal", |rig| rig.guest("a")["reasons"].to_string().contains("model_not_available"));
    // A source that gives wrong bytes is no better.
    let mut wrong = bytes.clone();
    wrong[0] ^= 1;
    std::fs::write(&object, wrong).unwrap();
    rig.wait("the second refusal", |rig| rig.guest("a")["reasons"].to_string().contains("BLAKE3"));
    assert!(rig.processes().iter().all(|(_, kind)| kind != "qemu"));
    std::fs::write(&object, bytes).unwrap();
    rig.wait_serving();
}

#[test]
fn a_daemon_that_cannot_write_its_state_is_not_well_and_says_so() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    assert!(rig.get("/healthz").contains(" 200 "));
    let obstacle = rig.root.join("s/state.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    rig.wait("bad health", |rig| {
        let answer = rig.get("/healthz");
        answer.contains(" 503 ") && answer.contains("state_not_written")
    });
    assert!(rig.status().unwrap()["reasons"].to_string().contains("state_not_written"));
    std::fs::remove_dir(&obstacle).unwrap();
    rig.wait_serving();
    rig.wait("good health", |rig| rig.get("/healthz").contains(" 200 "));
    rig.assert_no_leak();
}

#[test]
fn memory_is_asked_for_once_the_one_before_is_gone() {
    let mut rig = Rig::new(&["a"]);
    rig.guests[0].more = "strategy = \"replace\"\n".to_owned();
    let meminfo = rig.root.join("tree/proc/meminfo");
    std::fs::create_dir_all(meminfo.parent().unwrap()).unwrap();
    let available = |mib: u64| std::fs::write(&meminfo, format!("MemAvailable: {} kB\n", mib * 1024)).unwrap();
    available(1600);
    rig.start();
    rig.wait_serving();
    // It has 1024 of them. Composing the next one counts those; starting it does not any more.
    available(576);
    rig.guests[0].context = 1024;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("the refusal at the start", |rig| {
        let reasons = rig.guest("a")["reasons"].to_string();
        reasons.contains("upgrade_rolled_back") && reasons.contains("576 MiB are available\"")
    });
    available(1600);
    rig.wait_serving();
    assert_eq!(rig.guest("a")["active"]["number"], 1);
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] == 3);
    rig.wait_serving();
    rig.assert_no_leak();
}

#[test]
fn a_damaged_model_is_found_removed_and_fetched_anew_and_a_good_one_stays() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let pack = std::fs::read_dir(rig.root.join("cache/packs")).unwrap().flatten().next().unwrap().path();
    let (disk, file) = (pack.join("disk"), || std::fs::metadata(pack.join("disk")).map_or(0, |disk| disk.ino()));
    let (bytes, first) = (std::fs::read(&disk).unwrap(), file());
    let fall = |rig: &Rig| {
        rig.say("manner", "halt 105");
        let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), Signal::SIGKILL).unwrap();
    };
    let log = |rig: &Rig| std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    // A guest can say what it likes: what is good stays.
    fall(&rig);
    rig.wait("the verification", |rig| log(rig).contains("it is as its root says"));
    assert_eq!(file(), first);
    rig.say("manner", "");
    rig.wait_serving();
    let writer = std::fs::OpenOptions::new().write(true).open(&disk).unwrap();
    writer.write_all_at(&[0xff; 8], u64::try_from(bytes.len()).unwrap() - 5_000).unwrap();
    // In use it cannot be removed by hand, and that is said.
    let cache = rig.root.join("cache");
    let arguments = ["cache", "verify", "--remove", "--dir", cache.to_str().unwrap()];
    let output = rig.agent(&arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && errors.contains("in use, not removed"), "{errors}");
    assert_eq!(file(), first);
    fall(&rig);
    rig.wait("the removal", |rig| log(rig).contains("damaged and was removed"));
    rig.say("manner", "");
    rig.wait_serving();
    assert_eq!(std::fs::read(&disk).unwrap(), bytes);
    assert_ne!(file(), first);
    assert_eq!(rig.guest("a")["active"]["number"], 1);
    rig.assert_no_leak();
}

#[test]
fn a_guest_whose_keeper_could_not_write_for_a_while_is_seen() {
    let mut rig = Rig::new(&["a"]);
    rig.say("manner", "wait");
    rig.start();
    rig.wait("half a boot", |rig| {
        rig.guest("a")["active"]["phases"].as_array().is_some_and(|phases| phases.len() == 4)
    });
    let run_dir = rig.root.join("s/guests/a/g1");
    let obstacle = run_dir.join("progress.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    rig.say("manner", "");
    // The guest serves, and nobody knows; the keeper says why.
    rig.wait("the keeper's word", |_| {
        let log = std::fs::read_to_string(run_dir.join("keeper.log")).unwrap();
        log.contains("\"event\":\"serving\"") && log.contains("tried again every second")
    });
    assert_eq!(rig.guest("a")["active"]["serving"], false);
    std::fs::remove_dir(&obstacle).unwrap();
    rig.wait_serving();
    assert_eq!((&rig.guest("a")["restarts"], &rig.guest("a")["active"]["attempt"]), (&0.into(), &1.into()));
    rig.assert_no_leak();
}

#[test]
fn what_is_not_on_the_disk_is_not_acknowledged() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let obstacle = rig.root.join("s/state.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    for command in ["stop", "restart"] {
        let (exit, reasons) = rig.tell(&[command, "a"]);
        assert_eq!((exit, reasons[0]["code"].as_str()), (2, Some("state_not_written")), "{command}");
    }
    assert!(rig.serves("a"));
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(rig.tell(&["stop", "a"]).0, 0);
    // At once, and not with the next step.
    assert!(std::fs::read_to_string(rig.root.join("s/state.json")).unwrap().contains("\"stopped\":true"));
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait("the guest's end", |rig| rig.guest("a")["state"] == "stopped");
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait_serving();
}

#[test]
fn what_a_keeper_left_behind_is_found_behind_a_link() {
    let mut rig = Rig::new(&["a"]);
    // As a keeper's child has it: the run directory by its own name, and not by that of the link.
    let run_dir = rig.root.join("t/guests/a/g7");
    let mut left = std::process::Command::new("sleep").arg("600").env("CHRYSALIS_RUN_DIR", &run_dir).spawn().unwrap();
    let mut elsewhere =
        std::process::Command::new("sleep").arg("600").env("CHRYSALIS_RUN_DIR", "/nonexistent/g7").spawn().unwrap();
    rig.start();
    rig.wait_serving();
    let ended = left.try_wait().unwrap();
    let other = elsewhere.try_wait().unwrap();
    let _ = (left.kill(), elsewhere.kill(), left.wait(), elsewhere.wait());
    assert!(ended.is_some() && other.is_none());
}
