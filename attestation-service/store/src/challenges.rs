// SPDX-License-Identifier: Apache-2.0
//! Redeemed challenges: each token is recorded once, whatever becomes of it.

use types::Sha256Digest;

use crate::database::{self, Database, DatabaseError, Generation};
use crate::group::Group;
use crate::replicas::{self, ReplicaId};
use crate::sql::{Tx, Value, integer};
use crate::{Store, postgres};

/// Why a challenge was not redeemed.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// It was redeemed before.
    #[error("the challenge was redeemed already")]
    AlreadyRedeemed,
    /// It expired, or expired before the newest pruning: it may have been redeemed and forgotten.
    #[error("the challenge expired")]
    Expired,
    /// The replica that made it does not run any more.
    #[error("the challenge was made by a replica that was stopped")]
    Void,
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The commit that it was a part of failed.
    #[error("the redemption was not recorded: {0}")]
    Batch(String),
}

/// Redemptions that are written together.
pub(crate) type Redemptions = Group<Redemption, Result<Generation, RedeemError>>;

/// A token's digest and its end.
pub(crate) struct Redemption {
    token: Sha256Digest,
    expires: i64,
    /// Another replica, which must be running.
    maker: Option<ReplicaId>,
}

impl Store {
    /// Records that the token with this digest is redeemed. On return the record is on disk. Of any number of racing
    /// calls, in any number of processes, one succeeds. Calls that come at the same time share one commit.
    /// Gives the mark of releases, revocations and policies at that moment.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub fn redeem(&self, token: &Sha256Digest, expires: u64, now: u64) -> Result<Generation, RedeemError> {
        self.redeem_made_by(None, token, expires, now)
    }

    /// [`Store::redeem`] of a token that another replica made: that one must be running.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub fn redeem_made_by(
        &self,
        maker: Option<ReplicaId>,
        token: &Sha256Digest,
        expires: u64,
        now: u64,
    ) -> Result<Generation, RedeemError> {
        if expires < now {
            return Err(RedeemError::Expired);
        }
        let expires = i64::try_from(expires).map_err(|_| RedeemError::Expired)?;
        let redemption = Redemption { token: *token, expires, maker };
        let done = self.redemptions.submit(redemption, |batch| match self.redeem_all(&batch) {
            Ok(results) => results,
            // Nothing of the batch was committed.
            Err(error) => batch.iter().map(|_| Err(RedeemError::Batch(error.to_string()))).collect(),
        });
        done.unwrap_or(Err(RedeemError::Database(DatabaseError::Poisoned)))
    }

    /// One transaction for the whole batch; each of it stands or falls alone.
    fn redeem_all(&self, batch: &[Redemption]) -> Result<Vec<Result<Generation, RedeemError>>, DatabaseError> {
        let redeem = |tx: &mut Tx<'_>| {
            let generation = database::generation(tx)?;
            let pruned_until = pruned_until(tx)?;
            let running = if batch.iter().any(|r| r.maker.is_some()) { replicas::running(tx)? } else { Vec::new() };
            let refusal = |redemption: &Redemption| match redemption.maker {
                _ if redemption.expires <= pruned_until => Some(RedeemError::Expired),
                Some(maker) if !running.contains(&maker) => Some(RedeemError::Void),
                _ => None,
            };
            let refusals: Vec<_> = batch.iter().map(refusal).collect();
            let wanted = batch.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none()).map(|(r, _)| r);
            let mut firsts = insert(tx, &wanted.collect::<Vec<_>>())?.into_iter();
            let result = |refusal: Option<RedeemError>| match refusal {
                Some(refusal) => Err(refusal),
                None if firsts.next() == Some(true) => Ok(generation),
                None => Err(RedeemError::AlreadyRedeemed),
            };
            Ok(refusals.into_iter().map(result).collect())
        };
        match &self.database {
            Database::Sqlite(sqlite) => sqlite.write(redeem),
            Database::Postgres(postgres) => postgres.write(postgres::REDEEMING, redeem),
        }
    }

    /// Forgets until when expired tokens were forgotten: for a service whose tokens of earlier runs are all void, and that
    /// is the only one on its store. A clock that once was far ahead would otherwise stop it until that time comes.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_prunings(&self) -> Result<(), DatabaseError> {
        self.database.write(|tx| database::put_meta(tx, META_PRUNED, &0_i64.to_be_bytes()))
    }

    /// Forgets tokens that expired before `now` and gives their number. From then on no token that expires earlier
    /// is redeemed, even if the clock steps back.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn prune_redeemed(&self, now: u64) -> Result<usize, DatabaseError> {
        self.kek.forget_old();
        let until = integer("redeemed", now.saturating_sub(1))?;
        let prune = |tx: &mut Tx<'_>| {
            let until = until.max(pruned_until(tx)?);
            let pruned = tx.execute("DELETE FROM redeemed WHERE expires <= ?1", &[Value::Int(until)])?;
            database::put_meta(tx, META_PRUNED, &until.to_be_bytes())?;
            Ok(usize::try_from(pruned).unwrap_or(usize::MAX))
        };
        match &self.database {
            Database::Sqlite(sqlite) => sqlite.write(prune),
            Database::Postgres(postgres) => postgres.write(postgres::PRUNING, prune),
        }
    }
}

/// Whether each of them is the first redemption of its token.
fn insert(tx: &mut Tx<'_>, wanted: &[&Redemption]) -> Result<Vec<bool>, DatabaseError> {
    if let Tx::Postgres(session) = tx {
        let mut pairs: Vec<_> = wanted.iter().map(|r| (*r.token.as_bytes(), r.expires)).collect();
        // In one order in all replicas, or two batches with the same tokens could wait for each other.
        pairs.sort_unstable();
        return session.insert_tokens(&pairs).map(|mut inserted| {
            // Of two with one token the first one in the batch has it.
            wanted.iter().map(|r| inserted.remove(r.token.as_bytes().as_slice())).collect()
        });
    }
    let sql = "INSERT INTO redeemed (token, expires) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    let first = |r: &&Redemption| Ok(tx.execute(sql, &[Value::Blob(r.token.as_bytes()), Value::Int(r.expires)])? > 0);
    wanted.iter().map(first).collect()
}

fn pruned_until(tx: &mut Tx<'_>) -> Result<i64, DatabaseError> {
    match database::meta(tx, META_PRUNED)? {
        None => Ok(0),
        Some(bytes) => bytes.try_into().map(i64::from_be_bytes).map_err(|_| DatabaseError::Row("meta")),
    }
}

pub(crate) const META_PRUNED: &str = "redeemed-pruned-until";
