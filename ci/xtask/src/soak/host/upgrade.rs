// SPDX-License-Identifier: Apache-2.0
//! An upgrade, a release that does not come up, and the way back, while clients of both guests ask without pause.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use super::client::{Endpoint, Proxy};
use super::kills::CONVERGENCE;
use super::releases;
use super::rig::{self, Declared, GUESTS, Rig};

/// A request's end.
#[derive(Debug, Clone, Serialize)]
struct Request {
    guest: &'static str,
    /// The step that it began in.
    step: usize,
    seconds: f64,
    failure: Option<String>,
}

/// One change of the declaration.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    seconds: f64,
    answered: usize,
    /// All of them, in the order of their ends.
    failed: Vec<Request>,
    slowest_seconds: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Upgraded {
    clients: usize,
    steps: Vec<Step>,
    /// Looks at which two guests were being exchanged.
    pub(super) at_once: u32,
    /// What is not as it should be.
    pub(super) wrong: Vec<String>,
}

impl Upgraded {
    /// Requests that failed, of all that were asked.
    pub(super) fn failed(&self) -> (usize, usize) {
        let failed: usize = self.steps.iter().map(|step| step.failed.len()).sum();
        (failed, failed + self.steps.iter().map(|step| step.answered).sum::<usize>())
    }
}

/// Runs it. Both guests serve the first release before, and after.
pub(super) fn run(rig: &mut Rig<'_>) -> anyhow::Result<Upgraded> {
    let (programs, scene) = (rig.programs, rig.scene);
    let first = releases::first(scene);
    let second = releases::publish(programs, scene, "second")?;
    // The host believes it, the attestation service does not know it: its guests get no key, and halt.
    let broken = releases::publish(programs, scene, "broken")?;
    scene.import_release(programs, &second.bundle)?;
    scene.write_client_policy(&[first.bundle.clone(), second.bundle.clone()])?;
    let proxies = GUESTS.map(|guest| Proxy::start(rig, guest, &scene.directory().join(format!("load-{guest}"))));
    let proxies = proxies.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let endpoints: Vec<Endpoint> = proxies.iter().map(|proxy| proxy.endpoint.clone()).collect();
    let load = Load::default();
    let done = std::thread::scope(|scope| {
        for (guest, endpoint) in GUESTS.iter().zip(&endpoints) {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.ask(guest, endpoint));
            }
        }
        let done = steps(rig, &load, &endpoints, [first, second, broken]);
        load.over.store(true, Ordering::Relaxed);
        done
    });
    drop(proxies);
    for guest in GUESTS {
        std::fs::remove_dir_all(scene.directory().join(format!("load-{guest}"))).context("a proxy's directory")?;
    }
    let Done { times, at_once, wrong } = done?;
    let requests = load.requests.into_inner().unwrap_or_else(PoisonError::into_inner);
    let steps = times.into_iter().enumerate().map(|(place, (name, seconds))| {
        let own: Vec<&Request> = requests.iter().filter(|request| request.step == place).collect();
        let failed: Vec<Request> =
            own.iter().filter(|request| request.failure.is_some()).map(|r| (*r).clone()).collect();
        let slowest_seconds = own.iter().map(|request| request.seconds).fold(0.0, f64::max);
        Step { name, seconds, answered: own.len() - failed.len(), failed, slowest_seconds }
    });
    Ok(Upgraded { clients: CLIENTS * GUESTS.len(), steps: steps.collect(), at_once, wrong })
}

/// Clients that ask, one request after another.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    step: AtomicUsize,
    requests: Mutex<Vec<Request>>,
}

impl Load {
    fn ask(&self, guest: &'static str, endpoint: &Endpoint) {
        while !self.over.load(Ordering::Relaxed) {
            let (step, start) = (self.step.load(Ordering::Relaxed), Instant::now());
            let failure = endpoint.ask().err();
            if failure.is_some() {
                // Nobody learns more from many failures in a row.
                std::thread::sleep(Duration::from_millis(500));
            }
            let request = Request { guest, step, seconds: start.elapsed().as_secs_f64(), failure };
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        }
    }

    fn answered(&self, guest: &str) -> usize {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|request| request.guest == guest && request.failure.is_none()).count()
    }
}

struct Done {
    times: Vec<(&'static str, f64)>,
    at_once: u32,
    wrong: Vec<String>,
}

fn steps(rig: &mut Rig<'_>, load: &Load, endpoints: &[Endpoint], releases: [Declared; 3]) -> anyhow::Result<Done> {
    let [first, second, broken] = releases;
    let mut done = Done { times: Vec::new(), at_once: 0, wrong: Vec::new() };
    let one_release = || -> anyhow::Result<BTreeSet<String>> { endpoints.iter().map(Endpoint::release).collect() };
    let mut step = |rig: &mut Rig<'_>, name, declared: Option<Declared>, is_done: &dyn Fn(&Value) -> bool| {
        let (start, place) = (Instant::now(), done.times.len());
        load.step.store(place, Ordering::Relaxed);
        eprintln!("under load: {name}");
        let before = GUESTS.map(|guest| load.answered(guest));
        if let Some(declared) = declared {
            rig.declare(declared)?;
        }
        // Until it is done, and each guest has answered something since.
        loop {
            rig.pause(Duration::from_millis(200))?;
            rig.check_daemon()?;
            let status = rig.status()?.unwrap_or_default();
            let exchanged = GUESTS.iter().filter(|name| rig::guest(&status, name).is_some_and(is_exchanged)).count();
            done.at_once += u32::from(exchanged > 1);
            let answered = GUESTS.iter().zip(before).all(|(guest, before)| load.answered(guest) > before);
            if answered && is_done(&status) {
                break;
            }
            anyhow::ensure!(start.elapsed() < CONVERGENCE * 2, "{name} was not done in time: {status}");
        }
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("under load: {name}: {seconds:.1} s");
        done.times.push((name, seconds));
        anyhow::Ok(())
    };
    step(rig, "no change", None, &rig::all_serve)?;
    let old = one_release()?;
    let numbers = generations(rig)?;
    let moved = |status: &Value, from: &[u64]| {
        rig::all_serve(status) && GUESTS.iter().zip(from).all(|(guest, from)| generation(status, guest) > Some(*from))
    };
    step(rig, "upgrade", Some(second.clone()), &|status| moved(status, &numbers))?;
    // Each has answered once more, over a connection to the new generation.
    step(rig, "after the upgrade", None, &rig::all_serve)?;
    let new = one_release()?;
    let upgraded = generations(rig)?;
    step(rig, "a release that does not come up", Some(broken), &|status| {
        GUESTS.iter().zip(&upgraded).all(|(name, number)| {
            let guest = rig::guest(status, name);
            generation(status, name) == Some(*number) && guest.is_some_and(is_rolled_back)
        })
    })?;
    step(rig, "its declaration taken back", Some(second), &rig::all_serve)?;
    let kept = one_release()?;
    let stayed = generations(rig)?;
    step(rig, "back to the first release", Some(first), &|status| moved(status, &stayed))?;
    step(rig, "after the way back", None, &rig::all_serve)?;
    let back = one_release()?;
    let sets =
        [("before", &old), ("after the upgrade", &new), ("after the rollback", &kept), ("on the way back", &back)];
    for (when, releases) in sets {
        if releases.len() != 1 {
            done.wrong.push(format!("{when} clients saw the releases {releases:?}"));
        }
    }
    if old == new || new != kept || back != old || upgraded != stayed {
        done.wrong.push(format!("releases {old:?}, {new:?}, {kept:?}, {back:?}; generations {upgraded:?}, {stayed:?}"));
    }
    Ok(done)
}

/// Whether a new generation runs beside the one that serves.
fn is_exchanged(guest: &Value) -> bool {
    guest.pointer("/candidate/alive").and_then(Value::as_bool) == Some(true)
}

/// Whether an upgrade was given up, and the generation before serves alone.
fn is_rolled_back(guest: &Value) -> bool {
    let reasons = guest.get("reasons").and_then(Value::as_array);
    let says =
        |code: &str| reasons.is_some_and(|all| all.iter().any(|r| r.get("code").and_then(Value::as_str) == Some(code)));
    let serves = guest.pointer("/active/serving").and_then(Value::as_bool) == Some(true);
    let alone = guest.get("candidate").is_some_and(Value::is_null)
        && guest.get("retiring").and_then(Value::as_array).is_some_and(Vec::is_empty);
    serves && alone && says("upgrade_rolled_back")
}

fn generation(status: &Value, guest: &str) -> Option<u64> {
    rig::guest(status, guest)?.pointer("/active/number")?.as_u64()
}

fn generations(rig: &Rig<'_>) -> anyhow::Result<Vec<u64>> {
    let status = rig.status()?.context("the daemon does not answer")?;
    GUESTS.iter().map(|guest| generation(&status, guest).context("a guest without generation")).collect()
}

/// Clients of each guest.
const CLIENTS: usize = 2;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollback_is_over_when_the_old_generation_serves_alone() {
        let reason = json!({ "code": "upgrade_rolled_back" });
        let guest = json!({ "active": { "serving": true }, "candidate": null, "retiring": [], "reasons": [reason] });
        assert!(is_rolled_back(&guest) && !is_exchanged(&guest));
        for (field, value) in [
            ("active", json!({ "serving": false })),
            ("candidate", json!({ "alive": true })),
            ("retiring", json!([3])),
            ("reasons", json!([])),
        ] {
            let mut other = guest.clone();
            other[field] = value;
            assert!(!is_rolled_back(&other), "{field}");
        }
        assert!(is_exchanged(&json!({ "candidate": { "alive": true } })));
    }

    #[test]
    fn failures_are_counted_in_all_steps() {
        let request = Request { guest: "one", step: 0, seconds: 1.0, failure: Some("x".to_owned()) };
        let step = |failed| Step { name: "", seconds: 0.0, answered: 4, failed, slowest_seconds: 0.0 };
        let steps = vec![step(vec![request]), step(Vec::new())];
        assert_eq!(Upgraded { clients: 1, steps, at_once: 0, wrong: Vec::new() }.failed(), (1, 9));
    }
}
