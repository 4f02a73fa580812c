// SPDX-License-Identifier: Apache-2.0
//! The image: how long it takes to build, how large it is, and how it boots on machines of several shapes.
//!
//! Built is `cpu`, the production image. Booted is `sim`, the same programs and kernel but for the quote device and one
//! timer: a production image halts on a machine without TDX.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::{Figure, Outcome};
use crate::demo::guest::{Guest, Launch};
use crate::demo::programs::Programs;
use crate::demo::report::Report;
use crate::demo::scene::{Machine, Purpose, Scene};
use crate::{process, workspace};

/// `cold`: build with an empty cache, which takes the whole machine for a quarter of an hour.
pub(super) fn run(cold: bool) -> anyhow::Result<Outcome> {
    let mut report = Report::new(true);
    let programs = Programs::build(&mut report)?;
    let scratch = tempfile::tempdir().context("temporary directory")?;
    let mut figures = Vec::new();
    let scene = Scene::prepare(&programs, &mut report, &MACHINES, Purpose::Answers)?;
    let counted = Booted::of(&programs, &scene, Machine::DEMO, Some(&counting_qemu(scratch.path())?))?;
    if let Some(reason) = &counted.ended {
        eprintln!("guest instructions were not counted: {reason}");
    } else {
        figures.push(Figure::plain("guest instructions, PID 1 to the key", counted.guest_instructions(), "G"));
    }
    let mut boots = Vec::new();
    for machine in MACHINES {
        let booted = Booted::of(&programs, &scene, machine, None)?;
        eprintln!("{} vCPUs, {} MiB: {}", machine.vcpus, machine.memory_mib, booted.line());
        if machine == Machine::DEMO {
            figures.extend(booted.figures());
        }
        boots.push(booted.document(machine));
    }
    // A cold build has a cache of its own; the warm one comes after it and uses the same.
    let cache = cold.then(|| scratch.path().join("cache"));
    if let Some(cache) = &cache {
        fill(&programs, scratch.path(), cache)?;
    }
    let built = build(&programs, scratch.path(), cache.as_deref())?;
    if cold {
        figures.push(Figure::limit("cold build of cpu", built.seconds / 60.0, "min", 20.0));
    }
    let warm = build(&programs, scratch.path(), cache.as_deref())?;
    figures.push(Figure::limit("warm build of cpu", warm.seconds, "s", 15.0));
    figures.extend(sizes(&built.image)?);
    Ok(Outcome { figures, details: Map::from_iter([("boots".to_owned(), boots.into())]) })
}

/// Boots `sim` on each of the machines, until it serves or ends. A machine that is larger than this host's memory boots,
/// too: only what a guest touches is taken.
pub(super) fn boots(machines: &[Machine]) -> anyhow::Result<Vec<Value>> {
    let mut report = Report::new(true);
    let programs = Programs::build(&mut report)?;
    let scene = Scene::prepare(&programs, &mut report, machines, Purpose::Answers)?;
    let mut boots = Vec::new();
    for machine in machines {
        let booted = Booted::of(&programs, &scene, *machine, None)?;
        eprintln!("{} vCPUs, {} MiB: {}", machine.vcpus, machine.memory_mib, booted.line());
        boots.push(booted.document(*machine));
    }
    Ok(boots)
}

/// A finished build.
struct Built {
    seconds: f64,
    image: Value,
}

fn build(programs: &Programs, scratch: &Path, cache: Option<&Path>) -> anyhow::Result<Built> {
    let mut command = programs.image(&workspace::root()?);
    command.args(["build", "--profile", "cpu", "--out"]).arg(scratch.join("cpu"));
    if let Some(cache) = cache {
        command.env("CHRYSALIS_CACHE", cache);
    }
    let started = Instant::now();
    let document = process::json_with_progress("image", &mut command)?;
    let image = document.get("image").cloned().context("image: no image")?;
    Ok(Built { seconds: started.elapsed().as_secs_f64(), image })
}

/// Fills an empty cache with what was fetched before: the network is not measured.
fn fill(programs: &Programs, scratch: &Path, cache: &Path) -> anyhow::Result<()> {
    let archive = scratch.join("inputs.tar");
    let root = workspace::root()?;
    let inputs = ["ovmf", "linux-source", "build-root", "Cargo.lock"];
    let mut export = programs.image(&root);
    export.args(["inputs", "export", "--out"]).arg(&archive).args(inputs);
    process::run("inputs export", export.stdout(Stdio::null()))?;
    let mut import = programs.image(&root);
    import.args(["inputs", "import"]).arg(&archive).args(inputs).env("CHRYSALIS_CACHE", cache);
    process::run("inputs import", import.stdout(Stdio::null()))
}

/// Kernel and initrd, with the engine and without.
fn sizes(image: &Value) -> anyhow::Result<Vec<Figure>> {
    let files = image.get("files").and_then(Value::as_array).context("image.json: no files")?;
    let size = |name: &str| {
        let file = files.iter().find(|file| file.get("name").and_then(Value::as_str) == Some(name));
        file.and_then(|f| f.get("size")).and_then(Value::as_u64).with_context(|| format!("image.json: no {name}"))
    };
    let initrd = image.get("initrd").and_then(Value::as_array).context("image.json: no initrd")?;
    let engine = initrd.iter().find(|entry| entry.get("path").and_then(Value::as_str) == Some(ENGINE));
    let engine = engine.and_then(|entry| entry.pointer("/node/size")).and_then(Value::as_u64).context("no engine")?;
    let (kernel, initrd) = (size("vmlinuz")?, size("initrd")?);
    let whole = kernel + initrd;
    Ok(vec![
        Figure::plain("kernel of cpu", mb(kernel), "MB"),
        Figure::limit("kernel and initrd of cpu, with engine", mb(whole), "MB", 30.0),
        Figure::limit("kernel and initrd of cpu, without engine", mb(whole.saturating_sub(engine)), "MB", 12.0),
    ])
}

/// A boot until the guest serves.
#[derive(Default)]
struct Booted {
    /// Processor time of QEMU in seconds when the host had heard of the end of a phase; phase and time.
    processor: Vec<(String, f64)>,
    /// Processor time inside the guest in microseconds, by phase.
    inside: Vec<(String, u64)>,
    /// Seconds from the start of QEMU until it served.
    wall: f64,
    /// Why it did not come so far.
    ended: Option<String>,
}

impl Booted {
    fn of(programs: &Programs, scene: &Scene, machine: Machine, qemu: Option<&Path>) -> anyhow::Result<Self> {
        let counted = if qemu.is_some() { "-counted" } else { "" };
        let name = format!("boot-{}-{}{counted}", machine.vcpus, machine.memory_mib);
        let mut guest = Guest::boot(programs, scene, Launch { image: &scene.image, machine, qemu }, &name, |_| Ok(()))?;
        let (mut booted, mut pid) = (Self::default(), 0);
        while let Some(event) = guest.event()? {
            let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |name: &str| event.get(name).and_then(Value::as_u64).unwrap_or_default();
            match text("event").as_str() {
                "started" => pid = number("qemu_pid"),
                "phase" => booted.processor.push((text("phase"), processor_seconds(pid)?)),
                "processor-time" => booted.inside.push((text("phase"), number("microseconds"))),
                "halted" => booted.ended = Some(format!("halted in {}: {}", text("phase"), text("name"))),
                "ended" => booted.ended = booted.ended.or(Some(text("reason"))),
                "serving" => {
                    booted.wall = guest.seconds();
                    break;
                }
                _ => (),
            }
            if booted.ended.is_some() {
                break;
            }
        }
        guest.stop()?;
        if booted.ended.is_none() && booted.wall == 0.0 {
            booted.ended = Some("the host agent ended without a word".to_owned());
        }
        Ok(booted)
    }

    fn at(&self, phase: &str) -> Option<f64> {
        self.processor.iter().find(|(name, _)| name == phase).map(|(_, seconds)| *seconds)
    }

    fn line(&self) -> String {
        let at = |phase| self.at(phase).map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1} CPU-s"));
        let served = self.ended.clone().unwrap_or_else(|| format!("served after {:.1} s", self.wall));
        format!("PID 1 by {}, key by {}, {served}", at(FIRST), at(KEY))
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        if let Some(first) = self.at(FIRST) {
            figures.push(Figure::limit("QEMU's start to PID 1, through firmware", first, "CPU-s", 6.0));
            if let Some(key) = self.at(KEY) {
                figures.push(Figure::plain("PID 1 to the key, all but model and engine", key - first, "CPU-s"));
            }
        }
        figures
    }

    /// The counting machine runs one instruction in a nanosecond.
    #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
    fn guest_instructions(&self) -> f64 {
        let until_key = self.inside.iter().take_while(|(phase, _)| !AFTER_KEY.contains(&phase.as_str()));
        until_key.map(|(_, microseconds)| *microseconds as f64 / 1e6).sum()
    }

    fn document(&self, machine: Machine) -> Value {
        let phases: Vec<_> =
            self.processor.iter().map(|(phase, s)| json!({"phase": phase, "processor_seconds": s})).collect();
        let serving = self.ended.is_none().then_some(self.wall);
        json!({
            "vcpus": machine.vcpus, "memory_mib": machine.memory_mib, "phases": phases,
            "serving_after_seconds": serving, "ended": self.ended,
        })
    }
}

/// Processor time that a process has used, all threads, in seconds (proc(5): fields 14 and 15 of stat).
fn processor_seconds(pid: u64) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("QEMU is gone")?;
    ticks(&stat).map(|ticks| ticks / TICKS_PER_SECOND).context("/proc/PID/stat: not of the known form")
}

fn ticks(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(field(11)? + field(12)?)
}

/// A QEMU whose clock is the number of instructions that it ran, on one thread.
fn counting_qemu(scratch: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;

    let path = scratch.join("qemu-counting");
    std::fs::write(&path, COUNTING_QEMU).context("script")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("script")?;
    Ok(path)
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const ENGINE: &str = "/bin/engine";
const MACHINES: [Machine; 8] = [
    Machine::DEMO,
    Machine { vcpus: 1, memory_mib: 1024 },
    Machine { vcpus: 4, memory_mib: 1024 },
    Machine { vcpus: 64, memory_mib: 1024 },
    Machine { vcpus: 2, memory_mib: 512 },
    Machine { vcpus: 2, memory_mib: 2048 },
    Machine { vcpus: 2, memory_mib: 4096 },
    Machine { vcpus: 2, memory_mib: 8192 },
];
/// The first phase whose end the host hears of.
const FIRST: &str = "mounts";
/// The last phase before the model.
const KEY: &str = "keys-closed";
const AFTER_KEY: [&str; 2] = ["model", "serve"];
/// `USER_HZ` of Linux on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;
const COUNTING_QEMU: &str = "#!/bin/sh
for word do
  shift
  [ \"$word\" = tcg,thread=multi ] && word=tcg,thread=single
  set -- \"$@\" \"$word\"
done
case \" $* \" in
*' --version '*) exec qemu-system-x86_64 \"$@\" ;;
*) exec qemu-system-x86_64 \"$@\" -icount shift=0 ;;
esac
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_name_does_not_move_the_fields() {
        let stat = "7 (qemu) 1 2) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10 0";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("7 (qemu"), None);
    }

    #[test]
    fn an_image_above_its_limit_misses() {
        let image = json!({
            "files": [{"name": "vmlinuz", "size": 3_000_000}, {"name": "initrd", "size": 28_000_000}],
            "initrd": [{"path": "/bin/engine", "node": {"size": 20_000_000}}],
        });
        let holds: Vec<_> = sizes(&image).unwrap().iter().map(Figure::holds).collect();
        assert_eq!(holds, [None, Some(false), Some(true)]);
        assert!(sizes(&json!({})).is_err());
    }

    #[test]
    fn instructions_end_with_the_key() {
        let inside = [("mounts", 1_000_000), ("keys-closed", 500_000), ("model", 9_000_000)];
        let inside = inside.map(|(phase, time)| (phase.to_owned(), time)).to_vec();
        assert!((Booted { inside, ..Booted::default() }.guest_instructions() - 1.5).abs() < 1e-9);
    }
}
