// SPDX-License-Identifier: Apache-2.0
//! What an owner may decide about platforms. What is never acceptable stands in [`crate::body`] and cannot be
//! switched off here.

use serde::{Deserialize, Serialize};
use tdx_spec::QuoteVersion;
use types::Sha256Digest;

use crate::fault::QuoteFault;

/// Which platforms are acceptable. The default accepts any platform that is up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformPolicy {
    /// Accepted TCB statuses; `UpToDate` alone by default.
    #[serde(default = "up_to_date_only")]
    pub tcb: Vec<AcceptedTcb>,
    /// Intel security advisories (as in `INTEL-SA-00837`) that are refused even on an accepted status.
    #[serde(default)]
    pub refused_advisories: Vec<String>,
    /// Collateral with a smaller `tcbEvaluationDataNumber` is refused as rolled back.
    #[serde(default)]
    pub min_tcb_evaluation_data_number: u32,
    /// The only platforms accepted, by [`crate::VerifiedQuote::platform`]; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platforms: Option<Vec<Sha256Digest>>,
    /// The only versions of quotes accepted, of 4 and 5; absent for both. Version 4 does not carry the fields of TDX
    /// 1.5, so that a service TD does not show in it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "quote_versions")]
    pub quote_versions: Option<Vec<QuoteVersion>>,
}

/// A TCB status that is accepted, for ever or until a date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedTcb {
    /// The status.
    pub status: TcbStatus,
    /// Seconds since 1970 at which the grace ends; absent for no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// TCB status of a platform, with Intel's names. `Revoked` is not among them: nothing accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Intel's own")]
pub enum TcbStatus {
    UpToDate,
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    ConfigurationNeeded,
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    #[serde(rename = "TDRelaunchAdvised")]
    TdRelaunchAdvised,
    #[serde(rename = "TDRelaunchAdvisedConfigurationNeeded")]
    TdRelaunchAdvisedConfigurationNeeded,
}

/// The TCB of a platform as the collateral judges it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tcb {
    /// Platform and quoting enclave together.
    pub status: TcbStatus,
    /// Advisories that concern it, sorted.
    pub advisories: Vec<String>,
    /// Smaller of the two `tcbEvaluationDataNumber`s of the collateral.
    pub evaluation_data_number: u32,
    /// Date of the matched TCB level, seconds since 1970.
    pub date: u64,
}

impl Default for PlatformPolicy {
    fn default() -> Self {
        Self {
            tcb: up_to_date_only(),
            refused_advisories: Vec::new(),
            min_tcb_evaluation_data_number: 0,
            platforms: None,
            quote_versions: None,
        }
    }
}

impl PlatformPolicy {
    /// All rules that a platform with this TCB, and a quote of this version, break at `now`. A verified quote broke none when
    /// it was verified.
    #[must_use]
    pub fn judge(&self, version: QuoteVersion, tcb: &Tcb, platform: &Sha256Digest, now: u64) -> Vec<QuoteFault> {
        let Self { tcb: accepted, refused_advisories, min_tcb_evaluation_data_number, platforms, quote_versions } =
            self;
        let mut faults = Vec::new();
        if let Some(versions) = quote_versions.as_ref().filter(|versions| !versions.contains(&version)) {
            let allowed = versions.iter().map(|version| number(*version)).collect();
            faults.push(QuoteFault::QuoteVersionNotAllowed { allowed, found: number(version) });
        }
        let minimum = *min_tcb_evaluation_data_number;
        if tcb.evaluation_data_number < minimum {
            faults.push(QuoteFault::CollateralRollback { minimum, found: tcb.evaluation_data_number });
        }
        let mut grace_ended = None;
        let fits = accepted.iter().filter(|a| a.status == tcb.status).any(|a| {
            let holds = a.until.is_none_or(|until| now < until);
            if !holds {
                grace_ended = a.until;
            }
            holds
        });
        if !fits {
            faults.push(QuoteFault::TcbStatus { status: tcb.status, date: tcb.date, grace_ended });
        }
        for advisory in &tcb.advisories {
            if refused_advisories.iter().any(|refused| refused.eq_ignore_ascii_case(advisory)) {
                faults.push(QuoteFault::Advisory(advisory.clone()));
            }
        }
        if platforms.as_ref().is_some_and(|list| !list.contains(platform)) {
            faults.push(QuoteFault::PlatformNotAllowed(*platform));
        }
        faults
    }
}

impl TcbStatus {
    /// Intel's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::TdRelaunchAdvised => "TDRelaunchAdvised",
            Self::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
        }
    }

    pub(crate) const fn from_collateral(status: dcap_qvl::TcbStatus) -> Option<Self> {
        use dcap_qvl::TcbStatus as Q;
        Some(match status {
            Q::UpToDate => Self::UpToDate,
            Q::SWHardeningNeeded => Self::SwHardeningNeeded,
            Q::ConfigurationNeeded => Self::ConfigurationNeeded,
            Q::ConfigurationAndSWHardeningNeeded => Self::ConfigurationAndSwHardeningNeeded,
            Q::OutOfDate => Self::OutOfDate,
            Q::OutOfDateConfigurationNeeded => Self::OutOfDateConfigurationNeeded,
            Q::TDRelaunchAdvised => Self::TdRelaunchAdvised,
            Q::TDRelaunchAdvisedConfigurationNeeded => Self::TdRelaunchAdvisedConfigurationNeeded,
            Q::Revoked => return None,
        })
    }
}

impl core::fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

const fn number(version: QuoteVersion) -> u16 {
    match version {
        QuoteVersion::V4 => 4,
        QuoteVersion::V5 => 5,
    }
}

/// Versions of quotes as their numbers.
mod quote_versions {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use tdx_spec::QuoteVersion;

    pub(super) fn serialize<S: Serializer>(
        versions: &Option<Vec<QuoteVersion>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let numbers: Option<Vec<u16>> =
            versions.as_ref().map(|versions| versions.iter().map(|version| super::number(*version)).collect());
        numbers.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<QuoteVersion>>, D::Error> {
        let version = |number| match number {
            4 => Ok(QuoteVersion::V4),
            5 => Ok(QuoteVersion::V5),
            _ => Err(D::Error::custom("a version of quotes is 4 or 5")),
        };
        let numbers: Option<Vec<u16>> = Option::deserialize(deserializer)?;
        numbers.map(|numbers| numbers.into_iter().map(version).collect()).transpose()
    }
}

fn up_to_date_only() -> Vec<AcceptedTcb> {
    vec![AcceptedTcb { status: TcbStatus::UpToDate, until: None }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcb(status: TcbStatus) -> Tcb {
        Tcb { status, advisories: vec!["INTEL-SA-00837".into()], evaluation_data_number: 17, date: 0 }
    }

    fn codes(policy: &PlatformPolicy, status: TcbStatus, now: u64) -> Vec<&'static str> {
        policy
            .judge(QuoteVersion::V4, &tcb(status), &Sha256Digest::of(b"p"), now)
            .iter()
            .map(QuoteFault::code)
            .collect()
    }

    #[test]
    fn the_default_accepts_up_to_date_only() {
        let policy = PlatformPolicy::default();
        assert_eq!(codes(&policy, TcbStatus::UpToDate, 0), [""; 0]);
        assert_eq!(codes(&policy, TcbStatus::OutOfDate, 0), ["tcb_out_of_date"]);
        assert_eq!(codes(&policy, TcbStatus::SwHardeningNeeded, 0), ["tcb_status"]);
        assert_eq!(serde_json::from_str::<PlatformPolicy>("{}").unwrap(), policy);
        assert!(serde_json::from_str::<PlatformPolicy>(r#"{"allow_debug":true}"#).is_err());
        assert!(serde_json::from_str::<PlatformPolicy>(r#"{"tcb":[{"status":"Revoked"}]}"#).is_err());
    }

    /// Attack 19: inside and outside of the grace period.
    #[test]
    fn grace_ends_at_its_date() {
        let text = r#"{"tcb":[{"status":"UpToDate"},{"status":"OutOfDate","until":100}]}"#;
        let policy: PlatformPolicy = serde_json::from_str(text).unwrap();
        assert_eq!(codes(&policy, TcbStatus::OutOfDate, 99), [""; 0]);
        assert_eq!(codes(&policy, TcbStatus::OutOfDate, 100), ["tcb_grace_ended"]);
    }

    /// Attack 12: another version than the policy asks for.
    #[test]
    fn a_policy_can_demand_a_version_of_quotes() {
        let only_5: PlatformPolicy = serde_json::from_str(r#"{"quote_versions":[5]}"#).unwrap();
        assert_eq!(codes(&only_5, TcbStatus::UpToDate, 0), ["quote_version_not_allowed"]);
        let both: PlatformPolicy = serde_json::from_str(r#"{"quote_versions":[4,5]}"#).unwrap();
        assert_eq!(codes(&both, TcbStatus::UpToDate, 0), [""; 0]);
        assert_eq!(serde_json::to_value(&only_5).unwrap()["quote_versions"], serde_json::json!([5]));
        assert!(serde_json::to_value(PlatformPolicy::default()).unwrap().get("quote_versions").is_none());
        for bad in [r#"{"quote_versions":[3]}"#, r#"{"quote_versions":["5"]}"#] {
            assert!(serde_json::from_str::<PlatformPolicy>(bad).is_err(), "{bad}");
        }
    }

    /// Attacks 15 and 18, and the platform list.
    #[test]
    fn rollback_advisories_and_platforms() {
        let policy = PlatformPolicy {
            refused_advisories: vec!["intel-sa-00837".into()],
            min_tcb_evaluation_data_number: 18,
            platforms: Some(vec![Sha256Digest::of(b"other")]),
            ..PlatformPolicy::default()
        };
        assert_eq!(
            codes(&policy, TcbStatus::UpToDate, 0),
            ["collateral_rollback", "tcb_advisory", "platform_not_allowed"]
        );
    }
}
