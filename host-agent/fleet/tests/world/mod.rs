// SPDX-License-Identifier: Apache-2.0
//! A host of the imagination: it does what actions say, late, or not at all, and things in it die.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use fleet::{
    Action, Backoff, Declared, End, FleetState, FrontSeen, GuestName, Now, Observed, Progress, Seen, StepInput,
    Strategy,
};
use types::{EventName, Refusal, Sha256Digest};

#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) composed: bool,
    pub(crate) spec: Option<Sha256Digest>,
    pub(crate) alive: bool,
    pub(crate) attempt: u32,
    pub(crate) boots_for: u32,
    pub(crate) end: Option<End>,
    pub(crate) connections: u64,
    /// It was told to finish: it takes no clients any more.
    pub(crate) told: bool,
    failure: Option<Vec<Refusal>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(crate) runs: BTreeMap<u64, Run>,
    pub(crate) front: bool,
    pub(crate) target: Option<(u64, SocketAddrV4)>,
}

pub(crate) struct World {
    pub(crate) hosts: BTreeMap<GuestName, Host>,
    pub(crate) declared: BTreeMap<GuestName, Declared>,
    pub(crate) state: FleetState,
    pub(crate) ms: u64,
    /// Guests of these specs halt.
    pub(crate) bad: Vec<Sha256Digest>,
    /// Preparing these fails.
    pub(crate) unpreparable: Vec<Sha256Digest>,
    /// Generations whose processes died by themselves.
    pub(crate) died: BTreeSet<(GuestName, u64)>,
    random: u64,
}

pub(crate) fn name(text: &str) -> GuestName {
    text.parse().unwrap()
}

pub(crate) fn spec(text: &str) -> Sha256Digest {
    Sha256Digest::of(text.as_bytes())
}

pub(crate) fn declared(text: &str, strategy: Strategy) -> Declared {
    Declared { spec: Ok(spec(text)), strategy, drain_ms: 5_000 }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            hosts: BTreeMap::new(),
            declared: BTreeMap::new(),
            state: FleetState::new("boot"),
            ms: 1,
            bad: Vec::new(),
            unpreparable: Vec::new(),
            died: BTreeSet::new(),
            random: seed.wrapping_mul(2_654_435_761).wrapping_add(88_172_645_463_325_252),
        }
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub(crate) fn observe(&mut self) -> BTreeMap<GuestName, Observed> {
        let mut all = BTreeMap::new();
        for (guest, host) in &mut self.hosts {
            let generations = host.runs.iter_mut().map(|(&number, run)| (number, seen(number, run))).collect();
            let front = FrontSeen { alive: host.front, held_back: false, target: host.target, answered: host.front };
            all.insert(guest.clone(), Observed { generations, front });
        }
        all
    }

    /// One step; `lost` of its actions, from the end, are never done, as after a crash.
    pub(crate) fn step(&mut self, lost: usize) -> Vec<Action> {
        let observed = self.observe();
        let backoff = Backoff { stable_ms: 30_000, ..Backoff::default() };
        let now = Now { ms: self.ms, jitter: self.random(1000), backoff };
        let mut actions = self.state.step(&StepInput { declared: &self.declared, observed: &observed, now });
        actions.truncate(actions.len().saturating_sub(lost));
        for action in &actions {
            self.act(action);
        }
        self.advance();
        actions
    }

    fn act(&mut self, action: &Action) {
        match action.clone() {
            Action::Prepare { guest, generation, spec } => {
                let unpreparable = self.unpreparable.contains(&spec);
                let run = self.host(&guest).runs.entry(generation).or_default();
                assert!(!run.alive, "prepared under a living keeper");
                if unpreparable {
                    run.failure = Some(vec![Refusal::new("disk_full", "cache", "x", "y")]);
                } else {
                    (run.composed, run.spec) = (true, Some(spec));
                }
            }
            Action::Start { guest, generation, attempt } => {
                let boots_for = 1 + u32::try_from(self.random(4)).unwrap();
                let run = self.host(&guest).runs.get_mut(&generation).unwrap();
                assert!(run.composed && !run.alive, "{action:?}: {run:?}");
                (run.alive, run.attempt, run.boots_for, run.end) = (true, attempt, boots_for, None);
                run.told = false;
            }
            Action::Drain { guest, generation } => {
                let host = self.host(&guest);
                assert!(
                    host.target.is_none_or(|(target, _)| target != generation),
                    "told while clients are sent there"
                );
                let run = host.runs.get_mut(&generation).unwrap();
                assert!(run.alive && run.connections > 0 && !run.told, "{run:?}");
                run.told = true;
            }
            Action::Stop { guest, generation } => {
                let late = self.random(3) == 0;
                if let Some(run) = self.host(&guest).runs.get_mut(&generation).filter(|_| !late) {
                    (run.alive, run.connections) = (false, 0);
                    run.end = Some(End::Failed { reason: "stopped".to_owned() });
                }
            }
            Action::Remove { guest, generation } => {
                let host = self.host(&guest);
                assert!(!host.runs.get(&generation).is_some_and(|run| run.alive), "removed under a living keeper");
                host.runs.remove(&generation);
            }
            Action::StartFront { guest } => self.host(&guest).front = true,
            Action::Point { guest, target } => {
                let clients = self.random(8);
                let host = self.host(&guest);
                assert!(host.front);
                let run = target.map(|(target, _)| &host.runs[&target]);
                assert!(run.is_none_or(|run| !run.told), "clients are sent where they are not let in");
                host.target = target;
                if let Some(run) = target.and_then(|(target, _)| host.runs.get_mut(&target)) {
                    run.connections = run.connections.saturating_add(clients);
                }
            }
            Action::StopFront { guest } => (self.host(&guest).front, self.host(&guest).target) = (false, None),
            Action::Forget { guest } => {
                let host = self.hosts.remove(&guest).unwrap_or_default();
                assert!(host.runs.is_empty() && !host.front, "{host:?}");
            }
        }
    }

    fn host(&mut self, guest: &GuestName) -> &mut Host {
        self.hosts.entry(guest.clone()).or_default()
    }

    fn advance(&mut self) {
        self.ms += 1_000;
        let bad = self.bad.clone();
        for run in self.hosts.values_mut().flat_map(|host| host.runs.values_mut()) {
            // Idle ones are closed at once, the others with their answers.
            run.connections = if run.told { run.connections / 2 } else { run.connections.saturating_sub(1) };
            if !run.alive {
                continue;
            }
            run.boots_for = run.boots_for.saturating_sub(1);
            if run.boots_for == 0 && run.spec.is_some_and(|spec| bad.contains(&spec)) {
                run.alive = false;
                run.end = Some(End::Halted { phase: EventName::Model, code: 105 });
            }
        }
    }

    pub(crate) fn kill_something(&mut self) {
        let guests: Vec<GuestName> = self.hosts.keys().cloned().collect();
        if guests.is_empty() {
            return;
        }
        let at = usize::try_from(self.random(u64::try_from(guests.len()).unwrap())).unwrap();
        let what = self.random(4);
        let host = self.hosts.get_mut(&guests[at]).unwrap();
        match what {
            0 => (host.front, host.target) = (false, None),
            _ => {
                if let Some((number, run)) = host.runs.iter_mut().find(|(_, run)| run.alive) {
                    (run.alive, run.end) = (false, None);
                    self.died.insert((guests[at].clone(), *number));
                }
            }
        }
    }

    /// Generations that serve, by guest.
    pub(crate) fn serving(&self, guest: &GuestName) -> Vec<(u64, Sha256Digest)> {
        let Some(host) = self.hosts.get(guest) else { return Vec::new() };
        let serve = host.runs.iter().filter(|(_, run)| run.alive && run.boots_for == 0);
        serve.filter_map(|(number, run)| Some((*number, run.spec?))).collect()
    }

    /// Panics unless exactly one generation of `guest` is there, serves `expected`, and is where clients are sent.
    pub(crate) fn assert_converged(&self, guest: &GuestName, expected: Sha256Digest) {
        let host = &self.hosts[guest];
        let serving = self.serving(guest);
        assert_eq!(host.runs.len(), 1, "{guest}: {host:?} {:?}", self.state.guests[guest]);
        assert_eq!(serving.len(), 1, "{guest}: {host:?} {:?}", self.state.guests[guest]);
        assert_eq!(serving[0].1, expected, "{guest}");
        assert!(host.front);
        assert_eq!(host.target, Some((serving[0].0, address(serving[0].0))));
    }
}

pub(crate) fn address(number: u64) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10_000 + u16::try_from(number).unwrap())
}

fn seen(number: u64, run: &mut Run) -> Seen {
    let progress = match (run.alive, run.boots_for) {
        (false, _) => Progress::Unknown,
        (true, 0) => Progress::Serving(address(number)),
        (true, _) => Progress::Booting,
    };
    Seen {
        directory: true,
        composed: run.composed,
        busy: false,
        alive: run.alive,
        progress,
        attempt: run.attempt,
        end: run.end.clone(),
        failure: run.failure.take(),
        connections: Some(run.connections),
        told_to_finish: run.told,
    }
}
