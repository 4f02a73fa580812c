// SPDX-License-Identifier: Apache-2.0
//! Releases that owners admitted in place of ones that their policies list.
//!
//! An owner speaks for its own model, and within what the service accepts: the operator must have imported the release,
//! and the service's own policy must accept it. Revocations hold for either release by itself.

use std::collections::BTreeMap;

use appraise::Policy;
use release::VerifiedRelease;
use store::Successor;
use types::{Refusal, Sha256Digest};

/// Which release each one names as its predecessor: of those that are valid now, and of those that were.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<Sha256Digest, Sha256Digest>);

impl Links {
    /// Takes in what a release's statement says.
    pub(crate) fn add(&mut self, release: &VerifiedRelease) {
        if let Some(predecessor) = release.values().predecessor {
            self.0.insert(*release.digest(), predecessor);
        }
    }
}

/// Adds to the releases that `policy` lists those that were admitted after them, in the order of admission. The
/// statement of each must name the predecessor; nothing else about a release is changed by this. That the time of one in
/// the middle ended does not break the chain: whether it may be used itself is the appraisal's matter.
pub(crate) fn admit(policy: &mut Policy, admitted: &[Successor], links: &Links) {
    let Some(listed) = &mut policy.releases else { return };
    for Successor { predecessor, successor } in admitted {
        let follows = links.0.get(successor) == Some(predecessor);
        if follows && listed.contains(predecessor) && !listed.contains(successor) {
            listed.push(*successor);
        }
    }
}

/// Whether an admission would change anything: `listed` is what the owner's own policy lists, with what was admitted
/// before, whether the service accepts it or not.
pub(crate) fn check(
    listed: Option<&[Sha256Digest]>,
    Successor { predecessor, successor }: Successor,
    releases: &[VerifiedRelease],
) -> Result<(), Refusal> {
    let refuse = |field: &str, detail: String, fix: &str| Err(Refusal::new("owner_successor", field, detail, fix));
    if !listed.is_some_and(|listed| listed.contains(&predecessor)) {
        let detail = format!("the owner's policy lists no release {predecessor}, nor was it admitted");
        return refuse(
            "command.action.predecessor",
            detail,
            "name a release of the policy in force, or set another policy",
        );
    }
    let Some(release) = releases.iter().find(|release| *release.digest() == successor) else {
        let detail = format!("no usable release {successor} is imported");
        return refuse("command.action.successor", detail, "have the service's operator import it");
    };
    if release.values().predecessor != Some(predecessor) {
        let named = release.values().predecessor.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        let detail = format!("the release's statement names the predecessor {named}, the command {predecessor}");
        return refuse("command.action.predecessor", detail, "admit it in place of the release that it follows");
    }
    Ok(())
}
