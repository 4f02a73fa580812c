// SPDX-License-Identifier: Apache-2.0
//! The step from state, declaration and observation to actions.

use std::collections::{BTreeMap, BTreeSet};

use crate::backoff::Backoff;
use crate::drive::{Need, drive};
use crate::name::GuestName;
use crate::observed::{Action, Declared, Observed, Progress, Seen, Strategy};
use crate::state::{FleetState, Generation, GuestState, RolledBack};

/// The moment of a step.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Milliseconds since boot.
    pub ms: u64,
    /// Any number; spreads delays.
    pub jitter: u64,
    /// Delays.
    pub backoff: Backoff,
}

/// What a step looks at.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// What is wanted. A guest that is not in it is drained and removed.
    pub declared: &'a BTreeMap<GuestName, Declared>,
    /// What is there.
    pub observed: &'a BTreeMap<GuestName, Observed>,
    /// When.
    pub now: Now,
}

impl FleetState {
    /// One step. Write the state down before the actions run.
    pub fn step(&mut self, input: &StepInput<'_>) -> Vec<Action> {
        let nothing = Observed::default();
        let known = self.guests.keys().chain(input.declared.keys()).chain(input.observed.keys());
        let names: BTreeSet<GuestName> = known.cloned().collect();
        let mut actions = Vec::new();
        for name in names {
            let others_upgrade = self.guests.iter().any(|(other, guest)| *other != name && guest.is_upgrading());
            let guest = self.guests.entry(name.clone()).or_default();
            let declared = input.declared.get(&name);
            let observed = input.observed.get(&name).unwrap_or(&nothing);
            let mut step =
                GuestStep { name: &name, guest, observed, now: input.now, others_upgrade, actions: Vec::new() };
            step.run(declared);
            let done = std::mem::take(&mut step.actions);
            if declared.is_none() && done.is_empty() && guest.is_gone() && !observed.front.alive {
                self.guests.remove(&name);
                actions.push(Action::Forget { guest: name });
            }
            actions.extend(done);
        }
        actions
    }
}

impl GuestState {
    /// Whether one generation of it is being exchanged for another right now.
    fn is_upgrading(&self) -> bool {
        let yielding = self.active.as_ref().is_some_and(|active| active.yielding_since.is_some());
        yielding || self.candidate.as_ref().is_some_and(|candidate| candidate.attempt > 0)
    }
}

struct GuestStep<'a> {
    name: &'a GuestName,
    guest: &'a mut GuestState,
    observed: &'a Observed,
    now: Now,
    others_upgrade: bool,
    actions: Vec<Action>,
}

impl GuestStep<'_> {
    fn run(&mut self, declared: Option<&Declared>) {
        if let Some(declared) = declared {
            self.guest.drain_ms = declared.drain_ms;
        }
        // A state that was lost gives no number out twice.
        let seen = self.observed.generations.keys().next_back().copied().unwrap_or(0);
        self.guest.last_generation = self.guest.last_generation.max(seen);
        let wanted = declared.filter(|_| !self.guest.stopped);
        match wanted {
            Some(declared) => {
                self.choose(declared);
                self.drive_candidate(declared.strategy);
                self.drive_active(declared.strategy);
            }
            None => self.wind_down(),
        }
        self.drive_retiring();
        self.clear_strays();
        self.drive_front(wanted.is_some());
    }

    fn wind_down(&mut self) {
        let until = self.drain_until();
        let (active, candidate) = (self.guest.active.take(), self.guest.candidate.take());
        self.guest.retire(active, until);
        self.guest.retire(candidate, self.now.ms);
        self.guest.renew = false;
        self.guest.rolled_back = None;
    }

    /// Decides which generations there shall be.
    fn choose(&mut self, declared: &Declared) {
        let Ok(spec) = declared.spec else { return };
        let guest = &mut *self.guest;
        if guest.rolled_back.as_ref().is_some_and(|past| past.spec != spec) {
            guest.rolled_back = None;
        }
        if guest.candidate.as_ref().is_some_and(|candidate| candidate.spec != spec) {
            let candidate = guest.candidate.take();
            guest.retire(candidate, self.now.ms);
            if let Some(active) = &mut guest.active {
                active.yielding_since = None;
            }
        }
        let Some(active) = &guest.active else {
            guest.renew = false;
            guest.active = Some(guest.make(spec));
            return;
        };
        let changed = active.spec != spec;
        let seen = self.observed.seen(active.number);
        let worthless = !active.served || (!seen.composed && !seen.alive && !seen.busy);
        // What does not run serves nobody: there is nothing to exchange it beside.
        let idle = !active.running && !seen.alive && guest.candidate.is_none();
        if (changed && worthless) || (guest.renew && !changed && idle) {
            let (active, candidate) = (guest.active.take(), guest.candidate.take());
            guest.retire(active, self.now.ms);
            guest.retire(candidate, self.now.ms);
            guest.active = Some(guest.make(spec));
            guest.renew = false;
            return;
        }
        let given_up = guest.rolled_back.is_some() && !guest.renew;
        if (changed || guest.renew) && guest.candidate.is_none() && !given_up {
            guest.renew = false;
            guest.candidate = Some(guest.make(spec));
        }
    }

    fn drive_candidate(&mut self, strategy: Strategy) {
        let Some(mut candidate) = self.guest.candidate.take() else { return };
        let seen = self.observed.seen(candidate.number);
        let driven = drive(&mut candidate, &seen, &self.now);
        if serves(&seen) {
            let until = self.drain_until();
            let old = self.guest.active.replace(candidate);
            self.guest.retire(old, until);
            return;
        }
        if driven.failed && candidate.attempt > 0 {
            self.roll_back(candidate);
            return;
        }
        match driven.need {
            Need::Prepare => self.prepare(&candidate),
            Need::Start if self.may_exchange(strategy) => self.start(&mut candidate),
            Need::Start | Need::Nothing => {}
        }
        self.guest.candidate = Some(candidate);
    }

    fn roll_back(&mut self, candidate: Generation) {
        if let Some(active) = &mut self.guest.active {
            active.yielding_since = None;
            active.retry_at = 0;
        }
        if let Some(end) = candidate.last_end.clone() {
            let (spec, generation) = (candidate.spec, candidate.number);
            self.guest.rolled_back = Some(RolledBack { spec, generation, end });
        }
        self.guest.retire(Some(candidate), self.now.ms);
    }

    /// Whether the candidate may start: one guest at a time, and what must make room for it has done so.
    fn may_exchange(&mut self, strategy: Strategy) -> bool {
        if self.others_upgrade {
            return false;
        }
        if strategy == Strategy::Beside {
            return true;
        }
        let now = self.now.ms;
        let retiring = self.retiring_alive();
        let Some(active) = &mut self.guest.active else { return !retiring };
        let _ = active.yielding_since.get_or_insert(now);
        let seen = self.observed.seen(active.number);
        !seen.alive && !seen.busy && !retiring
    }

    fn drive_active(&mut self, strategy: Strategy) {
        let Some(mut active) = self.guest.active.take() else { return };
        let seen = self.observed.seen(active.number);
        if self.guest.candidate.is_none() {
            active.yielding_since = None;
        }
        // What was told to finish goes that way to its end, also if nothing is to take its place any more.
        if let Some(since) = active.yielding_since.or(active.finishing_since) {
            if !seen.alive && !seen.busy {
                active.running = false;
                active.serving_since = None;
                active.finishing_since = None;
            } else if self.drained(active.number, since.saturating_add(self.guest.drain_ms), &seen) {
                self.stop(active.number);
            } else if self.is_left_behind(active.number, &seen) {
                let _ = active.finishing_since.get_or_insert(self.now.ms);
                self.tell_to_finish(active.number);
            }
            self.guest.active = Some(active);
            return;
        }
        match drive(&mut active, &seen, &self.now).need {
            Need::Prepare => self.prepare(&active),
            // What was replaced may still hold what this one needs.
            Need::Start if strategy == Strategy::Beside || !self.retiring_alive() => self.start(&mut active),
            Need::Start | Need::Nothing => {}
        }
        self.guest.active = Some(active);
    }

    fn drive_retiring(&mut self) {
        for retiring in std::mem::take(&mut self.guest.retiring) {
            let number = retiring.number;
            let seen = self.observed.seen(number);
            if seen.alive {
                if self.drained(number, retiring.drain_until, &seen) {
                    self.stop(number);
                } else if self.is_left_behind(number, &seen) {
                    self.tell_to_finish(number);
                }
            } else if seen.directory || seen.busy {
                self.actions.push(Action::Remove { guest: self.name.clone(), generation: number });
            } else {
                continue;
            }
            self.guest.retiring.push(retiring);
        }
    }

    /// Generations that are on the host and that the state does not know: of a state that was lost.
    fn clear_strays(&mut self) {
        for (&number, seen) in &self.observed.generations {
            // What was dropped from the state in this step was seen to be gone.
            if self.guest.knows(number) {
                continue;
            }
            if seen.alive {
                self.actions.push(Action::Stop { guest: self.name.clone(), generation: number });
            } else if seen.directory || seen.busy {
                self.actions.push(Action::Remove { guest: self.name.clone(), generation: number });
            }
        }
    }

    fn drive_front(&mut self, wanted: bool) {
        let front = &self.observed.front;
        let guest = self.name.clone();
        if !wanted && self.guest.is_gone() {
            if front.alive {
                self.actions.push(Action::StopFront { guest });
            }
            return;
        }
        if !front.alive {
            if wanted && !front.held_back {
                self.actions.push(Action::StartFront { guest });
            }
            return;
        }
        let target = self.target();
        if front.answered && front.target != target {
            self.actions.push(Action::Point { guest, target });
        }
    }

    /// Where new connections go.
    fn target(&self) -> Option<(u64, std::net::SocketAddrV4)> {
        let active = self.guest.active.as_ref()?;
        if active.yielding_since.or(active.finishing_since).is_some() {
            return None;
        }
        let seen = self.observed.seen(active.number);
        match seen.progress {
            Progress::Serving(address) if seen.alive => Some((active.number, address)),
            _ => None,
        }
    }

    /// Whether nobody uses a generation any more: its connections ended after the front was pointed elsewhere, or their
    /// time is over.
    fn drained(&self, number: u64, until: u64, seen: &Seen) -> bool {
        let idle = !self.observed.front.alive || (self.gets_no_clients(number) && seen.connections == Some(0));
        self.now.ms >= until || idle
    }

    /// Whether clients of a generation remain, none is sent there any more, and it is not known that it knows.
    fn is_left_behind(&self, number: u64, seen: &Seen) -> bool {
        let has_clients = seen.connections.is_some_and(|connections| connections > 0);
        has_clients && !seen.told_to_finish && self.gets_no_clients(number)
    }

    fn gets_no_clients(&self, number: u64) -> bool {
        let front = &self.observed.front;
        let pointed_at = front.target.is_some_and(|(generation, _)| generation == number);
        front.answered && !pointed_at
    }

    fn retiring_alive(&self) -> bool {
        self.guest.retiring.iter().any(|retiring| self.observed.seen(retiring.number).alive)
    }

    fn drain_until(&self) -> u64 {
        self.now.ms.saturating_add(self.guest.drain_ms)
    }

    fn prepare(&mut self, generation: &Generation) {
        let (guest, generation, spec) = (self.name.clone(), generation.number, generation.spec);
        self.actions.push(Action::Prepare { guest, generation, spec });
    }

    fn start(&mut self, generation: &mut Generation) {
        generation.attempt = generation.attempt.saturating_add(1);
        generation.running = true;
        generation.finishing_since = None;
        if generation.attempt > 1 {
            self.guest.restarts = self.guest.restarts.saturating_add(1);
        }
        let (guest, attempt) = (self.name.clone(), generation.attempt);
        self.actions.push(Action::Start { guest, generation: generation.number, attempt });
    }

    fn tell_to_finish(&mut self, generation: u64) {
        self.actions.push(Action::Drain { guest: self.name.clone(), generation });
    }

    fn stop(&mut self, generation: u64) {
        self.actions.push(Action::Stop { guest: self.name.clone(), generation });
    }
}

fn serves(seen: &Seen) -> bool {
    seen.alive && matches!(seen.progress, Progress::Serving(_))
}
