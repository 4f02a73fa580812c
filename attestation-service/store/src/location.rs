// SPDX-License-Identifier: Apache-2.0
//! Where a store is.

use std::path::{Path, PathBuf};

use crate::postgres::PostgresSettings;

/// A directory of this machine, for one service; or a PostgreSQL database, for one or several.
#[derive(Debug, Clone)]
pub enum Location {
    /// A directory: embedded database, audit log, and by default the key-wrapping key.
    Directory(PathBuf),
    /// A database server: everything but the key-wrapping key.
    Postgres(Box<PostgresSettings>),
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Directory(path.clone())
    }
}

impl From<PostgresSettings> for Location {
    fn from(settings: PostgresSettings) -> Self {
        Self::Postgres(Box::new(settings))
    }
}

impl From<&Self> for Location {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

impl core::fmt::Display for Location {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Postgres(settings) => write!(f, "{settings}"),
        }
    }
}
