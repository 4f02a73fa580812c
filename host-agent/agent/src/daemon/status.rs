// SPDX-License-Identifier: Apache-2.0
//! How everything is: one document for `status` and metrics.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use fleet::{End, GuestName, GuestState, Observed, Progress, Seen};
use serde::{Deserialize, Serialize};
use types::{EventName, HaltCode, NoteCode, Refusal};

use super::declare::Declaration;
use super::effects::Effects;
use super::host::Look;
use super::tcb::TcbStatus;
use crate::progress::Phase;

/// The daemon and its guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// `chrysalis/agent-status/v1`.
    pub(crate) schema: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Every guest runs on simulated hardware.
    pub(crate) simulated: bool,
    pub(crate) guests: Vec<GuestStatus>,
    pub(crate) cache: CacheStatus,
    /// How long this host is good enough, where that is watched.
    #[serde(default)]
    pub(crate) tcb: Option<TcbStatus>,
    /// What is wrong with the daemon itself, such as a configuration that was not taken.
    pub(crate) reasons: Vec<Refusal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheStatus {
    pub(crate) bytes: u64,
    pub(crate) quota: u64,
    pub(crate) packs: u64,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestStatus {
    pub(crate) name: GuestName,
    pub(crate) state: GuestWord,
    pub(crate) listen: Option<SocketAddrV4>,
    pub(crate) release: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) active: Option<GenerationStatus>,
    pub(crate) candidate: Option<GenerationStatus>,
    /// Generations that are drained or stopped.
    pub(crate) retiring: Vec<u64>,
    /// Generations that said that they end their connections with the answers that run.
    #[serde(default)]
    pub(crate) finishing: Vec<u64>,
    pub(crate) restarts: u64,
    /// Open connections of clients, of all generations.
    pub(crate) connections: u64,
    pub(crate) accepted: u64,
    pub(crate) turned_away: u64,
    /// Everything that keeps it from being as declared, with what to do.
    pub(crate) reasons: Vec<Refusal>,
}

/// A guest's state in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GuestWord {
    Serving,
    Upgrading,
    Booting,
    Preparing,
    /// Failed, to be tried again.
    Waiting,
    /// It cannot be launched as declared.
    Refused,
    Stopping,
    Stopped,
}

impl GuestWord {
    pub(crate) const ALL: [Self; 8] = [
        Self::Serving,
        Self::Upgrading,
        Self::Booting,
        Self::Preparing,
        Self::Waiting,
        Self::Refused,
        Self::Stopping,
        Self::Stopped,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Upgrading => "upgrading",
            Self::Booting => "booting",
            Self::Preparing => "preparing",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GenerationStatus {
    pub(crate) number: u64,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) alive: bool,
    pub(crate) serving: bool,
    /// It serves and does not answer.
    #[serde(default)]
    pub(crate) silent: bool,
    /// Milliseconds that it has served.
    pub(crate) serving_ms: Option<u64>,
    /// Milliseconds until the next attempt.
    pub(crate) retry_ms: Option<u64>,
    pub(crate) keeper_pid: Option<u32>,
    pub(crate) qemu_pid: Option<u32>,
    pub(crate) memory_kib: Option<u64>,
    pub(crate) phases: Vec<PhaseStatus>,
    /// What the guest noted: `gpu_not_compared` and its like; `unknown` for a number of another version.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    /// Bytes of the model that are here, and of all, while it is fetched.
    pub(crate) fetched: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PhaseStatus {
    pub(crate) phase: EventName,
    /// Since QEMU began to run the guest.
    pub(crate) milliseconds: u64,
}

impl From<&Phase> for PhaseStatus {
    fn from(phase: &Phase) -> Self {
        Self { phase: phase.phase, milliseconds: phase.milliseconds }
    }
}

/// What a guest's status is made of.
pub(crate) struct Known<'a> {
    pub(crate) look: &'a Look,
    pub(crate) effects: &'a Effects,
    pub(crate) declarations: &'a BTreeMap<GuestName, Declaration>,
    pub(crate) now_ms: u64,
}

impl Known<'_> {
    pub(crate) fn guest(&self, name: &GuestName, state: &GuestState) -> GuestStatus {
        let nothing = Observed::default();
        let observed = self.look.guests.get(name).unwrap_or(&nothing);
        let declaration = self.declarations.get(name);
        let front = self.look.fronts.get(name).cloned().unwrap_or_default();
        let seen = |number: u64| observed.generations.get(&number).cloned().unwrap_or_default();
        let describe = |generation: &fleet::Generation| self.generation(name, generation, &seen(generation.number));
        let active = state.active.as_ref().map(describe);
        let candidate = state.candidate.as_ref().map(describe);
        let refused = declaration.and_then(|declaration| declaration.declared.spec.clone().err());
        let mut reasons = refused.clone().unwrap_or_default();
        if !observed.front.alive {
            reasons.extend(self.effects.front_reason(name));
        }
        reasons.extend(self.look.hindrances.get(name).into_iter().flatten().cloned());
        // What serves again keeps nothing from being as declared; `restarts` and `failures` tell of the past.
        for (generation, shown) in [(&state.active, &active), (&state.candidate, &candidate)]
            .into_iter()
            .filter_map(|(generation, shown)| generation.as_ref().zip(shown.as_ref()))
        {
            let failing = generation.failures > 0 && !shown.serving;
            reasons.extend(generation.last_end.iter().filter(|_| failing).flat_map(|end| explain(end, "guest")));
        }
        if active.as_ref().is_some_and(|active| active.silent) {
            let fix = "see the host's load and `host-agent logs NAME`; `host-agent restart NAME`";
            let detail = "it serves, and does not answer a TLS handshake";
            reasons.push(Refusal::new("guest_silent", &format!("guests.{name}"), detail, fix));
        }
        if let Some(past) = &state.rolled_back {
            let detail = format!("generation {} was given up, the one before goes on", past.generation);
            let fix = "mend it, then `host-agent restart`";
            reasons.push(Refusal::new("upgrade_rolled_back", &format!("guests.{name}"), detail, fix));
            reasons.extend(explain(&past.end, "upgrade"));
        }
        let state_word = word(state, active.as_ref(), candidate.as_ref(), refused.is_some(), observed);
        GuestStatus {
            name: name.clone(),
            state: state_word,
            listen: front.listen.or(declaration.map(|declaration| declaration.listen)),
            release: declaration.map(|declaration| declaration.release.clone()),
            model: declaration.map(|declaration| declaration.model.clone()),
            active,
            candidate,
            retiring: state.retiring.iter().map(|retiring| retiring.number).collect(),
            finishing: observed
                .generations
                .keys()
                .copied()
                .filter(|number| self.effects.is_finishing(name, *number))
                .collect(),
            restarts: state.restarts,
            connections: front.connections.values().sum(),
            accepted: front.accepted,
            turned_away: front.turned_away,
            reasons,
        }
    }

    fn generation(&self, name: &GuestName, generation: &fleet::Generation, seen: &Seen) -> GenerationStatus {
        let key = (name.clone(), generation.number);
        let progress = self.look.progress.get(&key).filter(|_| seen.alive);
        let left = generation.retry_at.saturating_sub(self.now_ms);
        GenerationStatus {
            number: generation.number,
            attempt: generation.attempt,
            failures: generation.failures,
            alive: seen.alive,
            serving: seen.alive && matches!(seen.progress, Progress::Serving(_)),
            silent: progress.is_some_and(|progress| progress.serving.is_some() && progress.silent),
            serving_ms: generation.serving_since.map(|since| self.now_ms.saturating_sub(since)),
            retry_ms: (!seen.alive && !seen.busy && left > 0).then_some(left),
            keeper_pid: progress.map(|progress| progress.pid),
            qemu_pid: progress.and_then(|progress| progress.qemu_pid),
            memory_kib: progress.and_then(|progress| progress.memory_kib),
            phases: progress
                .map(|progress| progress.phases.iter().map(PhaseStatus::from).collect())
                .unwrap_or_default(),
            notes: progress.map(|progress| progress.notes.iter().map(note_name).collect()).unwrap_or_default(),
            fetched: self.effects.fetching(&key).map(|progress| (progress.done, progress.total)),
        }
    }
}

fn note_name(number: &u16) -> String {
    NoteCode::of_number(u64::from(*number)).map_or("unknown", NoteCode::name).to_owned()
}

fn word(
    state: &GuestState,
    active: Option<&GenerationStatus>,
    candidate: Option<&GenerationStatus>,
    refused: bool,
    observed: &Observed,
) -> GuestWord {
    let Some(active) = active else {
        let left = observed.generations.values().any(|seen| seen.alive || seen.directory);
        return match (left, refused && !state.stopped) {
            (true, _) => GuestWord::Stopping,
            (false, true) => GuestWord::Refused,
            (false, false) => GuestWord::Stopped,
        };
    };
    let busy = observed.generations.get(&active.number).is_some_and(|seen| seen.busy);
    match (candidate, active) {
        (Some(candidate), _) if candidate.alive => GuestWord::Upgrading,
        (_, GenerationStatus { serving: true, .. }) => GuestWord::Serving,
        (_, GenerationStatus { alive: true, .. }) => GuestWord::Booting,
        _ if busy => GuestWord::Preparing,
        _ => GuestWord::Waiting,
    }
}

/// An end in the words of a refusal.
fn explain(end: &End, field: &str) -> Vec<Refusal> {
    match end {
        End::Halted { phase, code } => {
            let known = HaltCode::of_number(u64::from(*code));
            let meaning = known.map_or("a code of another version", HaltCode::meaning);
            let detail = format!("the guest halted itself in phase {phase} with code {code}: {meaning}");
            vec![Refusal::new(known.map_or("unknown", HaltCode::name), field, detail, fleet::advice(*code).1)]
        }
        End::Failed { reason } => {
            let fix = "`host-agent logs NAME` shows what QEMU and the keeper said";
            vec![Refusal::new("guest_ended", field, reason.clone(), fix)]
        }
        End::Refused { reasons } => reasons.clone(),
    }
}
