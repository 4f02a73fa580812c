// SPDX-License-Identifier: Apache-2.0
//! Redeemed challenges: each token is recorded once, whatever becomes of it.

use rusqlite::{ErrorCode, TransactionBehavior, params};
use types::Sha256Digest;

use crate::database::{self, DatabaseError};
use crate::group::Group;
use crate::{Generation, Store};

/// Why a challenge was not redeemed.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// It was redeemed before.
    #[error("the challenge was redeemed already")]
    AlreadyRedeemed,
    /// It expired, or expired before the newest pruning: it may have been redeemed and forgotten.
    #[error("the challenge expired")]
    Expired,
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
}

impl Store {
    /// Records that the token with this digest is redeemed. On return the record is on disk. Of any number of racing
    /// calls, in any number of processes, one succeeds. Calls that come at the same time share one commit.
    /// Gives the mark of releases, revocations and policies at that moment.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub fn redeem(&self, token: &Sha256Digest, expires: u64, now: u64) -> Result<Generation, RedeemError> {
        if expires < now {
            return Err(RedeemError::Expired);
        }
        let expires = i64::try_from(expires).map_err(|_| RedeemError::Expired)?;
        let redemption = Redemption { token: *token, expires };
        let done = self.redemptions.submit(redemption, |batch| match self.redeem_all(&batch) {
            Ok(results) => results,
            // Nothing of the batch was committed.
            Err(error) => batch.iter().map(|_| Err(RedeemError::Batch(error.to_string()))).collect(),
        });
        done.unwrap_or(Err(RedeemError::Database(DatabaseError::Poisoned)))
    }

    /// One transaction for the whole batch; each of it stands or falls alone.
    fn redeem_all(&self, batch: &[Redemption]) -> Result<Vec<Result<Generation, RedeemError>>, DatabaseError> {
        let mut connection = database::lock(&self.database)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let generation = self.generation(&transaction)?;
        let pruned_until = pruned_until(&transaction)?;
        let mut results = Vec::with_capacity(batch.len());
        {
            let mut insert = transaction.prepare_cached("INSERT INTO redeemed (token, expires) VALUES (?1, ?2)")?;
            for Redemption { token, expires } in batch {
                if *expires <= pruned_until {
                    results.push(Err(RedeemError::Expired));
                    continue;
                }
                results.push(match insert.execute(params![token.as_bytes(), expires]) {
                    Ok(_) => Ok(generation),
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                        Err(RedeemError::AlreadyRedeemed)
                    }
                    Err(error) => return Err(error.into()),
                });
            }
        }
        transaction.commit()?;
        Ok(results)
    }

    /// Forgets tokens that expired before `now` and gives their number. From then on no token that expires earlier
    /// is redeemed, even if the clock steps back.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn prune_redeemed(&self, now: u64) -> Result<usize, DatabaseError> {
        let until = i64::try_from(now.saturating_sub(1)).map_err(|_| DatabaseError::Row("redeemed"))?;
        let mut connection = database::lock(&self.database)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let until = until.max(pruned_until(&transaction)?);
        let pruned = transaction.execute("DELETE FROM redeemed WHERE expires <= ?1", [until])?;
        database::put_meta(&transaction, META_PRUNED, &until.to_be_bytes())?;
        transaction.commit()?;
        Ok(pruned)
    }
}

fn pruned_until(connection: &rusqlite::Connection) -> Result<i64, DatabaseError> {
    match database::meta(connection, META_PRUNED)? {
        None => Ok(0),
        Some(bytes) => bytes.try_into().map(i64::from_be_bytes).map_err(|_| DatabaseError::Row("meta")),
    }
}

const META_PRUNED: &str = "redeemed-pruned-until";
