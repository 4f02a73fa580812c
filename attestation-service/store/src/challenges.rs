// SPDX-License-Identifier: Apache-2.0
//! Redeemed challenges: each token is recorded once, whatever becomes of it.

use rusqlite::{ErrorCode, TransactionBehavior, params};
use types::Sha256Digest;

use crate::Store;
use crate::database::{self, DatabaseError};

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
}

impl Store {
    /// Records that the token with this digest is redeemed. On return the record is on disk. Of any number of racing
    /// calls, in any number of processes, one succeeds.
    ///
    /// # Errors
    /// [`RedeemError`].
    pub fn redeem(&self, token: &Sha256Digest, expires: u64, now: u64) -> Result<(), RedeemError> {
        if expires < now {
            return Err(RedeemError::Expired);
        }
        let expires = i64::try_from(expires).map_err(|_| RedeemError::Expired)?;
        let mut connection = database::lock(&self.database)?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(DatabaseError::from)?;
        if expires <= pruned_until(&transaction)? {
            return Err(RedeemError::Expired);
        }
        let inserted = transaction
            .execute("INSERT INTO redeemed (token, expires) VALUES (?1, ?2)", params![token.as_bytes(), expires]);
        match inserted {
            Ok(_) => Ok(transaction.commit().map_err(DatabaseError::from)?),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(RedeemError::AlreadyRedeemed)
            }
            Err(error) => Err(DatabaseError::from(error).into()),
        }
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
