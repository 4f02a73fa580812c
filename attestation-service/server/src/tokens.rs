// SPDX-License-Identifier: Apache-2.0
//! Keys of challenges. A service by itself has one in memory, made at its start. Replicas on one store share a secret,
//! and each has a key derived from it and from a number of its own, made at its start, which stands in its tokens: so any
//! of them can check any token, and the store says whether the one that made it still runs.

use key_release::{Token, TokenKey};
use store::{ReplicaId, Store};
use zeroize::Zeroizing;

use crate::service::StartError;

/// The own key, and how to get others'.
pub(crate) struct Tokens {
    own: TokenKey,
    shared: Option<Shared>,
}

/// What replicas have in common, and who this one is.
pub(crate) struct Shared {
    secret: Zeroizing<[u8; 32]>,
    pub(crate) id: ReplicaId,
    pub(crate) name: String,
}

impl Tokens {
    /// New keys; every token of an earlier run is void for this one. A replica enters itself in the store.
    pub(crate) fn new(store: &Store) -> Result<Self, StartError> {
        if !store.is_shared() {
            let mut random = Zeroizing::new([0; 32]);
            getrandom::fill(random.as_mut_slice()).map_err(|_| StartError::Random)?;
            return Ok(Self { own: TokenKey::new(*random), shared: None });
        }
        let secret = store.challenge_secret()?;
        let mut id = ReplicaId::default();
        getrandom::fill(&mut id).map_err(|_| StartError::Random)?;
        let name = hex::encode(id);
        store.enter_replica(&id, &name)?;
        Ok(Self { own: TokenKey::derived(&secret, &id), shared: Some(Shared { secret, id, name }) })
    }

    pub(crate) const fn own(&self) -> &TokenKey {
        &self.own
    }

    pub(crate) const fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    pub(crate) const fn shared_mut(&mut self) -> Option<&mut Shared> {
        self.shared.as_mut()
    }

    /// For a token of this replica: its number stands behind the first byte, which says what work is asked.
    pub(crate) fn nonce(&self) -> Result<[u8; 16], getrandom::Error> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)?;
        if let Some(shared) = &self.shared {
            nonce.iter_mut().skip(1).zip(shared.id).for_each(|(to, from)| *to = from);
        }
        Ok(nonce)
    }

    /// The key that must have made a token, and the replica where it is another one.
    pub(crate) fn of(&self, token: &Token) -> (TokenKey, Option<ReplicaId>) {
        let Some(shared) = &self.shared else { return (self.own.clone(), None) };
        let (_, nonce, _) = token.parts();
        let mut maker = ReplicaId::default();
        maker.iter_mut().zip(nonce.into_iter().skip(1)).for_each(|(to, from)| *to = from);
        if maker == shared.id {
            (self.own.clone(), None)
        } else {
            (TokenKey::derived(&shared.secret, &maker), Some(maker))
        }
    }
}
