// SPDX-License-Identifier: Apache-2.0
//! Keys that wrap keys (KEK): in a file, in a PKCS#11 token, or behind a transit service as HashiCorp Vault has it.
//!
//! A wrapped secret is bound to a context (what it is the key of): under another context it does not open. Each backend
//! names its key ([`KeyWrap::id`]), so that whoever keeps what was wrapped can tell which key opens it.
//!
//! What this does not establish: that the key was never anywhere else, or what a token or a transit service does beside
//! what it is asked for. Who may use the key can open everything that it wrapped.

mod file;
mod pkcs11;
mod source;
mod transit;

use zeroize::Zeroizing;

pub use file::FileKek;
pub use source::{KekSource, KekSourceError, PrivateFileError, private_text};
pub use transit::answer as transit_answer;

/// A key that wraps secrets.
pub trait KeyWrap: Send + Sync {
    /// Names the key, and no other one: what is wrapped from now on says that this key did it.
    fn id(&self) -> &str;

    /// Whether this key may have wrapped what says that `name` did it: names of earlier programs, and of the same key at
    /// another place, count. Only opening shows whether it did.
    fn may_open(&self, name: &str) -> bool {
        self.id() == name
    }

    /// Whether each use costs a round trip: then what was opened is worth keeping for a moment.
    fn is_remote(&self) -> bool;

    /// Wraps a secret of at most [`MAX_SECRET`] bytes, bound to `context`.
    ///
    /// # Errors
    /// [`WrapError`].
    fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError>;

    /// Opens what [`KeyWrap::wrap`] gave, under the same context.
    ///
    /// # Errors
    /// [`WrapError::Open`] for anything else; [`WrapError::Unavailable`] where the key can't be used now.
    fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError>;
}

/// Why a key-wrapping key is not there.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// A file operation failed.
    #[error("could not {action} the key-wrapping key {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others than the owner may read it.
    #[error("the key-wrapping key {} has mode {mode:03o}; run `chmod 600` on it", path.display())]
    Mode {
        /// The file.
        path: std::path::PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is another user's, who can change it.
    #[error("the key-wrapping key {} belongs to user {owner}, this program runs as {user}", path.display())]
    Owner {
        /// The file.
        path: std::path::PathBuf,
        /// Its owner's number.
        owner: u32,
        /// This process's.
        user: u32,
    },
    /// Not a plain file of exactly 32 bytes.
    #[error("the key-wrapping key {} is not a plain file of 32 bytes", path.display())]
    Form {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The token or the service has it, but not as it must be.
    #[error("the key-wrapping key is not used: {0}")]
    Unfit(String),
    /// The token refused the PIN. It is not tried again, or the token would lock: not by this process, as long as the PIN
    /// is the same.
    #[error("the token refused the PIN ({0}): correct the PIN before it is tried again, or the token locks")]
    Pin(String),
    /// A PIN or a token could not be read.
    #[error(transparent)]
    Private(#[from] PrivateFileError),
    /// No randomness, unreachable, ….
    #[error(transparent)]
    Wrap(#[from] WrapError),
}

/// Why a secret could not be wrapped or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Randomness,
    /// The cipher refused, or the secret is too large.
    #[error("the cipher refused to encrypt")]
    Seal,
    /// Wrong key-wrapping key, or the row was changed or moved to another name or version.
    #[error("a wrapped secret does not open: wrong key-wrapping key, or the row was changed")]
    Open,
    /// The key can't be used now.
    #[error("the key-wrapping key can't be used now: {0}")]
    Unavailable(String),
}

/// Fills with randomness of the system.
///
/// # Errors
/// [`WrapError::Randomness`].
pub fn random(bytes: &mut [u8]) -> Result<(), WrapError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| WrapError::Randomness)
}

/// Most bytes of a secret.
pub const MAX_SECRET: usize = 4096;
