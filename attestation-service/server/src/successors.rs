// SPDX-License-Identifier: Apache-2.0
//! Releases that owners admitted in place of ones that their policies list.
//!
//! An owner speaks for its own model, and within what the service accepts: the operator must have imported the release,
//! and the service's own policy must accept it. Revocations hold for either release by itself.

use appraise::Policy;
use release::VerifiedRelease;
use store::Successor;
use types::{Refusal, Sha256Digest};

/// Adds to the releases that `policy` lists those that were admitted after them, in the order of admission. The
/// statement of each must name the predecessor; nothing else about a release is changed by this.
pub(crate) fn admit(policy: &mut Policy, admitted: &[Successor], releases: &[VerifiedRelease]) {
    let Some(listed) = &mut policy.releases else { return };
    for Successor { predecessor, successor } in admitted {
        let follows = releases.iter().any(|release| is_successor(release, predecessor, successor));
        if follows && listed.contains(predecessor) && !listed.contains(successor) {
            listed.push(*successor);
        }
    }
}

fn is_successor(release: &VerifiedRelease, predecessor: &Sha256Digest, successor: &Sha256Digest) -> bool {
    release.digest() == successor && release.values().predecessor == Some(*predecessor)
}

/// Whether an admission would change anything: `policy` is the owner's, with what was admitted before.
pub(crate) fn check(
    policy: Option<&Policy>,
    Successor { predecessor, successor }: Successor,
    releases: &[VerifiedRelease],
) -> Result<(), Refusal> {
    let refuse = |field: &str, detail: String, fix: &str| Err(Refusal::new("owner_successor", field, detail, fix));
    let listed = policy.and_then(|policy| policy.releases.as_ref());
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
    if !is_successor(release, &predecessor, &successor) {
        let named = release.values().predecessor.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        let detail = format!("the release's statement names the predecessor {named}, the command {predecessor}");
        return refuse("command.action.predecessor", detail, "admit it in place of the release that it follows");
    }
    Ok(())
}
