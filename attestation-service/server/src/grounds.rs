// SPDX-License-Identifier: Apache-2.0
//! Policy and releases, verified once for each state of the store and each minute instead of for each request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use appraise::Policy;
use release::{ReleaseError, VerifiedRelease};
use store::{Generation, Store};
use types::{Blake3Digest, Sha256Digest};

use crate::{
    demand::{Compiled, Demand},
    reply::Refused,
    service::{StoredReleaseError, policy_bytes, verified},
    successors::{self, Links},
};

/// What evidence is judged by, besides collateral.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Nothing for one that is not kept.
    generation: Option<Generation>,
    minute: u64,
    pub(crate) demand: Demand,
    pub(crate) releases: Vec<VerifiedRelease>,
    /// What owners demand beside that; `None` for one that can't be read any more: its model is not served.
    pub(crate) owners: BTreeMap<Blake3Digest, Option<Demand>>,
    /// What owners' own policies list, with what they admitted; nothing of what the service accepts is taken from it.
    pub(crate) listed: BTreeMap<Blake3Digest, Vec<Sha256Digest>>,
}

/// The newest [`Standing`].
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Option<Arc<Standing>>>);

impl Cache {
    /// Policy and releases at `generation` or later, as they verify in this minute. A revocation, which makes another
    /// generation, counts from the next request on; `pin` is the one key that guests may pin.
    pub(crate) fn at(
        &self,
        generation: Generation,
        store: &Store,
        pin: &Sha256Digest,
        now: u64,
    ) -> Result<Arc<Standing>, Refused> {
        let minute = now / 60;
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before = match held {
            Some(held) if held.generation == Some(generation) && held.minute == minute => return Ok(held),
            Some(held) => held.compiled(),
            None => Compiled::new(),
        };
        let made = Arc::new(make(Some(generation), minute, store, pin, &before, now)?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&made));
        Ok(made)
    }

    /// The next request makes it anew.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Standing {
    /// Rules that need not be compiled again as long as their policies stand.
    fn compiled(&self) -> Compiled {
        let owners = self.owners.values().flatten();
        owners.chain([&self.demand]).filter_map(Demand::compiled).collect()
    }
}

/// As [`Cache::at`] makes them, for a look beside requests: nothing is kept.
pub(crate) fn now(store: &Store, pin: &Sha256Digest, now: u64) -> Result<Standing, Refused> {
    make(None, now / 60, store, pin, &Compiled::new(), now)
}

fn make(
    generation: Option<Generation>,
    minute: u64,
    store: &Store,
    pin: &Sha256Digest,
    before: &Compiled,
    now: u64,
) -> Result<Standing, Refused> {
    let unable = |e: &dyn core::fmt::Display| Refused::unable("store_unavailable", e);
    let bytes = policy_bytes(store).map_err(|e| unable(&e))?;
    let mut demand = Demand::read(&bytes, before).map_err(|e| unable(&e))?;
    // Only a guest that pins this very service may get a key from it.
    demand.policy.service_pins = Some(vec![*pin]);
    let (mut releases, mut links) = (Vec::new(), Links::default());
    for stored in store.releases().map_err(|e| unable(&e))? {
        if stored.revoked {
            demand.policy.revoked_releases.push(stored.digest);
        }
        match verified(store, &stored.digest, &stored.bundle, now) {
            Ok(release) => {
                links.add(&release);
                releases.push(release);
            }
            // That may pass: a guest that waits gets its key. It is no standing that the release is not in.
            Err(StoredReleaseError::Store(error)) => return Err(unable(&error)),
            Err(error) => {
                tracing::warn!(release = %stored.digest, %error, "an imported release is left out");
                // Its time is over; what it followed holds for what follows it.
                if let StoredReleaseError::Release(ReleaseError::Validity { validity, now }) = error
                    && now > validity.not_after
                    && let Ok(ended) = verified(store, &stored.digest, &stored.bundle, validity.not_after)
                {
                    links.add(&ended);
                }
            }
        }
    }
    let owners = store.owner_policies().map_err(|e| unable(&e))?.into_iter();
    let owners = owners.map(|(model, policy)| (model, Demand::read(&policy, before).ok()));
    let mut owners: BTreeMap<_, _> = owners.collect();
    let admitted = store.successors().map_err(|e| unable(&e))?;
    let mut listed = BTreeMap::new();
    for (model, owner) in &mut owners {
        let own: Vec<_> = admitted.iter().filter(|(of, _)| of == model).map(|(_, successor)| *successor).collect();
        if let Some(owner) = owner {
            successors::admit(&mut owner.policy, &own, &links);
            if let Some(releases) = &owner.policy.releases {
                listed.insert(*model, releases.clone());
            }
            within(&mut owner.policy, &demand.policy);
        }
    }
    Ok(Standing { generation, minute, demand, releases, owners, listed })
}

/// Takes from an owner's policy the releases that the service does not accept. Of an image that was published as two
/// releases one policy could take the one and one the other: the release that counts is one that both accept.
fn within(owner: &mut Policy, service: &Policy) {
    owner.revoked_releases.extend(&service.revoked_releases);
    if let Some(accepted) = &service.releases {
        match &mut owner.releases {
            Some(listed) => listed.retain(|release| accepted.contains(release)),
            None => owner.releases = Some(accepted.clone()),
        }
    }
}
