// SPDX-License-Identifier: Apache-2.0
//! What people and signals tell the daemon: commands, and the file taken anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet::{FleetState, GuestName};
use types::Refusal;

use super::super::config::{Config, OnStop};
use super::super::control::{Answer, Asked, Command};
use super::super::declare::{Fronts, declare};
use super::super::host::Look;
use super::super::keeper::QEMU_CHANGED;
use super::Daemon;

impl Daemon {
    pub(super) async fn answer(&mut self, (command, reply): Asked) {
        let answer = match command {
            Command::Status => {
                let status = self.status.borrow().clone();
                status.map_or(Answer::Refused(Vec::new()), |status| Answer::Status(Box::new((*status).clone())))
            }
            Command::Stop(guest) => self.known(&guest, FleetState::stop),
            Command::Restart(guest) => self.known(&guest, FleetState::restart),
            Command::Reload => match self.reload().await {
                Ok(()) => Answer::Done,
                Err(reasons) => Answer::Refused(reasons),
            },
            Command::Drain => {
                self.ending = true;
                Answer::Done
            }
        };
        // Who asked may be gone.
        let _ = reply.send(answer);
    }

    pub(super) fn known(&mut self, guest: &GuestName, change: impl Fn(&mut FleetState, &GuestName) -> bool) -> Answer {
        let mut next = self.state.clone();
        if change(&mut next, guest) {
            // Who is told that it is done can rely on it, whatever happens to this process.
            return match self.write_down(next) {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Refused(vec![reason]),
            };
        }
        let detail = format!("there is no guest {guest}");
        Answer::Refused(vec![Refusal::new("guest_unknown", "guest", detail, "`host-agent status` names them")])
    }

    /// Takes the file anew. What it says of a guest that is refused changes nothing of that guest; a file that is
    /// refused changes nothing at all.
    pub(super) async fn reload(&mut self) -> Result<(), Vec<Refusal>> {
        let config = Config::load(&self.path).and_then(|config| self.fits(config)).inspect_err(|reasons| {
            reasons.iter().for_each(|reason| tracing::warn!(code = %reason.code, "configuration refused: {reason}"));
            self.reasons = reasons.clone();
        })?;
        self.config = Arc::new(config);
        self.reasons.clear();
        let look = self.host.look().await;
        self.declare(&look).await;
        tracing::info!(guests = self.declarations.len(), "configuration taken");
        let refused = self.declarations.values().filter_map(|declaration| declaration.declared.spec.clone().err());
        let refused: Vec<Refusal> = refused.flatten().collect();
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    /// What a running daemon cannot change.
    pub(super) fn fits(&self, config: Config) -> Result<Config, Vec<Refusal>> {
        let fixed = [
            ("agent.state_dir", config.agent.state_dir != self.config.agent.state_dir),
            ("agent.control_socket", config.agent.control_socket != self.config.agent.control_socket),
            ("agent.user", config.agent.user != self.config.agent.user),
            ("agent.metrics_listen", config.agent.metrics_listen != self.config.agent.metrics_listen),
            ("cache", config.cache != self.config.cache),
            ("hardware.bind_gpus", config.hardware.bind_gpus != self.config.hardware.bind_gpus),
            ("hardware.root", config.hardware.root != self.config.hardware.root),
            ("tcb", config.tcb != self.config.tcb),
            ("simulate", config.simulate.is_some() != self.config.simulate.is_some()),
        ];
        let changed = fixed.iter().filter(|(_, changed)| *changed);
        let reasons: Vec<Refusal> = changed
            .map(|(field, _)| {
                let detail = "it is read at the agent's start only";
                Refusal::new("config_needs_restart", field, detail, "systemctl restart chrysalis-agent; guests go on")
            })
            .collect();
        if reasons.is_empty() { Ok(config) } else { Err(reasons) }
    }

    pub(super) async fn declare(&mut self, look: &Look) {
        let fronts: Fronts =
            look.fronts.iter().filter_map(|(name, front)| Some((name.clone(), front.listen?))).collect();
        let config = Arc::clone(&self.config);
        let declared = tokio::task::spawn_blocking(move || declare(&config, &fronts)).await;
        match declared {
            Ok(declarations) => self.declarations = declarations,
            Err(error) => tracing::error!("declaring failed, the last declaration holds: {error}"),
        }
        for (name, declaration) in &self.declarations {
            if let Err(reasons) = &declaration.declared.spec {
                reasons
                    .iter()
                    .for_each(|reason| tracing::warn!(guest = %name, code = %reason.code, "refused: {reason}"));
            }
        }
        self.declared_at = Instant::now();
    }

    /// Declares anew what was refused, once in a while: a port may be free by now, a file mended.
    pub(super) async fn redeclare(&mut self, look: &Look) {
        let refused = self.declarations.values().any(|declaration| declaration.declared.spec.is_err());
        let qemu_changed = look
            .guests
            .values()
            .flat_map(|guest| guest.generations.values())
            .any(|seen| seen.failure.iter().flatten().any(|reason| reason.code == QEMU_CHANGED));
        if qemu_changed || (refused && self.declared_at.elapsed() > REDECLARE) {
            self.declare(look).await;
        }
    }

    /// True if the daemon ends now.
    pub(super) fn end(&mut self) -> bool {
        match self.config.agent.on_stop {
            OnStop::Keep => true,
            // The second signal does not wait.
            OnStop::Drain if self.ending => true,
            OnStop::Drain => {
                tracing::info!("draining");
                self.ending = true;
                false
            }
        }
    }
}

const REDECLARE: Duration = Duration::from_secs(60);
