// SPDX-License-Identifier: Apache-2.0
//! Starts the server, finds out when it is healthy, and starts it again when it is not any more.

use crate::{
    Places, Server,
    serving::RunError,
    work::{Alive, Desk},
};
use linux_sys::process::end_with_this_thread;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{path::Path, process::Stdio, rc::Rc, time::Duration};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// Keeps a server running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) server: Server,
    pub(crate) places: Places,
    pub(crate) desk: Rc<Desk>,
    /// The server as requests find it; nothing while none is healthy.
    pub(crate) alive: watch::Sender<Option<Rc<Alive>>>,
}

/// A server, and all that it has started in its group. They end with this.
struct Group {
    leader: Child,
    id: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // There may be nobody left in it.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

impl Supervisor {
    /// Runs until the server cannot be kept running.
    pub(crate) async fn run(self) -> RunError {
        let (mut ends, mut failures) = (0_u32, 0_u32);
        for number in 0_u64.. {
            // A name of its own each time: what is left of the last one is in nobody's way.
            let name = format!("upstream-{number}.sock");
            let socket = self.places.socket.with_file_name(name);
            let mut group = match self.start(&socket) {
                Ok(group) => group,
                Err(error) => return RunError::Start(error.kind()),
            };
            let lived = self.watch(&mut group, &socket).await;
            self.alive.send_replace(None);
            drop(group);
            failures = if lived.is_some() { 0 } else { failures.saturating_add(1) };
            if failures >= MAX_FAILURES {
                break;
            }
            ends = if lived.is_some_and(|lived| lived >= LONG_LIFE) { 1 } else { ends.saturating_add(1) };
            sleep(FIRST_PAUSE.saturating_mul(1_u32.checked_shl(ends.saturating_sub(1).min(7)).unwrap_or(1))).await;
        }
        RunError::NeverHealthy
    }

    /// Its standard streams go nowhere: what it prints may hold a prompt.
    fn start(&self, socket: &Path) -> std::io::Result<Group> {
        let mut command = Command::new(&self.server.program);
        // Should this process be killed. When it ends otherwise, the group does.
        end_with_this_thread(command.as_std_mut());
        let leader = command
            .args(self.server.arguments(&self.places, socket))
            .env_clear()
            .envs(self.server.environment(&self.places, socket))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let id = leader.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Group { leader, id })
    }

    /// Waits for its end, or ends it. Gives how long it was healthy, if ever.
    async fn watch(&self, group: &mut Group, socket: &Path) -> Option<Duration> {
        let alive = tokio::select! {
            alive = timeout(self.server.start(), self.healthy(socket)) => alive.ok()??,
            _ = group.leader.wait() => return None,
        };
        self.alive.send_replace(Some(Rc::new(alive)));
        let since = Instant::now();
        tokio::select! {
            () = self.unwell(socket) => {}
            _ = group.leader.wait() => {}
        }
        Some(since.elapsed())
    }

    /// Waits until the server is healthy; `None` when it cannot do what it will be asked.
    async fn healthy(&self, socket: &Path) -> Option<Alive> {
        while !self.desk.is_well(socket).await {
            sleep(LOOK_AGAIN).await;
        }
        self.desk.meet(socket.to_path_buf()).await
    }

    /// Waits until the server is not well any more: it says so three times in a row, or once after it kept silent.
    async fn unwell(&self, socket: &Path) {
        let mut misses = 0_u32;
        while misses < MAX_MISSES {
            let is_suspect = timeout(LOOK_AFTER, self.desk.suspects.notified()).await.is_ok();
            misses = match self.desk.is_well(socket).await {
                true => 0,
                false if is_suspect => MAX_MISSES,
                false => misses.saturating_add(1),
            };
        }
    }
}

/// Starts in a row after which it never was healthy.
const MAX_FAILURES: u32 = 5;
/// Doubles with each end, up to half a minute.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Who was healthy for so long has not failed by what made it fail before.
const LONG_LIFE: Duration = Duration::from_secs(300);
/// Between two looks at a server that starts.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two looks at a server that is healthy.
const LOOK_AFTER: Duration = Duration::from_secs(10);
const MAX_MISSES: u32 = 3;
