// SPDX-License-Identifier: Apache-2.0
//! Trustworthiness claims of AR4SI (draft-ietf-rats-ar4si), as far as a TDX guest and its GPUs can earn them.

use serde::{Deserialize, Serialize};

/// A tier: what a claim, a part or the whole comes to. Later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Nothing is claimed.
    None,
    /// As it should be.
    Affirming,
    /// Known weaknesses, or something that could not be shown.
    Warning,
    /// Refused.
    Contraindicated,
}

/// The vector. Absent claims are not made: nothing is said of `file-system`, `storage-opaque` and `sourced-data`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrustVector {
    /// Whether this very platform or instance is one of those that the policy names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_identity: Option<i8>,
    /// The guest's configuration, or the GPUs' modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<i8>,
    /// What was booted, or a GPU's driver and firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executables: Option<i8>,
    /// The platform and its TCB, or the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<i8>,
    /// Memory at run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_opaque: Option<i8>,
}

impl TrustVector {
    /// The tier of the worst claim.
    #[must_use]
    pub fn tier(&self) -> Tier {
        let Self { instance_identity, configuration, executables, hardware, runtime_opaque } = *self;
        let claims = [instance_identity, configuration, executables, hardware, runtime_opaque];
        claims.into_iter().flatten().map(tier).max().unwrap_or(Tier::None)
    }

    /// Makes a claim, where it is worse than what was claimed before.
    fn worsen(&mut self, place: Place, value: i8) {
        let claim = match place {
            Place::Instance => &mut self.instance_identity,
            Place::Configuration => &mut self.configuration,
            Place::Executables => &mut self.executables,
            Place::Hardware => &mut self.hardware,
            Place::Runtime => &mut self.runtime_opaque,
        };
        *claim = Some(claim.map_or(value, |old| old.max(value)));
    }

    /// Claims what a refusal with this code and field says.
    pub(crate) fn refuse(&mut self, code: &str, field: &str) {
        if let Some((place, value)) = place_of(code, field) {
            self.worsen(place, value);
        }
    }
}

/// AR4SI section 2.3: −1 to 1 no claim, 2 to 31 affirming, 32 to 95 warning, 96 to 127 contraindicated.
fn tier(value: i8) -> Tier {
    match value.unsigned_abs() {
        0 | 1 => Tier::None,
        2..=31 => Tier::Affirming,
        32..=95 => Tier::Warning,
        _ => Tier::Contraindicated,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Instance,
    Configuration,
    Executables,
    Hardware,
    Runtime,
}

/// Which claim a code of a refusal is about, and its value. Codes of owners' rules are about none.
fn place_of(code: &str, field: &str) -> Option<(Place, i8)> {
    use Place::{Configuration, Executables, Hardware, Instance, Runtime};
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| code.starts_with(prefix));
    let has = |words: &[&str]| words.iter().any(|word| code.contains(word));
    Some(match code {
        _ if starts(&["rule"]) => return None,
        _ if starts(&["gpu_", "rim_"]) && has(&["rim", "measurement", "driver_version", "vbios"]) => {
            (Executables, CONTRAINDICATED)
        }
        _ if starts(&["gpu_"]) && has(&["signature"]) => (Hardware, CRYPTO_FAILED),
        _ if starts(&["gpu_"]) && has(&["root", "certificate", "chain", "ocsp", "revoked", "architecture"]) => {
            (Hardware, CONTRAINDICATED)
        }
        "quote_signature"
        | "qe_report_signature"
        | "qe_report_data"
        | "collateral_signature"
        | "crl_invalid"
        | "quote_unverified" => (Hardware, CRYPTO_FAILED),
        "root_untrusted" => (Hardware, UNRECOGNIZED),
        "platform_not_allowed" | "instance_not_allowed" => (Instance, UNRECOGNIZED),
        "tdx_debug_set" => (Runtime, CONTRAINDICATED),
        "register_mismatch" if field == "mr_config_id" => (Configuration, CONTRAINDICATED),
        "hardware_mismatch" => (Executables, CONTRAINDICATED),
        _ if starts(&[
            "tcb_",
            "pck_",
            "certificate_revoked",
            "qe_",
            "tdx_m",
            "tdx_seam",
            "platform_",
            "collateral_",
        ]) =>
        {
            (Hardware, CONTRAINDICATED)
        }
        _ if starts(&["release_", "register_", "rtmr3_", "keys_closed", "shape_"]) => (Executables, CONTRAINDICATED),
        _ if starts(&["binding_", "report_data", "quote_", "freshness_", "hpke_", "certificate_", "evidence_"]) => {
            (Instance, CONTRAINDICATED)
        }
        _ => (Configuration, CONTRAINDICATED),
    })
}

pub(crate) const APPROVED: i8 = 2;
/// Executables: what was loaded during boot. Configuration: no known weakness, though not all of it is approved.
pub(crate) const APPROVED_BOOT: i8 = 3;
pub(crate) const UNSAFE: i8 = 32;
const CONTRAINDICATED: i8 = 96;
const UNRECOGNIZED: i8 = 97;
const CRYPTO_FAILED: i8 = 99;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_and_places() {
        let tiers = [-1, 0, 1, 2, 31, 32, 95, 96, 127].map(tier);
        use Tier::{Affirming as A, Contraindicated as C, None as N, Warning as W};
        assert_eq!(tiers, [N, N, N, A, A, W, W, C, C]);
        for (code, field, place, value) in [
            ("quote_signature", "", Place::Hardware, 99),
            ("tcb_out_of_date", "", Place::Hardware, 96),
            ("root_untrusted", "", Place::Hardware, 97),
            ("tdx_debug_set", "", Place::Runtime, 96),
            ("register_mismatch", "rtmr_1", Place::Executables, 96),
            ("register_mismatch", "mr_config_id", Place::Configuration, 96),
            ("binding_mismatch", "", Place::Instance, 96),
            ("platform_not_allowed", "", Place::Instance, 97),
            ("gpu_report_signature", "", Place::Hardware, 99),
            ("gpu_measurement_mismatch", "", Place::Executables, 96),
            ("anything_else", "", Place::Configuration, 96),
        ] {
            assert_eq!(place_of(code, field), Some((place, value)), "{code}");
        }
        assert_eq!(place_of("rule_denied", "rules"), None);
        let mut vector = TrustVector { hardware: Some(2), ..TrustVector::default() };
        vector.refuse("tcb_out_of_date", "");
        vector.refuse("quote_signature", "");
        vector.refuse("tcb_revoked", "");
        assert_eq!((vector.hardware, vector.tier()), (Some(99), C), "the worst counts");
    }
}
