// SPDX-License-Identifier: Apache-2.0
//! What is acceptable about GPUs, as data. The built-in refusals are no part of it: no policy turns them off.

use serde::{Deserialize, Serialize};

/// A policy (`chrysalis/gpu-policy/v1`). Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuPolicy {
    /// [`GpuPolicy::SCHEMA`].
    pub schema: String,
    /// Generations that are accepted.
    pub architectures: Vec<Architecture>,
    /// Modes that are accepted where the report says one.
    pub modes: Vec<Mode>,
    /// Whether a report must say its mode. Firmware before opaque data version 1 does not.
    pub mode_in_report: Requirement,
    /// Whether the measured guest must state what its driver says of confidential mode and DevTools.
    pub driver_state: Requirement,
    /// Whether a report must repeat the digest of the firmware that holds its key. Old firmware does not.
    pub fwid: Requirement,
    /// Whether every certificate below a root needs a good OCSP answer. An answer that is given always counts.
    pub revocation: Requirement,
    /// Whether a nonce must be given. One that is given always counts.
    pub nonce: Requirement,
    /// Versions of the driver that are accepted; empty for every one that has a manifest.
    pub drivers: Vec<String>,
    /// Versions of the VBIOS that are accepted; empty for every one that has a manifest.
    pub vbioses: Vec<String>,
    /// How many GPUs there must be; `null` for one or more.
    pub gpus: Option<u32>,
    /// How they hang together.
    pub topology: Topology,
}

/// Whether something may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// Its absence refuses.
    Required,
    /// It counts where it is present.
    Optional,
}

/// Generation of a device, by the chip in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// GH100.
    Hopper,
    /// GB100 and its relatives.
    Blackwell,
    /// The NVSwitch LS10. No GPU.
    Nvswitch,
    /// A chip that is not known. No policy accepts it.
    Unknown,
}

/// Use of a GPU in confidential mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One GPU passed through.
    Spt,
    /// Several GPUs passed through.
    Mpt,
    /// Protected PCIe: eight GPUs with their switches.
    Ppcie,
}

/// How the GPUs of a guest hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Each by itself, no switch.
    Independent,
    /// Eight GPUs, each at the same four switches, each switch at the same eight GPUs.
    Ppcie8,
}

/// What the driver tells by NVML inside the measured guest. No part of it is signed by the GPU: it is worth as
/// much as the guest that states it, so it must come from evidence that a TDX quote covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverState {
    /// `ccFeature` is on, or `multiGpuMode` is protected PCIe.
    pub confidential: bool,
    /// `devToolsMode` is on.
    pub dev_tools: bool,
    /// `multiGpuMode` is protected PCIe: what [`Topology::Ppcie8`] needs, and no other topology has.
    pub protected_pcie: bool,
}

/// Why a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Too large.
    #[error("the GPU policy has more than {MAX_GPU_POLICY_LEN} bytes")]
    TooLarge,
    /// Not JSON of this form.
    #[error("the GPU policy: {0}")]
    Json(#[from] serde_json::Error),
    /// Another schema.
    #[error("the GPU policy's schema must be {expected}, found {0:?}", expected = GpuPolicy::SCHEMA)]
    Schema(String),
    /// It can accept nothing.
    #[error("the GPU policy accepts nothing: {0}")]
    Empty(&'static str),
}

impl GpuPolicy {
    /// Name of this form.
    pub const SCHEMA: &'static str = "chrysalis/gpu-policy/v1";

    /// Everything required: for deciding about keys. One GPU.
    #[must_use]
    pub fn strict() -> Self {
        let required = Requirement::Required;
        Self {
            schema: Self::SCHEMA.to_owned(),
            architectures: vec![Architecture::Hopper, Architecture::Blackwell],
            modes: vec![Mode::Spt, Mode::Mpt],
            mode_in_report: required,
            driver_state: required,
            fwid: required,
            revocation: required,
            nonce: required,
            drivers: Vec::new(),
            vbioses: Vec::new(),
            gpus: Some(1),
            topology: Topology::Independent,
        }
    }

    /// What files alone can show, at any number of GPUs: for looking at evidence, not for deciding about keys.
    #[must_use]
    pub fn files_only() -> Self {
        let optional = Requirement::Optional;
        Self {
            mode_in_report: optional,
            driver_state: optional,
            fwid: optional,
            revocation: optional,
            nonce: optional,
            gpus: None,
            ..Self::strict()
        }
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_GPU_POLICY_LEN {
            return Err(PolicyError::TooLarge);
        }
        let policy: Self = serde_json::from_slice(bytes)?;
        policy.check()?;
        Ok(policy)
    }

    /// Whether a policy that was read as a part of another document is one.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule.
    pub fn check(&self) -> Result<(), PolicyError> {
        let policy = self;
        if policy.schema != Self::SCHEMA {
            return Err(PolicyError::Schema(policy.schema.clone()));
        }
        let no_gpu = [Architecture::Nvswitch, Architecture::Unknown];
        if policy.architectures.is_empty() || policy.architectures.iter().any(|found| no_gpu.contains(found)) {
            return Err(PolicyError::Empty("architectures must name hopper or blackwell"));
        }
        if policy.modes.is_empty() {
            return Err(PolicyError::Empty("modes is empty"));
        }
        if policy.gpus == Some(0)
            || (policy.topology == Topology::Ppcie8 && policy.gpus.is_some_and(|count| count != 8))
        {
            return Err(PolicyError::Empty("gpus cannot be met"));
        }
        Ok(())
    }
}

impl Architecture {
    pub(crate) fn of_chip(chip: &str) -> Self {
        match chip {
            "GH100" => Self::Hopper,
            "LS_10" => Self::Nvswitch,
            other if other.starts_with("GB1") || other.starts_with("GB2") => Self::Blackwell,
            _ => Self::Unknown,
        }
    }
}

impl core::fmt::Display for Architecture {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Hopper => "hopper",
            Self::Blackwell => "blackwell",
            Self::Nvswitch => "nvswitch",
            Self::Unknown => "unknown",
        })
    }
}

impl core::fmt::Display for Mode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Spt => "spt",
            Self::Mpt => "mpt",
            Self::Ppcie => "ppcie",
        })
    }
}

/// Largest policy, in bytes.
pub const MAX_GPU_POLICY_LEN: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_back_and_checked() {
        for policy in [GpuPolicy::strict(), GpuPolicy::files_only()] {
            let json = serde_json::to_vec(&policy).unwrap();
            assert_eq!(GpuPolicy::from_json(&json).unwrap(), policy);
        }
        let changes: [(&str, serde_json::Value); 7] = [
            ("schema", "chrysalis/gpu-policy/v2".into()),
            ("architectures", serde_json::json!([])),
            ("architectures", serde_json::json!(["unknown"])),
            ("modes", serde_json::json!([])),
            ("gpus", 0.into()),
            ("allow_dev_tools", true.into()),
            ("revocation", "never".into()),
        ];
        for (field, value) in changes {
            let mut json = serde_json::to_value(GpuPolicy::strict()).unwrap();
            json[field] = value;
            assert!(GpuPolicy::from_json(json.to_string().as_bytes()).is_err(), "{field}");
        }
        assert!(GpuPolicy::from_json(&vec![b' '; MAX_GPU_POLICY_LEN + 1]).is_err());
    }
}
