// SPDX-License-Identifier: Apache-2.0
//! What the host agent costs: `cargo xtask bench host`. Guests are stand-ins, which boot at once and use nothing; the
//! agent, its keepers and fronts, and the cache are the released program. The last line is one JSON document.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a bench fails loudly, and shows its figures with a few digits"
)]

#[path = "../../tests/rig/mod.rs"]
mod rig;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::{Key, KeyName, Labels, Limits};
use rig::{Rig, program};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let directory = arguments.iter().skip_while(|a| *a != "--directory").nth(1).map(PathBuf::from);
    let directory = directory.expect("host-bench --directory DIR [--quick]");
    let rounds = if quick { 3 } else { 11 };
    let mut figures = launches(rounds);
    figures.extend(idle(Duration::from_secs(if quick { 5 } else { 60 })));
    figures.extend(fills(&directory, if quick { 32 } else { 1024 }, if quick { 2 } else { 5 }));
    println!("{}", json!({ "figures": figures, "rounds": rounds, "guests": GUESTS, "quick": quick }));
}

/// From the start of the program to a guest that serves, by the agent and without it; in turns.
fn launches(rounds: usize) -> Vec<Value> {
    eprintln!("launches");
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let qemu = rig.guest("a")["active"]["qemu_pid"].as_u64().unwrap();
    let line = std::fs::read(format!("/proc/{qemu}/cmdline")).unwrap();
    let words: Vec<String> = line.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let start = words.iter().position(|word| word == "qemu").unwrap() + 1;
    let words: Vec<String> = words[start..].iter().filter(|word| !word.is_empty()).cloned().collect();
    let monitor = words.iter().find_map(|word| word.strip_prefix("unix:")?.split_once("/qmp.sock")).unwrap().0;
    let run_dir = PathBuf::from(monitor);
    let restarted = Instant::now();
    assert_eq!(rig.tell(&["restart", "a"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] != 1 && rig.serves("a"));
    let by_daemon = restarted.elapsed().as_secs_f64();
    // A copy of the run directory, so that nobody else works in it; its port is free when its guest is gone.
    rig.signal_daemon(nix::sys::signal::Signal::SIGKILL);
    for (pid, _) in rig.processes() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let current = run_dirs(&rig).into_iter().find(|path| path.join("launch.json").exists()).unwrap();
    let copy = rig.root.join("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["launch.json", "plan.json", "config.disk", "td-params.json"] {
        if current.join(name).exists() {
            std::fs::copy(current.join(name), copy.join(name)).unwrap();
        }
    }
    let (mut agent, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        agent.push(launch_by_agent(&rig, &copy));
        bare.push(launch_bare(&rig, &words, &run_dir, &copy));
    }
    let (agent, bare) = (median(agent) * 1e3, median(bare) * 1e3);
    vec![
        limit("launch by the agent, above a bare QEMU", agent - bare, "ms", 200.0),
        plain("bare start of the stand-in QEMU", bare, "ms"),
        plain("restart by the daemon, composed and verified anew", by_daemon * 1e3, "ms"),
    ]
}

fn run_dirs(rig: &Rig) -> Vec<PathBuf> {
    std::fs::read_dir(rig.root.join("s/guests/a")).unwrap().flatten().map(|entry| entry.path()).collect()
}

fn launch_by_agent(rig: &Rig, run_dir: &Path) -> f64 {
    let root = rig.root.display();
    let started = Instant::now();
    let mut child = Command::new(program("agent-under-test"))
        .args(["start", "--json", "--run-dir"])
        .arg(run_dir)
        .args(["--vhost-device-vsock", &format!("{root}/bin/vsock"), "--simulator", &format!("{root}/bin/simulator")])
        .args(["--simulator-pki", &root.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serving = lines.map_while(Result::ok).find(|line| line.contains("\"serving\""));
    let taken = started.elapsed().as_secs_f64();
    assert!(serving.is_some(), "the guest did not serve: see {}", run_dir.display());
    end(&mut child);
    taken
}

/// The same QEMU with the same arguments, in the copy: its monitor is told to go on, its status lines are read.
fn launch_bare(rig: &Rig, words: &[String], old: &Path, run_dir: &Path) -> f64 {
    let (from, to) = (old.to_str().unwrap(), run_dir.to_str().unwrap());
    let words: Vec<String> = words.iter().map(|word| word.replace(from, to)).collect();
    for name in ["qmp.sock", "vsock_7001"] {
        // Left by the round before.
        let _ = std::fs::remove_file(run_dir.join(name));
    }
    let status = UnixListener::bind(run_dir.join("vsock_7001")).unwrap();
    let started = Instant::now();
    let mut child = Command::new(rig.root.join("bin/qemu")).args(words).stdin(Stdio::null()).spawn().unwrap();
    let monitor = loop {
        if let Ok(stream) = UnixStream::connect(run_dir.join("qmp.sock")) {
            break stream;
        }
        assert!(child.try_wait().unwrap().is_none(), "the stand-in ended");
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut monitor = BufReader::new(monitor);
    for command in ["", "{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"cont\"}"] {
        monitor.get_mut().write_all(command.as_bytes()).unwrap();
        monitor.read_line(&mut String::new()).unwrap();
    }
    let (stream, _) = status.accept().unwrap();
    let mut bytes = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("1 11 ") {
        line.clear();
        assert_ne!(bytes.read_line(&mut line).unwrap(), 0);
    }
    let taken = started.elapsed().as_secs_f64();
    end(&mut child);
    taken
}

/// The agent with guests that do nothing.
fn idle(watched: Duration) -> Vec<Value> {
    eprintln!("{GUESTS} idle guests for {} s", watched.as_secs());
    let names: Vec<String> = (0..GUESTS).map(|number| format!("g{number}")).collect();
    let mut rig = Rig::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    rig.start();
    rig.wait_serving();
    std::thread::sleep(Duration::from_secs(3));
    let processes = |kinds: &[&str]| {
        let found = rig.processes().into_iter().filter(|(_, kind)| kinds.contains(&kind.as_str()));
        found.map(|(pid, _)| pid).collect::<Vec<i32>>()
    };
    let (daemon, others) = (processes(&["agent"]), processes(&["start", "front"]));
    assert_eq!((daemon.len(), others.len()), (1, 2 * GUESTS));
    let time = |all: &[i32]| all.iter().map(|pid| ticks(*pid)).sum::<f64>() / TICKS_PER_SECOND;
    let (before, started) = ((time(&daemon), time(&others)), Instant::now());
    std::thread::sleep(watched);
    let seconds = started.elapsed().as_secs_f64();
    let (daemon_time, others_time) = (time(&daemon) - before.0, time(&others) - before.1);
    let memory = |all: &[i32]| all.iter().map(|pid| proportional_kib(*pid)).sum::<f64>() / 1024.0;
    vec![
        limit("daemon with 8 idle guests, resident", resident_kib(daemon[0]) / 1024.0, "MiB", 30.0),
        limit("daemon with 8 idle guests, processor", 100.0 * daemon_time / seconds, "%", 0.5),
        plain("its 8 keepers and 8 fronts, proportional memory", memory(&others), "MiB"),
        plain("its 8 keepers and 8 fronts, processor", 100.0 * others_time / seconds, "%"),
    ]
}

/// Filling the cache from a directory, hashed on the way and synced, against `dd` of the same bytes, synced; in turns.
fn fills(directory: &Path, mib: usize, rounds: usize) -> Vec<Value> {
    eprintln!("cache fills of {mib} MiB");
    let place = tempfile::Builder::new().prefix("host-bench").tempdir_in(directory).unwrap();
    let (files, pack) = (place.path().join("files"), place.path().join("pack"));
    std::fs::create_dir(&files).unwrap();
    let mut weights = std::fs::File::create(files.join("weights.gguf")).unwrap();
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(u64::try_from(mib).unwrap() << 20);
    std::io::copy(&mut random, &mut weights).unwrap();
    drop(weights);
    let labels = Labels { name: "m", revision: "1", key: KeyName { id: "k".to_owned(), version: 1 } };
    model::create(&labels, &files, &Key::new(&[7; 32]), &pack, Limits::default(), &|_| ()).unwrap();
    std::fs::remove_dir_all(&files).unwrap();
    let root = model_cache::root_of(model::Source::index(&model::Directory::open(&pack).unwrap())).unwrap();
    let (mut filled, mut copied) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let cache = place.path().join("cache");
        let mut fill = Command::new(program("agent-under-test"));
        fill.args(["cache", "fetch", "--root", &root.to_string(), "--json", "--from"]).arg(&pack);
        fill.arg("--dir").arg(&cache);
        filled.push(timed(&mut fill));
        std::fs::remove_dir_all(&cache).unwrap();
        let copy = place.path().join("copy");
        let mut dd = Command::new("sh");
        let script = "for object in \"$1\"/objects/* \"$1\"/pack.json; do cat \"$object\"; done | dd of=\"$2\" bs=1M iflag=fullblock conv=fsync status=none";
        copied.push(timed(dd.args(["-c", script, "sh"]).arg(&pack).arg(&copy)));
        std::fs::remove_file(&copy).unwrap();
    }
    let megabytes = mib as f64 * 1.048_576;
    let (fill, dd) = (megabytes / median(filled), megabytes / median(copied));
    vec![json!({
        "name": "filling the model cache, verified", "value": fill, "unit": "MB/s",
        "against": format!("dd with fsync of the same bytes: {dd:.0} MB/s"), "ratio": dd / fill, "goal": 1.25,
    })]
}

fn timed(command: &mut Command) -> f64 {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    started.elapsed().as_secs_f64()
}

fn end(child: &mut Child) {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    child.wait().unwrap();
}

/// User and system time of all threads (proc(5): fields 14 and 15 of stat).
fn ticks(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}

fn resident_kib(pid: i32) -> f64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Shared pages are shared out among those who have them.
fn proportional_kib(pid: i32) -> f64 {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn field(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn plain(name: &str, value: f64, unit: &str) -> Value {
    json!({ "name": name, "value": value, "unit": unit, "against": "", "ratio": null, "goal": null })
}

fn limit(name: &str, value: f64, unit: &str, max: f64) -> Value {
    json!({
        "name": name, "value": value, "unit": unit, "against": format!("{max} {unit}"), "ratio": value / max, "goal": 1.0,
    })
}

const GUESTS: usize = 8;
/// `USER_HZ` of Linux on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;
