// SPDX-License-Identifier: Apache-2.0
//! The daemon's memory on the disk. What is not in it was not decided.

use std::path::Path;

use anyhow::Context as _;
use fleet::FleetState;
use types::{Document as _, Refusal};

use crate::files;

/// What an earlier daemon wrote, or nothing.
pub(crate) fn load(path: &Path, boot: &str) -> anyhow::Result<FleetState> {
    let mut state = match std::fs::exists(path) {
        Ok(true) => {
            let bytes = files::read_capped(path, FleetState::MAX_BYTES)?;
            FleetState::from_canonical(&bytes).with_context(|| {
                format!("{} is damaged: remove it, and guests that run are started anew", path.display())
            })?
        }
        _ => FleetState::new(boot),
    };
    state.enter_boot(boot);
    Ok(state)
}

/// Writes the state down. It is on the disk when this returns.
pub(crate) fn store(path: &Path, state: &FleetState) -> Result<(), Refusal> {
    let bytes = state.to_canonical().map_err(|error| {
        let fix = "stop the daemon, move state.json away and start it: guests are started anew; show it to the \
                   publisher of the agent";
        Refusal::new(NOT_WRITABLE, FIELD, error.to_string(), fix)
    })?;
    files::write_atomically(path, &bytes).map_err(|error| {
        Refusal::new(NOT_WRITTEN, FIELD, format!("{error:#}"), "make room and check the rights of agent.state_dir")
    })
}

/// Whether a reason says that the state could not be written: then nothing is changed on this host.
pub(crate) fn says_unwritten(reason: &Refusal) -> bool {
    [NOT_WRITTEN, NOT_WRITABLE].contains(&reason.code.as_str())
}

/// The file could not be written.
const NOT_WRITTEN: &str = "state_not_written";
/// The state has no canonical form: room on the disk does not help.
const NOT_WRITABLE: &str = "state_not_canonical";
const FIELD: &str = "agent.state_dir";

#[cfg(test)]
mod tests {
    use fleet::GuestState;

    use super::*;

    #[test]
    fn a_full_disk_and_a_state_without_a_form_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let mut state = FleetState::new("boot");
        store(&path, &state).unwrap();
        assert_eq!(load(&path, "boot").unwrap(), state);
        let nowhere = store(&directory.path().join("none/state.json"), &state).unwrap_err();
        let guest = GuestState { drain_ms: 1 << 53, ..GuestState::default() };
        state.guests.insert("a".parse().unwrap(), guest);
        let formless = store(&path, &state).unwrap_err();
        assert_eq!((nowhere.code.as_str(), formless.code.as_str()), ("state_not_written", "state_not_canonical"));
        assert!(says_unwritten(&nowhere) && says_unwritten(&formless) && nowhere.fix != formless.fix);
        assert!(load(&path, "boot").unwrap().guests.is_empty(), "the old one stays");
    }
}
