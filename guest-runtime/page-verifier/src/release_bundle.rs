// SPDX-License-Identifier: Apache-2.0
//! A release.

use release::{TrustPolicy, VerifiedRelease};
use serde_json::json;
use types::Refusal;

use crate::{
    ReleaseRequest,
    answer::{Answer, Decided, refuse, shown},
};

pub(crate) fn decide(request: &ReleaseRequest, at: u64) -> Answer {
    let release = verify(&request.bundle, &read_trust(&request.trust)?, at)?;
    Ok(Decided::accepted(json!({
        "release": release.digest(),
        "log_index": release.log_index(),
        "statement": shown(release.statement()),
    })))
}

pub(crate) fn read_trust(text: &str) -> Result<TrustPolicy, Vec<Refusal>> {
    let fix = "give the trust file that the project publishes, unchanged";
    TrustPolicy::parse(text.as_bytes()).map_err(|error| refuse("release_policy_malformed", "trust", error, fix))
}

pub(crate) fn verify(bundle: &str, trust: &TrustPolicy, at: u64) -> Result<VerifiedRelease, Vec<Refusal>> {
    VerifiedRelease::verify(bundle.as_bytes(), trust, at).map_err(|error| vec![error.refusal()])
}
