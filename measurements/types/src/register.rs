// SPDX-License-Identifier: Apache-2.0
//! The measurement registers of a trust domain, by name.

use serde::{Deserialize, Serialize};

use crate::Sha384Digest;

/// A measurement register. Names are trustee's claim names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub enum RegisterName {
    MrTd,
    #[serde(rename = "rtmr_0")]
    Rtmr0,
    #[serde(rename = "rtmr_1")]
    Rtmr1,
    #[serde(rename = "rtmr_2")]
    Rtmr2,
    #[serde(rename = "rtmr_3")]
    Rtmr3,
    MrConfigId,
    MrOwner,
    MrOwnerConfig,
}

impl RegisterName {
    /// Every register, in the order in which they are reported.
    pub const ALL: [Self; 8] = [
        Self::MrTd,
        Self::Rtmr0,
        Self::Rtmr1,
        Self::Rtmr2,
        Self::Rtmr3,
        Self::MrConfigId,
        Self::MrOwner,
        Self::MrOwnerConfig,
    ];

    /// The name as it stands in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MrTd => "mr_td",
            Self::Rtmr0 => "rtmr_0",
            Self::Rtmr1 => "rtmr_1",
            Self::Rtmr2 => "rtmr_2",
            Self::Rtmr3 => "rtmr_3",
            Self::MrConfigId => "mr_config_id",
            Self::MrOwner => "mr_owner",
            Self::MrOwnerConfig => "mr_owner_config",
        }
    }
}

impl core::fmt::Display for RegisterName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each measurement register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the registers of `RegisterName`")]
pub struct Registers {
    pub mr_td: Sha384Digest,
    pub rtmr_0: Sha384Digest,
    pub rtmr_1: Sha384Digest,
    pub rtmr_2: Sha384Digest,
    pub rtmr_3: Sha384Digest,
    pub mr_config_id: Sha384Digest,
    pub mr_owner: Sha384Digest,
    pub mr_owner_config: Sha384Digest,
}

impl Registers {
    /// The value of one register.
    #[must_use]
    pub const fn value(&self, name: RegisterName) -> &Sha384Digest {
        match name {
            RegisterName::MrTd => &self.mr_td,
            RegisterName::Rtmr0 => &self.rtmr_0,
            RegisterName::Rtmr1 => &self.rtmr_1,
            RegisterName::Rtmr2 => &self.rtmr_2,
            RegisterName::Rtmr3 => &self.rtmr_3,
            RegisterName::MrConfigId => &self.mr_config_id,
            RegisterName::MrOwner => &self.mr_owner,
            RegisterName::MrOwnerConfig => &self.mr_owner_config,
        }
    }
}
