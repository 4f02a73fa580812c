// SPDX-License-Identifier: Apache-2.0
//! What a guest is for.

use serde::{Deserialize, Serialize};

/// The role of a guest. It stands in every binding, so that evidence of one role is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Answers inference requests.
    Inference,
    /// Runs the attestation service itself. No image has this role yet; every appraisal refuses it today.
    KeyService,
}

impl Role {
    /// The byte that stands for the role in bindings. Numbers are never reused.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Inference => 1,
            Self::KeyService => 2,
        }
    }
}
