// SPDX-License-Identifier: Apache-2.0
//! Doing what the step says. Long work runs beside the loop; its failures are handed to the next step.

mod fronts;
mod leftovers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use fleet::{Action, End, GuestName, Observed, Seen, Strategy};
use model_cache::{Cache, CacheError, FetchProgress};
use rustix::process::Signal;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use types::{Blake3Digest, Refusal};

use super::compose::{self, Fetching, Workshop};
use super::config::Config;
use super::declare::Declaration;
use super::host::{Key, Look};
use super::keeper::{self, Keeper};
use super::memory::Memory;
use super::paths::{Paths, RunPlan};
use super::telling::Tellings;
use crate::claim::Claim;
use crate::front;
use crate::gpu::passing::Hands;
use crate::record::{LaunchRecord, PID_FILE};
use fronts::Front;
use leftovers::remove_run_dir;

/// What is under way, and what came of it.
pub(crate) struct Effects {
    paths: Paths,
    cache: Cache,
    pub(crate) wake: Arc<Notify>,
    tasks: HashMap<Key, Task>,
    failures: HashMap<Key, Vec<Refusal>>,
    /// Since when keepers are to end, and whether they were told.
    stopping: HashMap<Key, (Instant, bool)>,
    tellings: Tellings,
    fronts: HashMap<GuestName, Front>,
    cids: HashMap<Key, u32>,
    /// Attempts after which the model's disk was verified.
    verified: HashMap<Key, u32>,
    /// Attempts that were begun, by what this process saw itself.
    started: HashMap<Key, u32>,
    hands: Option<Hands>,
    /// Guests may have given up GPUs since they were last looked after.
    release_due: Option<Instant>,
    releasing: Option<JoinHandle<Result<(), Vec<Refusal>>>>,
}

struct Task {
    handle: JoinHandle<Result<(), Vec<Refusal>>>,
    fetching: Fetching,
    /// It removes the run directory.
    removes: bool,
    /// It verifies this pack.
    verifies: Option<Blake3Digest>,
    /// It starts this attempt.
    starts: Option<u32>,
}

impl Effects {
    pub(crate) fn new(paths: Paths, cache: Cache, hands: Option<Hands>) -> Self {
        Self {
            paths,
            cache,
            wake: Arc::new(Notify::new()),
            tasks: HashMap::new(),
            failures: HashMap::new(),
            stopping: HashMap::new(),
            tellings: Tellings::default(),
            fronts: HashMap::new(),
            cids: HashMap::new(),
            verified: HashMap::new(),
            started: HashMap::new(),
            release_due: hands.is_some().then(Instant::now),
            releasing: None,
            hands,
        }
    }

    /// Adds to an observation what this process knows: what is under way, and what failed. A start that has ended since the
    /// look counts as under way: the look says nothing of its keeper yet.
    pub(crate) async fn complete(&mut self, guests: &mut BTreeMap<GuestName, Observed>) {
        let done: Vec<Key> =
            self.tasks.iter().filter(|(_, task)| task.handle.is_finished()).map(|(key, _)| key.clone()).collect();
        for key in done {
            let Some(task) = self.tasks.remove(&key) else { continue };
            if task.removes && self.hands.is_some() {
                self.release_due = Some(Instant::now());
            }
            match task.handle.await {
                Ok(Ok(())) => {
                    let Some(attempt) = task.starts else { continue };
                    guests.entry(key.0.clone()).or_default().generations.entry(key.1).or_default().busy = true;
                    self.started.insert(key, attempt);
                    self.wake.notify_one();
                }
                Ok(Err(reasons)) => self.failed(key, reasons),
                Err(error) if error.is_cancelled() => {}
                Err(error) => self.failed(key, vec![compose::agent_failed(&error)]),
            }
        }
        for key in self.tasks.keys() {
            guests.entry(key.0.clone()).or_default().generations.entry(key.1).or_default().busy = true;
        }
        for (key, reasons) in self.failures.drain() {
            guests.entry(key.0).or_default().generations.entry(key.1).or_default().failure = Some(reasons);
        }
        // A keeper that could not note its attempt was started nevertheless.
        self.started.retain(|key, attempt| {
            let seen = guests.get_mut(&key.0).and_then(|guest| guest.generations.get_mut(&key.1));
            seen.map(|seen| seen.attempt = seen.attempt.max(*attempt)).is_some()
        });
        self.stopping.retain(|key, _| {
            guests.get(&key.0).and_then(|guest| guest.generations.get(&key.1)).is_some_and(|seen| seen.alive)
        });
        self.tellings.complete(guests).await;
        for (guest, front) in &mut self.fronts {
            front.look();
            guests.entry(guest.clone()).or_default().front.held_back =
                front.child.is_some() || front.not_before.is_some_and(|at| Instant::now() < at);
        }
    }

    /// Verifies the pack of a generation that ended with the word that its model's disk is wrong, once for each attempt. A
    /// damaged pack goes, if nobody runs from it, and is fetched anew before the next attempt.
    pub(crate) fn verify_blamed(&mut self, key: &Key, seen: &mut Seen) {
        let blamed = matches!(seen.end, Some(End::Halted { code, .. }) if fleet::blames_model_disk(code));
        if !blamed || seen.busy || self.verified.get(key) == Some(&seen.attempt) {
            return;
        }
        let Some(plan) = RunPlan::load(&self.paths.run_dir(&key.0, key.1)) else { return };
        self.verified.insert(key.clone(), seen.attempt);
        tracing::info!(guest = %key.0, generation = key.1, pack = %plan.pack, "verifying the model's disk");
        let (cache, pack) = (self.cache.clone(), plan.pack);
        self.spawn(key.clone(), Fetching::default(), compose::blocking(move || verify_pack(&cache, &pack)));
        if let Some(task) = self.tasks.get_mut(key) {
            task.verifies = Some(plan.pack);
        }
        seen.busy = true;
    }

    /// Packs that are being verified.
    pub(crate) fn verifying(&self) -> BTreeSet<Blake3Digest> {
        self.tasks.values().filter_map(|task| task.verifies).collect()
    }

    fn failed(&mut self, key: Key, reasons: Vec<Refusal>) {
        for reason in &reasons {
            tracing::warn!(guest = %key.0, generation = key.1, code = %reason.code, "{reason}");
        }
        self.failures.insert(key, reasons);
    }

    pub(crate) fn act(
        &mut self,
        action: Action,
        look: &Look,
        config: &Arc<Config>,
        declarations: &BTreeMap<GuestName, Declaration>,
    ) {
        tracing::debug!(?action, "acting");
        match action {
            Action::Prepare { guest, generation, spec } => {
                let declaration = declarations.get(&guest);
                let replaces = declaration.is_some_and(|d| d.declared.strategy == Strategy::Replace);
                let plan = declaration.and_then(|declaration| declaration.plan.clone());
                let key = (guest, generation);
                match plan.filter(|plan| plan.run.spec == spec) {
                    Some(plan) => {
                        let yields_mib = if replaces { self.running_mib(&key) } else { 0 };
                        let memory = Memory { root: config.hardware.root.clone(), yields_mib };
                        let workshop = self.workshop(&key, memory);
                        let fetching = Arc::clone(&workshop.fetching);
                        self.spawn(key, fetching, compose::compose(plan, workshop));
                    }
                    None => {
                        let detail = "the run directory is gone, and it was of another declaration".to_owned();
                        let fix = "host-agent restart";
                        let reason = Refusal::new("run_directory_unusable", "agent.state_dir", detail, fix);
                        self.failures.insert(key, vec![reason]);
                    }
                }
            }
            Action::Start { guest, generation, attempt } => {
                tracing::info!(%guest, generation, attempt, "starting");
                let plan = declarations.get(&guest).and_then(|declaration| declaration.plan.as_ref());
                let keeper = Keeper {
                    published: plan.map(|plan| Arc::clone(&plan.release)),
                    run_dir: self.paths.run_dir(&guest, generation),
                    releases: self.paths.releases(),
                    attempt,
                    memory: Memory { root: config.hardware.root.clone(), yields_mib: 0 },
                    ended: Arc::clone(&self.wake),
                    hands: self.hands.clone(),
                };
                let key = (guest, generation);
                self.spawn(key.clone(), Fetching::default(), keeper::start(keeper, Arc::clone(config)));
                if let Some(task) = self.tasks.get_mut(&key) {
                    task.starts = Some(attempt);
                }
            }
            Action::Drain { guest, generation } => {
                let run_dir = self.paths.run_dir(&guest, generation);
                let owner = self.paths.account.uid();
                self.tellings.tell((guest, generation), &run_dir, owner, &self.wake);
            }
            Action::Stop { guest, generation } => self.stop((guest, generation)),
            Action::Remove { guest, generation } => self.remove((guest, generation)),
            Action::StartFront { guest } => {
                if let Some(declaration) = declarations.get(&guest) {
                    self.start_front(&guest, declaration.listen);
                }
            }
            Action::Point { guest, target } => self.point_front(&guest, target, look),
            Action::StopFront { guest } => {
                let holder = Claim::holder(&self.paths.guest(&guest).join(front::PID_FILE));
                if let Some(holder) = holder {
                    holder.signal(Signal::TERM, self.paths.account.uid());
                }
            }
            Action::Forget { guest } => {
                self.fronts.remove(&guest);
                let _ = std::fs::remove_dir_all(self.paths.guest(&guest));
            }
        }
    }

    /// Whether a generation said that it finishes what it was asked.
    pub(crate) fn is_finishing(&self, guest: &GuestName, generation: u64) -> bool {
        self.tellings.heard(&(guest.clone(), generation))
    }

    /// How far the model of a generation is.
    pub(crate) fn fetching(&self, key: &Key) -> Option<FetchProgress> {
        *self.tasks.get(key)?.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(
        &mut self,
        key: Key,
        fetching: Fetching,
        work: impl Future<Output = Result<(), Vec<Refusal>>> + Send + 'static,
    ) {
        let wake = Arc::clone(&self.wake);
        let handle = tokio::spawn(async move {
            let result = work.await;
            wake.notify_one();
            result
        });
        if let Some(earlier) =
            self.tasks.insert(key, Task { handle, fetching, removes: false, verifies: None, starts: None })
        {
            earlier.handle.abort();
        }
    }

    fn workshop(&mut self, key: &Key, memory: Memory) -> Workshop {
        let run_dir = self.paths.run_dir(&key.0, key.1);
        Workshop {
            run_dir,
            releases: self.paths.releases(),
            cache: self.cache.clone(),
            cid: self.cid(key),
            memory,
            fetching: Fetching::default(),
        }
    }

    /// Memory of the other generations of a guest that run.
    fn running_mib(&self, key: &Key) -> u64 {
        let others = self.paths.generations(&key.0).into_iter().filter(|number| *number != key.1);
        let run_dirs = others.map(|number| self.paths.run_dir(&key.0, number));
        let running = run_dirs.filter(|run_dir| Claim::holder(&run_dir.join(PID_FILE)).is_some());
        let records = running.filter_map(|run_dir| LaunchRecord::load(&run_dir).ok());
        records.map(|record| u64::from(record.shape.facts().memory_mib)).sum()
    }

    /// A context identifier that no other generation has.
    fn cid(&mut self, key: &Key) -> u32 {
        for guest in self.paths.guest_names() {
            for number in self.paths.generations(&guest) {
                if let Ok(record) = LaunchRecord::load(&self.paths.run_dir(&guest, number)) {
                    self.cids.insert((guest.clone(), number), record.cid);
                }
            }
        }
        let taken = self.cids.iter().filter(|(other, _)| *other != key).map(|(_, cid)| *cid).collect();
        let cid = compose::free_cid(&taken);
        self.cids.insert(key.clone(), cid);
        cid
    }

    fn stop(&mut self, key: Key) {
        let run_dir = self.paths.run_dir(&key.0, key.1);
        let Some(holder) = Claim::holder(&run_dir.join(PID_FILE)) else { return };
        let account = self.paths.account.uid();
        let (since, told) = self.stopping.entry(key.clone()).or_insert_with(|| (Instant::now(), false));
        if !*told && holder.signal(Signal::TERM, account) {
            tracing::info!(guest = %key.0, generation = key.1, "stopping");
            (*since, *told) = (Instant::now(), true);
        } else if since.elapsed() > STOP_PATIENCE {
            tracing::warn!(guest = %key.0, generation = key.1, "the keeper does not end: killed");
            *since = Instant::now();
            // Whoever holds the directory instead of a keeper, its group ends with it.
            if let (false, Some(groups)) = (holder.signal(Signal::KILL, account), self.paths.groups.clone()) {
                tokio::task::spawn_blocking(move || groups.remove(&run_dir));
            }
        }
    }

    fn remove(&mut self, key: Key) {
        let (run_dir, groups) = (self.paths.run_dir(&key.0, key.1), self.paths.groups.clone());
        self.cids.remove(&key);
        self.verified.remove(&key);
        if self.tasks.get(&key).is_some_and(|task| task.removes) {
            return;
        }
        // Whatever was under way about it is given up.
        self.spawn(
            key.clone(),
            Fetching::default(),
            compose::blocking(move || remove_run_dir(&run_dir, groups.as_ref())),
        );
        if let Some(task) = self.tasks.get_mut(&key) {
            task.removes = true;
        }
    }
}

fn verify_pack(cache: &Cache, pack: &Blake3Digest) -> Result<(), Vec<Refusal>> {
    match cache.verify(pack, &|_| ()) {
        Ok(()) => tracing::info!(%pack, "it is as its root says"),
        Err(CacheError::Missing { .. }) => {}
        Err(error @ CacheError::Damaged { .. }) => {
            if !cache.remove(pack).map_err(|error| vec![error.refusal()])? {
                return Err(vec![error.refusal()]);
            }
            tracing::warn!(%pack, "it is damaged and was removed, to be fetched anew: {error}");
        }
        Err(error) => return Err(vec![error.refusal()]),
    }
    Ok(())
}

/// How long a keeper may take to end its guest.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    /// The keeper took its directory between the look and the end of its start: that is no keeper that ended.
    #[tokio::test]
    async fn a_start_that_ended_after_the_look_is_still_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache"), 0).unwrap();
        let mut effects = Effects::new(Paths::new(directory.path()), cache, None);
        let key: Key = ("a".parse().unwrap(), 1);
        effects.spawn(key.clone(), Fetching::default(), std::future::ready(Ok(())));
        effects.tasks.get_mut(&key).unwrap().starts = Some(2);
        while !effects.tasks[&key].handle.is_finished() {
            tokio::task::yield_now().await;
        }
        let look = || {
            let seen = Seen { directory: true, attempt: 1, ..Seen::default() };
            let guest = Observed { generations: [(key.1, seen)].into(), ..Observed::default() };
            BTreeMap::from([(key.0.clone(), guest)])
        };
        for busy in [true, false] {
            let mut guests = look();
            effects.complete(&mut guests).await;
            let seen = &guests[&key.0].generations[&key.1];
            assert_eq!((seen.busy, seen.alive, seen.attempt), (busy, false, 2));
        }
    }
}
