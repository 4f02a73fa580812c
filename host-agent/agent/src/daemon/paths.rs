// SPDX-License-Identifier: Apache-2.0
//! Where things are below the state directory, and what is written about a generation.
//!
//! ```text
//! agent.pid, state.json          the daemon's lock and memory
//! gpus/                          journal of the GPUs that the agent bound
//! releases/<digest>/             copies of releases
//! guests/NAME/front.pid, .sock   the front
//! guests/NAME/gN/                run directory of generation N
//! ```

use std::path::{Path, PathBuf};

use fleet::GuestName;
use serde::{Deserialize, Serialize};
use types::{Blake3Digest, Refusal, Sha256Digest};

use crate::account::Account;
use crate::files;
use crate::limits::Groups;

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
    /// Whom guests run as.
    pub(crate) account: Account,
    /// Where guests' control groups are.
    pub(crate) groups: Option<Groups>,
}

impl Paths {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.to_owned(), account: Account::Own, groups: None }
    }

    /// The same, with directories that `account` can reach, and groups in which guests have limits.
    pub(crate) fn shared_with(self, account: Account, groups: Option<Groups>) -> Result<Self, Refusal> {
        let refuse = |detail: String, fix: &str| Refusal::new("state_directory_closed", "agent.user", detail, fix);
        for directory in [&self.root, &self.guests()] {
            let entered = account.lets_enter(directory);
            entered.map_err(|error| refuse(format!("{error:#}"), "name an agent.state_dir that is root's own"))?;
        }
        if let Some(directory) = account.stopped_at(&self.root) {
            let detail = format!("guests' user cannot pass {}", directory.display());
            return Err(refuse(detail, "let everybody pass it (`chmod o+x`), or name another agent.state_dir"));
        }
        Ok(Self { account, groups, ..self })
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("agent.pid")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// What the agent itself bound: a journal.
    pub(crate) fn gpus(&self) -> PathBuf {
        self.root.join("gpus")
    }

    pub(crate) fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    pub(crate) fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    pub(crate) fn guest(&self, guest: &GuestName) -> PathBuf {
        self.guests().join(guest.as_str())
    }

    pub(crate) fn run_dir(&self, guest: &GuestName, generation: u64) -> PathBuf {
        self.guest(guest).join(format!("g{generation}"))
    }

    /// Guests that have a directory.
    pub(crate) fn guest_names(&self) -> Vec<GuestName> {
        names(&self.guests()).filter_map(|name| name.parse().ok()).collect()
    }

    /// Generations that have a run directory. What another user put there under such a name is none.
    pub(crate) fn generations(&self, guest: &GuestName) -> Vec<u64> {
        let numbers = names(&self.guest(guest)).filter_map(|name| name.strip_prefix('g')?.parse().ok());
        numbers.filter(|number| files::is_own_directory(&self.run_dir(guest, *number))).collect()
    }
}

fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// `plan.json` of a run directory: what the daemon composed it of, beside the launch record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunPlan {
    pub(crate) spec: Sha256Digest,
    pub(crate) release: Sha256Digest,
    pub(crate) model: String,
    pub(crate) pack: Blake3Digest,
    pub(crate) unpublished_shape: bool,
    pub(crate) boot_deadline_s: u64,
    /// Plans from before there was such a deadline have none.
    #[serde(default)]
    pub(crate) silence_deadline_s: u64,
}

impl RunPlan {
    pub(crate) fn load(run_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&files::read_shared(&run_dir.join(FILE), MAX).ok()?).ok()
    }

    pub(crate) fn store(&self, run_dir: &Path) -> anyhow::Result<()> {
        files::write_atomically(&run_dir.join(FILE), &serde_json::to_vec(self)?)
    }
}

const FILE: &str = "plan.json";
const MAX: usize = 16 * 1024;
