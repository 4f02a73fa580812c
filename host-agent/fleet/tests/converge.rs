// SPDX-License-Identifier: Apache-2.0
//! Whatever dies, whenever: the host comes to what was declared, and nothing else is left on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use fleet::{Action, Backoff, Declared, End, FleetState, FrontSeen, Observed, Pace, Seen, StepInput, Strategy};
use types::{Document as _, Refusal};
use world::{World, declared, name, spec};

fn settle(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.step(0);
    }
}

fn two_guests(world: &mut World, text: &str) {
    world.declared.insert(name("a"), declared(text, Strategy::Beside));
    world.declared.insert(name("b"), declared(text, Strategy::Replace));
}

#[test]
fn guests_come_up_and_go() {
    let mut world = World::new(1);
    two_guests(&mut world, "one");
    settle(&mut world, 20);
    world.assert_converged(&name("a"), spec("one"));
    world.assert_converged(&name("b"), spec("one"));
    assert!(world.step(0).is_empty(), "nothing is left to do");
    world.declared.remove(&name("a"));
    settle(&mut world, 20);
    assert!(!world.hosts.contains_key(&name("a")) && !world.state.guests.contains_key(&name("a")));
    world.assert_converged(&name("b"), spec("one"));
}

#[test]
fn random_deaths_and_crashes_converge() {
    for seed in 1..200 {
        let mut world = World::new(seed);
        two_guests(&mut world, "one");
        for round in 0..60 {
            let crash = world.random(5) == 0;
            let before = world.state.clone();
            let lost = if crash { usize::try_from(world.random(3)).unwrap() } else { 0 };
            world.step(lost);
            if world.random(20) == 0 {
                // A crash before the state was written: its actions were not done either, but older ones were.
                world.state = before;
            }
            if world.random(2) == 0 {
                world.kill_something();
            }
            if round == 20 {
                two_guests(&mut world, "two");
            }
            if round == 40 && world.random(2) == 0 {
                let text = FleetState::from_canonical(&world.state.to_canonical().unwrap()).unwrap();
                world.state = text;
            }
        }
        world.ms += 10_000_000;
        settle(&mut world, 60);
        for guest in ["a", "b"] {
            let guest = name(guest);
            // A candidate that was killed while it came up counts as one that failed: then the old one goes on.
            let given_up = world.state.guests[&guest].rolled_back.clone();
            world.assert_converged(&guest, spec(if given_up.is_some() { "one" } else { "two" }));
            if let Some(past) = given_up {
                assert!(world.died.contains(&(guest, past.generation)), "seed {seed}: nothing of it died: {past:?}");
            }
        }
    }
}

#[test]
fn clients_are_sent_somewhere_throughout_an_upgrade_beside() {
    let mut world = World::new(3);
    world.declared.insert(name("a"), declared("one", Strategy::Beside));
    settle(&mut world, 20);
    world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().connections = 3;
    world.declared.insert(name("a"), declared("two", Strategy::Beside));
    for _ in 0..30 {
        world.step(0);
        let host = &world.hosts[&name("a")];
        let (number, _) = host.target.expect("clients always have somewhere to go");
        assert!(world.serving(&name("a")).iter().any(|(serving, _)| *serving == number));
        let old = host.runs.get(&1);
        assert!(old.is_none_or(|run| run.alive || run.connections == 0), "stopped under its clients");
    }
    world.assert_converged(&name("a"), spec("two"));
}

#[test]
fn what_is_replaced_is_told_to_finish() {
    for strategy in [Strategy::Beside, Strategy::Replace] {
        let mut world = World::new(4);
        // Only what the guest does at the host's word ends so many connections before the deadline.
        world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("one", strategy) });
        settle(&mut world, 20);
        world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().connections = 1_000_000;
        world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("two", strategy) });
        settle(&mut world, 60);
        world.assert_converged(&name("a"), spec("two"));
    }
    // As when it is stopped, and when it is not declared any more.
    for stop in [true, false] {
        let mut world = World::new(4);
        world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("one", Strategy::Beside) });
        settle(&mut world, 20);
        world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().connections = 1_000_000;
        if stop {
            assert!(world.state.stop(&name("a")));
        } else {
            world.declared.remove(&name("a"));
        }
        settle(&mut world, 60);
        assert!(world.hosts.get(&name("a")).is_none_or(|host| host.runs.is_empty()));
    }
}

/// A guest that was told to finish cannot be told otherwise: who changes his mind gets it started anew.
#[test]
fn what_was_told_to_finish_takes_clients_only_after_a_new_start() {
    let mut world = World::new(5);
    world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("one", Strategy::Replace) });
    settle(&mut world, 20);
    world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().connections = u64::MAX;
    world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("two", Strategy::Replace) });
    while !world.hosts[&name("a")].runs[&1].told {
        world.step(0);
    }
    world.declared.insert(name("a"), Declared { drain_ms: 1_000_000, ..declared("one", Strategy::Replace) });
    // The host of these tests panics when clients are sent to a guest that does not let them in.
    settle(&mut world, 100);
    world.assert_converged(&name("a"), spec("one"));
    let guest = &world.state.guests[&name("a")];
    let active = guest.active.as_ref().unwrap();
    assert_eq!((active.number, active.attempt, active.failures), (1, 2, 0));
}

#[test]
fn the_drain_deadline_ends_connections_that_do_not_end() {
    let mut world = World::new(4);
    world.declared.insert(name("a"), declared("one", Strategy::Beside));
    settle(&mut world, 20);
    // More than end in time, though it was told.
    world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().connections = u64::MAX;
    world.declared.insert(name("a"), declared("two", Strategy::Beside));
    settle(&mut world, 30);
    world.assert_converged(&name("a"), spec("two"));
}

#[test]
fn replacing_never_runs_two_at_once() {
    let mut world = World::new(5);
    world.declared.insert(name("a"), declared("one", Strategy::Replace));
    settle(&mut world, 20);
    world.declared.insert(name("a"), declared("two", Strategy::Replace));
    for _ in 0..40 {
        world.step(0);
        assert!(world.hosts[&name("a")].runs.values().filter(|run| run.alive).count() <= 1);
    }
    world.assert_converged(&name("a"), spec("two"));
}

#[test]
fn a_candidate_that_halts_is_rolled_back_and_not_tried_again() {
    for strategy in [Strategy::Beside, Strategy::Replace] {
        let mut world = World::new(6);
        world.declared.insert(name("a"), declared("one", strategy));
        settle(&mut world, 20);
        world.bad.push(spec("two"));
        world.declared.insert(name("a"), declared("two", strategy));
        settle(&mut world, 60);
        world.assert_converged(&name("a"), spec("one"));
        let past = world.state.guests[&name("a")].rolled_back.clone().unwrap();
        assert_eq!(past.spec, spec("two"));
        assert!(matches!(past.end, End::Halted { code: 105, .. }), "{past:?}");
        // Asked for again, after it was mended.
        world.bad.clear();
        assert!(world.state.restart(&name("a")));
        settle(&mut world, 40);
        world.assert_converged(&name("a"), spec("two"));
    }
}

#[test]
fn a_refused_declaration_changes_nothing() {
    let mut world = World::new(7);
    world.declared.insert(name("a"), declared("one", Strategy::Beside));
    settle(&mut world, 20);
    let reasons = vec![Refusal::new("release_image_mismatch", "guests.a.release", "x", "y")];
    let refused = Declared { spec: Err(reasons), ..declared("one", Strategy::Beside) };
    world.declared.insert(name("a"), refused);
    assert!(world.step(0).is_empty());
    // A guest that falls is still brought back as it was.
    world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap().alive = false;
    settle(&mut world, 30);
    world.assert_converged(&name("a"), spec("one"));
}

#[test]
fn what_cannot_be_prepared_waits_beside_the_old_and_holds_nobody_up() {
    let mut world = World::new(8);
    two_guests(&mut world, "one");
    settle(&mut world, 20);
    world.unpreparable.push(spec("two"));
    world.declared.insert(name("a"), declared("two", Strategy::Replace));
    world.declared.insert(name("b"), declared("three", Strategy::Replace));
    settle(&mut world, 40);
    assert_eq!(world.serving(&name("a")), [(1, spec("one"))]);
    assert_eq!(world.serving(&name("b")), [(2, spec("three"))]);
    world.unpreparable.clear();
    settle(&mut world, 300);
    world.assert_converged(&name("a"), spec("two"));
}

#[test]
fn one_guest_at_a_time_is_exchanged() {
    let mut world = World::new(9);
    for guest in ["a", "b", "c"] {
        world.declared.insert(name(guest), declared("one", Strategy::Beside));
    }
    settle(&mut world, 20);
    for guest in ["a", "b", "c"] {
        world.declared.insert(name(guest), declared("two", Strategy::Beside));
    }
    for _ in 0..60 {
        world.step(0);
        let coming = world.hosts.values().filter(|host| {
            host.runs.values().any(|run| run.alive && run.boots_for > 0 && run.spec == Some(spec("two")))
        });
        assert!(coming.count() <= 1);
    }
    for guest in ["a", "b", "c"] {
        world.assert_converged(&name(guest), spec("two"));
    }
}

#[test]
fn stopped_guests_stay_stopped_until_they_are_started() {
    let mut world = World::new(10);
    two_guests(&mut world, "one");
    settle(&mut world, 20);
    assert!(world.state.stop(&name("a")));
    assert!(!world.state.stop(&name("zzz")));
    settle(&mut world, 20);
    assert!(world.hosts[&name("a")].runs.is_empty() && !world.hosts[&name("a")].front);
    assert!(world.step(0).is_empty());
    assert!(world.state.restart(&name("a")));
    settle(&mut world, 20);
    world.assert_converged(&name("a"), spec("one"));
}

#[test]
fn a_lost_state_and_a_reboot_leave_no_strays() {
    let mut world = World::new(11);
    two_guests(&mut world, "one");
    settle(&mut world, 20);
    world.state = FleetState::new("boot");
    settle(&mut world, 40);
    world.assert_converged(&name("a"), spec("one"));
    assert!(world.state.guests[&name("a")].last_generation >= 2, "numbers are not used twice");
    for host in world.hosts.values_mut() {
        host.runs.values_mut().for_each(|run| run.alive = false);
        host.front = false;
    }
    world.ms = 5;
    world.state.enter_boot("another boot");
    settle(&mut world, 20);
    world.assert_converged(&name("a"), spec("one"));
    world.assert_converged(&name("b"), spec("one"));
}

#[test]
fn attempts_are_spaced_and_lasting_faults_are_not_hurried() {
    let mut world = World::new(12);
    world.declared.insert(name("a"), declared("one", Strategy::Beside));
    world.bad.push(spec("one"));
    settle(&mut world, 3_600);
    let attempts = world.state.guests[&name("a")].active.as_ref().unwrap().attempt;
    assert!((5..=8).contains(&attempts), "{attempts} attempts in an hour");
    assert_eq!(End::Halted { phase: types::EventName::Model, code: 105 }.pace(), Pace::Slow);
}

#[test]
fn a_front_that_does_not_answer_is_not_taken_for_idle() {
    let mut state = FleetState::new("boot");
    let mut declared_guests = std::collections::BTreeMap::new();
    declared_guests.insert(name("a"), declared("one", Strategy::Beside));
    let serving = |number| Seen {
        directory: true,
        composed: true,
        alive: true,
        progress: fleet::Progress::Serving(world::address(number)),
        connections: None,
        ..Seen::default()
    };
    let front = FrontSeen { alive: true, held_back: false, target: None, answered: false };
    let mut step = |declared: &std::collections::BTreeMap<_, Declared>, ms, generations| {
        let observed = std::iter::once((name("a"), Observed { generations, front: front.clone() })).collect();
        let now = fleet::Now { ms, jitter: 0, backoff: Backoff::default() };
        state.step(&StepInput { declared, observed: &observed, now })
    };
    step(&declared_guests, 1, std::collections::BTreeMap::new());
    step(&declared_guests, 2, std::iter::once((1, serving(1))).collect());
    declared_guests.clear();
    let during = step(&declared_guests, 3, std::iter::once((1, serving(1))).collect());
    assert!(during.is_empty(), "{during:?}");
    let after = step(&declared_guests, 5_003, std::iter::once((1, serving(1))).collect());
    assert!(after.contains(&Action::Stop { guest: name("a"), generation: 1 }), "{after:?}");
}

#[test]
fn whatever_code_a_guest_halts_with_the_state_can_be_written() {
    let mut world = World::new(13);
    world.declared.insert(name("a"), declared("one", Strategy::Beside));
    settle(&mut world, 20);
    for code in [0, 9_999, u32::MAX] {
        let run = world.hosts.get_mut(&name("a")).unwrap().runs.get_mut(&1).unwrap();
        (run.alive, run.end) = (false, Some(End::Halted { phase: types::EventName::Keys, code }));
        world.step(0);
        let written = world.state.to_canonical().unwrap();
        assert_eq!(FleetState::from_canonical(&written).unwrap(), world.state, "{code}");
        world.ms += 10_000_000;
        settle(&mut world, 20);
    }
    world.assert_converged(&name("a"), spec("one"));
}

#[test]
fn a_start_that_a_crash_swallowed_is_made_again_and_is_no_failure() {
    for strategy in [Strategy::Beside, Strategy::Replace] {
        let mut world = World::new(14);
        world.declared.insert(name("a"), declared("one", strategy));
        settle(&mut world, 20);
        world.declared.insert(name("a"), declared("two", strategy));
        for _ in 0..30 {
            // Written down, and nothing of it done.
            let starts = |action: &Action| matches!(action, Action::Start { generation: 2, .. });
            let before = (world.hosts.clone(), world.state.clone());
            if world.step(0).iter().any(starts) {
                world.hosts = before.0;
                assert_eq!(world.state.guests[&name("a")].candidate.as_ref().unwrap().attempt, 1);
                break;
            }
        }
        settle(&mut world, 20);
        world.assert_converged(&name("a"), spec("two"));
        let guest = &world.state.guests[&name("a")];
        assert!(guest.rolled_back.is_none());
        let active = guest.active.as_ref().unwrap();
        assert_eq!((active.attempt, active.failures), (1, 0));
    }
}

#[test]
fn restart_composes_a_guest_anew_whether_it_runs_or_not() {
    for strategy in [Strategy::Beside, Strategy::Replace] {
        let mut world = World::new(15);
        world.bad.push(spec("one"));
        world.declared.insert(name("a"), declared("one", strategy));
        settle(&mut world, 20);
        let active = world.state.guests[&name("a")].active.clone().unwrap();
        assert!(active.number == 1 && !active.running && active.failures > 0, "{active:?}");
        assert!(world.state.restart(&name("a")));
        settle(&mut world, 3);
        assert_eq!(world.state.guests[&name("a")].active.as_ref().unwrap().number, 2);
        assert!(!world.hosts[&name("a")].runs.contains_key(&1), "what was damaged is gone");
        world.bad.clear();
        world.ms += 10_000_000;
        settle(&mut world, 20);
        world.assert_converged(&name("a"), spec("one"));
        assert!(world.state.restart(&name("a")));
        settle(&mut world, 30);
        world.assert_converged(&name("a"), spec("one"));
        assert_eq!(world.state.guests[&name("a")].active.as_ref().unwrap().number, 3);
    }
}
