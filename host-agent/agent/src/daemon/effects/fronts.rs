// SPDX-License-Identifier: Apache-2.0
//! Fronts: the processes that listen for clients.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet::GuestName;
use rustix::process::Signal;
use types::{Refusal, config::ClientAddress};

use super::super::host::Look;
use super::super::keeper;
use super::super::paths::Paths;
use super::Effects;
use crate::account::Extra;
use crate::claim::Claim;
use crate::files;
use crate::front::{self, FrontRequest, FrontStatus};
use crate::record::PID_FILE;

/// A front that was started by this process.
pub(super) struct Front {
    pub(super) child: Option<tokio::process::Child>,
    log: PathBuf,
    listen: SocketAddrV4,
    started: Instant,
    /// Not to be started before.
    pub(super) not_before: Option<Instant>,
    reason: Option<Refusal>,
}

impl Front {
    /// Notes whether it ended, and why.
    pub(super) fn look(&mut self) {
        let Some(child) = &mut self.child else { return };
        if matches!(child.try_wait(), Ok(None)) {
            return;
        }
        self.child = None;
        if self.started.elapsed() < FRONT_SETTLED {
            let text =
                String::from_utf8_lossy(&files::read_shared(&self.log, 64 * 1024).unwrap_or_default()).into_owned();
            // Of a front that could not begin; what it says is its own word, and only this is looked for in it.
            let taken = format!("(os error {})", nix::errno::Errno::EADDRINUSE as i32);
            let code = if text.contains(&taken) { "port_taken" } else { NOT_STARTED };
            self.failed(code, text.lines().last().unwrap_or("it ended without a word"));
        }
    }

    fn failed(&mut self, code: &str, detail: &str) {
        tracing::warn!(listen = %self.listen, "front: {detail}");
        let fix = match code {
            NOT_STARTED => "see front.log (`host-agent logs`); a port below 1024 must be allowed to the agent's unit",
            _ => "end what listens there (`ss -ltnp`), or choose another port",
        };
        let field = format!("guests.listen {}", self.listen);
        self.reason = Some(Refusal::new(code, &field, detail, fix));
        self.not_before = Some(Instant::now() + FRONT_PAUSE);
    }
}

impl Effects {
    /// Has the front listen where it is declared now, if that changed.
    pub(crate) fn move_front(&self, guest: &GuestName, listen: SocketAddrV4) {
        self.ask_front(guest, FrontRequest::Listen(listen));
    }

    /// Why a guest's front does not listen, if that is known.
    pub(crate) fn front_reason(&self, guest: &GuestName) -> Option<Refusal> {
        self.fronts.get(guest)?.reason.clone()
    }

    pub(super) fn start_front(&mut self, guest: &GuestName, listen: SocketAddrV4) {
        let directory = self.paths.guest(guest);
        let log = directory.join("front.log");
        let started = self.paths.account.directory(&directory).and_then(|()| {
            front::make_room(&directory, self.paths.account.uid())?;
            let mut command = keeper::own_program(&self.paths.account, Extra::LowPorts, None)?;
            command.arg("front").arg("--dir").arg(&directory).args(["--listen", &listen.to_string()]);
            keeper::detached(command, &log)
        });
        let now = Instant::now();
        let mut front = Front { child: None, log, listen, started: now, not_before: None, reason: None };
        match started {
            Ok(child) => front.child = Some(child),
            Err(error) => front.failed(NOT_STARTED, &format!("{error:#}")),
        }
        self.fronts.insert(guest.clone(), front);
    }

    /// Has new connections go to a generation, in the form that this one takes.
    pub(super) fn point_front(&self, guest: &GuestName, target: Option<(u64, SocketAddrV4)>, look: &Look) {
        let Some(target) = target else { return self.ask_front(guest, FrontRequest::Point(None)) };
        match look.forms.get(&(guest.clone(), target.0)) {
            Some(ClientAddress::ProxyProtocol) => {}
            Some(ClientAddress::Connection) => return self.ask_front(guest, FrontRequest::Point(Some(target))),
            None => return,
        }
        let (guest, paths, wake) = (guest.clone(), self.paths.clone(), Arc::clone(&self.wake));
        tokio::spawn(async move {
            let (directory, owner) = (paths.guest(&guest), paths.account.uid());
            let answer = front::ask(&directory, owner, &FrontRequest::PointWithHeader(target)).await;
            if let Some(status) = answer.filter(|status| status.error.is_some()) {
                replace_when_idle(&paths, &guest, &status);
            }
            wake.notify_one();
        });
    }

    pub(super) fn ask_front(&self, guest: &GuestName, request: FrontRequest) {
        let (directory, wake) = (self.paths.guest(guest), Arc::clone(&self.wake));
        let owner = self.paths.account.uid();
        tokio::spawn(async move {
            if let Some(error) = front::ask(&directory, owner, &request).await.and_then(|status| status.error) {
                tracing::warn!(directory = %directory.display(), "{error}");
            }
            wake.notify_one();
        });
    }
}

/// Ends a front that writes no headers, so that one that does takes its place: with a guest that wants them it is of no use.
/// It is left alone as long as clients of an earlier generation are served by it.
fn replace_when_idle(paths: &Paths, guest: &GuestName, status: &FrontStatus) {
    let lives = |generation: u64| Claim::holder(&paths.run_dir(guest, generation).join(PID_FILE)).is_some();
    if status.connections.iter().any(|(generation, open)| *open > 0 && lives(*generation)) {
        tracing::debug!(%guest, "its front is of an earlier version and has connections yet");
        return;
    }
    let Some(holder) = Claim::holder(&paths.guest(guest).join(front::PID_FILE)) else { return };
    if holder.signal(Signal::TERM, paths.account.uid()) {
        tracing::warn!(
            %guest, code = OUTDATED,
            "the front is of an earlier version, which cannot tell the guest whose connections are: it is ended, and another one started"
        );
    }
}

/// Code of a front that does not know what is asked of it.
const OUTDATED: &str = "front_outdated";
/// Code of a front that did not come up for another reason than its port.
const NOT_STARTED: &str = "front_not_started";
/// A front that lived this long was well.
const FRONT_SETTLED: Duration = Duration::from_secs(2);
const FRONT_PAUSE: Duration = Duration::from_secs(5);
