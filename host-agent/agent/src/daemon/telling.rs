// SPDX-License-Identifier: Apache-2.0
//! Telling guests that they shall finish.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet::{GuestName, Observed};
use guest_link::{DrainError, VsockHost, tell_to_drain};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::host::Key;
use crate::record::{LaunchRecord, VSOCK};

/// What guests were told, as far as this process knows. Another daemon tells them again, which does no harm.
#[derive(Default)]
pub(super) struct Tellings(HashMap<Key, Telling>);

enum Telling {
    Asking(JoinHandle<Result<(), DrainError>>),
    /// It said that it does.
    Heard,
    /// It is asked again after a while.
    InVain(Instant),
}

impl Tellings {
    /// Tells the guest of a run directory, which runs as the user `owner`, unless that is under way. `done` is notified when it has answered, or has not.
    pub(super) fn tell(&mut self, key: Key, run_dir: &Path, owner: u32, done: &Arc<Notify>) {
        if matches!(self.0.get(&key), Some(Telling::Asking(_))) {
            return;
        }
        let Ok(record) = LaunchRecord::load(run_dir) else { return };
        let (guest, done) = (place(run_dir, &record), Arc::clone(done));
        let asking = tokio::spawn(async move {
            let told = tell_to_drain(&guest, owner).await;
            done.notify_one();
            told
        });
        if !self.0.contains_key(&key) {
            tracing::info!(guest = %key.0, generation = key.1, "telling it to finish");
        }
        self.0.insert(key, Telling::Asking(asking));
    }

    /// Takes what came of it, and adds to an observation who needs not be told now.
    pub(super) async fn complete(&mut self, guests: &mut BTreeMap<GuestName, Observed>) {
        for (key, telling) in &mut self.0 {
            let Telling::Asking(asking) = telling else { continue };
            if !asking.is_finished() {
                continue;
            }
            *telling = match asking.await {
                Ok(Ok(())) => Telling::Heard,
                Ok(Err(error)) => {
                    tracing::warn!(guest = %key.0, generation = key.1, "its connections have until the deadline: {error}");
                    Telling::InVain(Instant::now())
                }
                Err(_) => Telling::InVain(Instant::now()),
            };
        }
        self.0.retain(|key, telling| {
            let seen = guests.get_mut(&key.0).and_then(|guest| guest.generations.get_mut(&key.1));
            let Some(seen) = seen.filter(|seen| seen.alive) else { return false };
            seen.told_to_finish = match telling {
                Telling::Asking(_) | Telling::Heard => true,
                Telling::InVain(since) => since.elapsed() < AGAIN,
            };
            true
        });
    }

    /// Whether a guest said that it finishes.
    pub(super) fn heard(&self, key: &Key) -> bool {
        matches!(self.0.get(key), Some(Telling::Heard))
    }
}

/// How a guest is reached: the kernel carries its vsock, or the simulation's helper.
fn place(run_dir: &Path, record: &LaunchRecord) -> VsockHost {
    if record.simulated {
        VsockHost::VhostUser { uds_path: run_dir.join(VSOCK) }
    } else {
        VsockHost::Kernel { cid: record.cid }
    }
}

/// A guest that does not answer has an older image, most likely: seldom enough to fill no log.
const AGAIN: Duration = Duration::from_secs(30);
