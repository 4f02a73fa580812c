// SPDX-License-Identifier: Apache-2.0
//! What is on the host: run directories, who holds them, how far guests are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use fleet::{End, FrontSeen, GuestName, Observed, Seen};
use model_cache::HeldPack;
use nix::fcntl::Flock;
use rustix::process::Signal;
use types::{Blake3Digest, Refusal, config::ClientAddress};

use super::paths::{Paths, RunPlan};
use crate::claim::{Claim, Holder};
use crate::door::Door;
use crate::front::{self, FrontRequest, FrontStatus};
use crate::prepare;
use crate::progress::Progress;
use crate::record::{LaunchRecord, PID_FILE};

/// A generation of a guest.
pub(crate) type Key = (GuestName, u64);

/// Looks at the host, and keeps what must not go away under it.
#[derive(Debug)]
pub(crate) struct Host {
    paths: Paths,
    /// Packs of composed generations: a cache does not remove them.
    held: HashMap<Key, Held>,
    /// Packs that are being verified: only guests that run hold them, so that a damaged one can go.
    loose: BTreeSet<Blake3Digest>,
    /// Generations of which the log says that their configuration cannot be read.
    unreadable: BTreeSet<Key>,
    /// Run directories by context identifier.
    pub(crate) routes: Routes,
}

/// Where the vsock connections of guests go, by context identifier.
pub(crate) type Routes = Arc<Mutex<HashMap<u32, PathBuf>>>;

#[derive(Debug)]
struct Held {
    cid: u32,
    pack: Option<Blake3Digest>,
    _disk: Flock<File>,
}

/// What one look showed.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) guests: BTreeMap<GuestName, Observed>,
    pub(crate) fronts: BTreeMap<GuestName, FrontStatus>,
    pub(crate) progress: HashMap<Key, Progress>,
    /// How guests that serve learn whose their connections are. Those of which that is not known are missing.
    pub(crate) forms: HashMap<Key, ClientAddress>,
    /// What keeps guests from being reached.
    pub(crate) hindrances: BTreeMap<GuestName, Vec<Refusal>>,
}

impl Look {
    /// Where guests serve.
    pub(crate) fn serving(&self) -> BTreeSet<Door> {
        let door = |((name, number), form): (&Key, &ClientAddress)| match self
            .guests
            .get(name)?
            .generations
            .get(number)?
            .progress
        {
            fleet::Progress::Serving(address) => Some(Door::new(address, *form)),
            _ => None,
        };
        self.forms.iter().filter_map(door).collect()
    }
}

impl Host {
    pub(crate) fn new(paths: Paths) -> Self {
        Self {
            paths,
            held: HashMap::new(),
            loose: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            routes: Routes::default(),
        }
    }

    /// Lets go of these packs, and of no others, for all generations that do not run.
    pub(crate) fn let_go(&mut self, packs: BTreeSet<Blake3Digest>) {
        self.loose = packs;
        let (loose, paths) = (&self.loose, &self.paths);
        self.held.retain(|key, held| {
            let runs = || Claim::holder(&paths.run_dir(&key.0, key.1).join(PID_FILE)).is_some();
            !held.pack.is_some_and(|pack| loose.contains(&pack)) || runs()
        });
    }

    /// Looks at everything once.
    pub(crate) async fn look(&mut self) -> Look {
        let mut look = Look::default();
        for guest in self.paths.guest_names() {
            let mut hindrances = Vec::new();
            let mut observed = Observed::default();
            for number in self.paths.generations(&guest) {
                let key = (guest.clone(), number);
                let (seen, progress) = self.generation(&key, &mut hindrances);
                if seen.alive && matches!(seen.progress, fleet::Progress::Serving(_)) {
                    let form = self.form(&key, &mut hindrances);
                    look.forms.extend(form.map(|form| (key.clone(), form)));
                }
                observed.generations.insert(number, seen);
                look.progress.extend(progress.map(|progress| (key, progress)));
            }
            let (front, status) = self.front(&guest, &look.forms, &mut hindrances).await;
            for (number, seen) in &mut observed.generations {
                seen.connections = status.as_ref().map(|status| status.connections.get(number).copied().unwrap_or(0));
                // A guess would let clients say themselves whose they are. So it does not serve, and whatever serves instead is
                // kept, unless clients are sent there already: that is in its form.
                if let fleet::Progress::Serving(address) = seen.progress
                    && !look.forms.contains_key(&(guest.clone(), *number))
                    && front.target != Some((*number, address))
                {
                    seen.progress = fleet::Progress::Booting;
                }
            }
            observed.front = front;
            look.fronts.extend(status.map(|status| (guest.clone(), status)));
            if !hindrances.is_empty() {
                look.hindrances.insert(guest.clone(), hindrances);
            }
            look.guests.insert(guest, observed);
        }
        let there = |key: &Key| look.guests.get(&key.0).is_some_and(|guest| guest.generations.contains_key(&key.1));
        self.held.retain(|key, _| there(key));
        self.unreadable.retain(there);
        let routes = self.held.iter().map(|(key, held)| (held.cid, self.paths.run_dir(&key.0, key.1)));
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes.collect();
        look
    }

    /// How a guest that serves learns whose its connections are. The log tells once of each generation of which that is not
    /// known: its user can change the file at every look.
    fn form(&mut self, key: &Key, hindrances: &mut Vec<Refusal>) -> Option<ClientAddress> {
        let error = match prepare::client_address(&self.paths.run_dir(&key.0, key.1)) {
            Ok(form) => return Some(form),
            Err(error) => error,
        };
        if self.unreadable.insert(key.clone()) {
            tracing::warn!(guest = %key.0, generation = key.1, code = UNREADABLE, "its configuration cannot be read: {error:#}");
        }
        let detail = format!(
            "generation {} serves, but its configuration cannot be read, and with it whether it wants to be told whose \
             connections are: clients are sent to it only if they were before",
            key.1
        );
        let fix = "see why in the agent's log; `host-agent restart NAME` composes it anew";
        hindrances.push(Refusal::new(UNREADABLE, &format!("guests.{}", key.0), detail, fix));
        None
    }

    async fn front(
        &self,
        guest: &GuestName,
        forms: &HashMap<Key, ClientAddress>,
        hindrances: &mut Vec<Refusal>,
    ) -> (FrontSeen, Option<FrontStatus>) {
        let directory = self.paths.guest(guest);
        let Some(holder) = Claim::holder(&directory.join(front::PID_FILE)) else {
            return (FrontSeen::default(), None);
        };
        if let Some(reason) = self.stranger(guest, "the front", &holder) {
            // It is not asked any more, so nothing is lost but its connections; one of the right user takes its place.
            if holder.signal(Signal::TERM, self.paths.account.uid()) {
                tracing::warn!(%guest, code = %reason.code, "the front is ended: {reason}");
            }
            hindrances.push(reason);
            return (FrontSeen { alive: true, ..FrontSeen::default() }, None);
        }
        let status = front::ask(&directory, self.paths.account.uid(), &FrontRequest::Status).await;
        // A guest that is told whose connections are, or is not, against its configuration closes them: nobody is sent there.
        let in_its_form = |status: &FrontStatus, generation: u64| {
            let form = forms.get(&(guest.clone(), generation));
            form.is_none_or(|form| (*form == ClientAddress::ProxyProtocol) == status.header)
        };
        let target =
            status.as_ref().and_then(|status| status.target.filter(|(generation, _)| in_its_form(status, *generation)));
        (FrontSeen { alive: true, held_back: false, target, answered: status.is_some() }, status)
    }

    /// Why a process that holds a directory of a guest cannot be reached, if it is of an earlier daemon's user.
    fn stranger(&self, guest: &GuestName, what: &str, holder: &Holder) -> Option<Refusal> {
        let (runs, wanted) = (holder.owner(), self.paths.account.uid());
        let detail = format!("{what} runs as user {runs}, and guests are to run as {wanted}");
        let fix = "`host-agent restart NAME` exchanges the guest for one of the right user";
        (runs != wanted).then(|| Refusal::new("guest_of_another_user", &format!("guests.{guest}"), detail, fix))
    }

    fn generation(&mut self, key: &Key, hindrances: &mut Vec<Refusal>) -> (Seen, Option<Progress>) {
        let run_dir = self.paths.run_dir(&key.0, key.1);
        // The daemon itself holds a directory while it removes it: no keeper is in it.
        let holder = Claim::holder(&run_dir.join(PID_FILE)).filter(|holder| !holder.is_self());
        let what = format!("generation {}", key.1);
        hindrances.extend(holder.as_ref().and_then(|holder| self.stranger(&key.0, &what, holder)));
        let written = Progress::load(&run_dir);
        let mut seen = Seen { directory: true, alive: holder.is_some(), ..Seen::default() };
        seen.composed = self.hold_model(key);
        let Some(progress) = written else { return (seen, None) };
        seen.attempt = progress.attempt;
        match holder {
            // What an earlier keeper wrote says nothing of this one.
            Some(holder) if holder.pid.and_then(|pid| u32::try_from(pid).ok()) == Some(progress.pid) => {
                seen.progress = match progress.serving {
                    Some(address) => fleet::Progress::Serving(address),
                    None => fleet::Progress::Booting,
                };
            }
            Some(_) => return (seen, None),
            None => {
                seen.end = match (&progress.halted, &progress.ended) {
                    (Some(halt), _) => Some(End::Halted { phase: halt.phase, code: halt.code }),
                    (None, Some(reason)) => Some(End::Failed { reason: reason.clone() }),
                    (None, None) => None,
                };
            }
        }
        (seen, Some(progress))
    }

    /// Whether a generation is composed and its model is there; holds the model's disk.
    fn hold_model(&mut self, key: &Key) -> bool {
        if self.held.contains_key(key) {
            return true;
        }
        let run_dir = self.paths.run_dir(&key.0, key.1);
        let Ok(record) = LaunchRecord::load(&run_dir) else { return false };
        let pack = RunPlan::load(&run_dir).map(|plan| plan.pack);
        if pack.is_some_and(|pack| self.loose.contains(&pack)) {
            return record.model_disk.exists();
        }
        match HeldPack::lock_disk(&record.model_disk) {
            Ok(lock) => {
                self.held.insert(key.clone(), Held { cid: record.cid, pack, _disk: lock });
                true
            }
            Err(_) => false,
        }
    }
}

/// Code of a guest that is not reached because its configuration cannot be read.
const UNREADABLE: &str = "guest_configuration_unreadable";

#[cfg(test)]
mod tests {
    use fleet::{Backoff, Declared, FleetState, Now, StepInput, Strategy};
    use types::{Document as _, Sha256Digest};

    use super::*;

    /// One look and one step, as the daemon does them.
    async fn step(host: &mut Host, state: &mut FleetState) {
        let look = host.look().await;
        let declared = Declared { spec: Ok(Sha256Digest::ZERO), strategy: Strategy::Beside, drain_ms: 0 };
        let declared = std::iter::once(("a".parse().unwrap(), declared)).collect();
        let now = Now { ms: 1, jitter: 0, backoff: Backoff::default() };
        state.step(&StepInput { declared: &declared, observed: &look.guests, now });
    }

    #[tokio::test]
    async fn no_number_of_a_guest_keeps_the_state_from_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let run_dir = paths.run_dir(&"a".parse().unwrap(), 1);
        std::fs::create_dir_all(&run_dir).unwrap();
        let mut host = Host::new(paths);
        for code in ["0", "4294967295", "4294967296", "9007199254740992", "18446744073709551615"] {
            let mut state = FleetState::new("boot");
            step(&mut host, &mut state).await;
            let active = state.guests.values_mut().next().unwrap().active.as_mut().unwrap();
            (active.attempt, active.running) = (1, true);
            let halted = format!(
                "{{\"pid\":1,\"attempt\":1,\"qemu_pid\":null,\"phases\":[],\"memory_kib\":null,\"serving\":null,\
                 \"halted\":{{\"phase\":\"keys\",\"code\":{code}}},\"ended\":null}}"
            );
            std::fs::write(run_dir.join("progress.json"), halted).unwrap();
            step(&mut host, &mut state).await;
            assert!(!state.guests.values().next().unwrap().active.as_ref().unwrap().running, "{code}");
            state.to_canonical().unwrap();
        }
    }
}
