// SPDX-License-Identifier: Apache-2.0
//! A service as one of several on one store.

use super::{Service, StartError};

impl Service {
    /// Takes the place of whatever replica had this name: its challenges are void from here. Nothing on a store that is
    /// not shared.
    ///
    /// # Errors
    /// The store.
    pub fn name_replica(&mut self, name: &str) -> Result<(), StartError> {
        if let Some(shared) = self.tokens.shared_mut() {
            self.store.enter_replica(&shared.id, name)?;
            name.clone_into(&mut shared.name);
        }
        Ok(())
    }

    /// Says that this replica runs; others void what it made when it does not for a quarter of a minute. Enters in the
    /// audit log what the operator changed beside it, where nothing else was to be entered meanwhile.
    pub fn beat(&self) {
        if let Err(error) = self.store.enter_changes() {
            tracing::warn!(code = "audit_unavailable", %error, "changes of the operator are not in the audit log yet");
        }
        if let Some(shared) = self.tokens.shared()
            && let Err(error) = self.store.beat_replica(&shared.id, &shared.name)
        {
            tracing::warn!(code = "store_unavailable", %error, "other replicas can't be told that this one runs");
        }
    }

    /// Says that this replica ends: its challenges are void.
    pub fn leave(&self) {
        if let Some(shared) = self.tokens.shared()
            && let Err(error) = self.store.leave_replica(&shared.id)
        {
            tracing::warn!(code = "store_unavailable", %error, "other replicas can't be told that this one ends");
        }
    }
}
