// SPDX-License-Identifier: Apache-2.0
//! `check-config`: whether a service would start, and release keys, from what there is.

use anyhow::Context as _;
use serde_json::json;
use tdx_verify::{Collateral, MAX_COLLATERAL_LEN, TrustAnchors};
use types::Refusal;

use super::{now, open_beside, policy::malformed, serve::malformed_collateral};
use crate::{
    cli::CheckArgs,
    demand::{Compiled, Demand},
    identity::Identity,
    input,
    outcome::Outcome,
    service,
};

pub(super) fn check(args: &CheckArgs, anchors: &TrustAnchors) -> anyhow::Result<Outcome> {
    let store = open_beside(&args.store)?;
    let mut reasons = Vec::new();
    let identity = Identity::load(&store).context("the service has no key")?;
    let policy = service::policy_bytes(&store)?;
    if let Err(error) = Demand::read(&policy, &Compiled::new()) {
        reasons.extend(malformed(&policy, &error));
    }
    for (model, policy) in store.owner_policies()? {
        if let Err(error) = appraise::Policy::from_json(&policy) {
            let fix = "have the model's owner set a correct policy: until then nobody gets the model's key";
            reasons.push(Refusal::new("policy_malformed", &format!("owner of {model}"), error.to_string(), fix));
        }
    }
    let mut usable = 0_usize;
    for stored in store.releases()?.into_iter().filter(|stored| !stored.revoked) {
        match service::verified(&store, &stored.digest, &stored.bundle, now()) {
            Ok(_) => usable = usable.saturating_add(1),
            Err(error) => reasons.push(Refusal::new(
                "release_not_usable",
                &stored.digest.to_string(),
                error.to_string(),
                "import the release again with its trust policy, or revoke it",
            )),
        }
    }
    if usable == 0 {
        let fix = "import a release with `releases import`";
        reasons.push(Refusal::new("release_unknown", "releases", "no usable release is imported", fix));
    }
    let keys = store.keys()?.len();
    if keys == 0 {
        let fix = "import a key with `keys import`";
        reasons.push(Refusal::new("model_key_missing", "keys", "no model key is imported", fix));
    }
    for path in &args.collateral {
        if let Err(error) = Collateral::from_json(&input::read(path, MAX_COLLATERAL_LEN)?) {
            return Ok(malformed_collateral(path, &error));
        }
    }
    let pin = identity.spki_sha256();
    let hardware = anchors.hardware();
    let lines = vec![format!("pin {pin}, {usable} usable releases, {keys} keys, hardware {hardware}")];
    let document = json!({ "spki_sha256": pin, "usable_releases": usable, "keys": keys, "hardware": hardware });
    Ok(Outcome::judged(lines, document, reasons))
}
