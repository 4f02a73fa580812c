// SPDX-License-Identifier: Apache-2.0
//! Passing GPUs on to guests: bound before a guest starts, given back when no guest is to have them any more.
//!
//! What the agent binds is in a journal of its own, below its state directory, written before each change. What somebody
//! else bound (`host-agent gpu bind`, the unit at boot) is used as it is and never given back from here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use types::Refusal;
use vfio::{
    BindError, Binder, HostTree, Journal, Outcome, PciAddress, SysfsWriter, TreeError, device_nodes, inventory,
};

use crate::account::Account;

/// How sysfs below a root is written to.
pub type OpenSysfs = fn(&Path) -> Result<Box<dyn SysfsWriter>, TreeError>;

/// The kernel's own.
pub(crate) fn kernel(root: &Path) -> Result<Box<dyn SysfsWriter>, TreeError> {
    Ok(Box::new(HostTree::open(root)?))
}

/// Who binds for guests.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    pub(crate) root: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) sysfs: OpenSysfs,
}

impl Hands {
    /// Has the GPUs bound, with nodes that the account can open.
    ///
    /// # Errors
    /// Why they can't be, in the words of `host-agent gpu bind`.
    pub(crate) fn bind(&self, gpus: &[PciAddress], account: &Account) -> Result<(), Vec<Refusal>> {
        let outcome = self.change(|binder| binder.bind(gpus)).map_err(|error| error.refusals())?;
        tell("bound for a guest", &outcome);
        account.locks_memory();
        let closed = |detail: String| {
            let fix = "host-agent gpu udev-rule --group GROUP --install, with a group that agent.user is in";
            vec![Refusal::new("permission_missing", "guests.gpus", detail, fix)]
        };
        for node in self.nodes(gpus) {
            match account.lets_open(&node) {
                Ok(true) => {}
                Ok(false) => return Err(closed(format!("{} is another group's", node.display()))),
                Err(error) => return Err(closed(format!("{error:#}"))),
            }
        }
        Ok(())
    }

    /// The device nodes of GPUs that are bound.
    fn nodes(&self, gpus: &[PciAddress]) -> BTreeSet<PathBuf> {
        let Ok(tree) = HostTree::open(&self.root) else { return BTreeSet::new() };
        let devices = inventory(&tree).unwrap_or_default();
        let wanted = devices.iter().filter(|device| gpus.contains(&device.address));
        let nodes = wanted.flat_map(|device| device_nodes(&tree, device));
        nodes.map(|node| self.root.join(node.path)).collect()
    }

    /// Gives back what nobody of `wanted` is to have. `wanted` is asked while nobody else binds, so that no guest that is
    /// being started is overlooked.
    ///
    /// # Errors
    /// What could not be given back, and why; it is tried again.
    pub(crate) fn release(&self, wanted: impl FnOnce() -> Vec<PciAddress>) -> Result<(), Vec<Refusal>> {
        if !self.journal.exists() {
            return Ok(());
        }
        let outcome = self.change(|binder| binder.release(&wanted())).map_err(|error| error.refusals())?;
        tell("given back to the host", &outcome);
        if outcome.not_recovered.is_empty() { Ok(()) } else { Err(outcome.not_recovered) }
    }

    fn change(&self, action: impl FnOnce(&mut Binder<'_>) -> Result<Outcome, BindError>) -> Result<Outcome, BindError> {
        // The journal is one process's; in this one, one thread's.
        let _alone = BINDING.lock().unwrap_or_else(PoisonError::into_inner);
        let tree = HostTree::open(&self.root)?;
        let writer = (self.sysfs)(&self.root)?;
        action(&mut Binder::new(&tree, writer.as_ref(), Journal::open(&self.journal, &tree)?))
    }
}

/// Whether all of the GPUs can be had over iommufd.
pub(crate) fn over_iommufd(root: &Path, gpus: &[PciAddress]) -> bool {
    let Ok(tree) = HostTree::open(root) else { return false };
    let Ok(devices) = inventory(&tree) else { return false };
    let has = |address: &PciAddress| {
        let device = devices.iter().find(|device| device.address == *address);
        device.is_some_and(|device| device_nodes(&tree, device).iter().any(|node| node.path == "dev/iommu"))
    };
    !gpus.is_empty() && gpus.iter().all(has)
}

fn tell(what: &str, outcome: &Outcome) {
    for address in &outcome.changed {
        tracing::info!(gpu = %address, "{what}");
    }
    for address in &outcome.recovered {
        tracing::warn!(gpu = %address, "an interrupted change was undone");
    }
    for reason in &outcome.not_recovered {
        tracing::warn!(code = %reason.code, "a GPU stays bound: {reason}");
    }
}

static BINDING: Mutex<()> = Mutex::new(());
