// SPDX-License-Identifier: Apache-2.0
//! `--store`: a directory, or a database server, whose password never stands on the command line.

use std::path::{Path, PathBuf};

use key_wrap::private_text;
use store::{Location, PostgresSettings, SettingsError};

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<Location, String> {
    let settings = if let Some(file) = text.strip_prefix('@') {
        let url = private_text(Path::new(file)).map_err(|e| e.to_string())?;
        settings(url.trim()).map_err(|e| e.to_string())?
    } else if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        if PostgresSettings::shows_password(text) {
            return Err(SettingsError::PasswordShown.to_string());
        }
        settings(text).map_err(|e| e.to_string())?
    } else {
        return Ok(Location::Directory(PathBuf::from(text)));
    };
    if settings.is_exposed() {
        eprintln!(
            "warning: sslmode=disable: everything but the key-wrapping key travels in clear to {settings}, and whoever is on the way can change it"
        );
    }
    Ok(settings.into())
}

/// The password as PostgreSQL's own programs look for it.
fn settings(url: &str) -> Result<PostgresSettings, SettingsError> {
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let usual = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass")).filter(|path| path.is_file());
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Ok(PostgresSettings::parse(url, None)?.with_password(&zeroize::Zeroizing::new(password)));
    }
    PostgresSettings::parse(url, named.or(usual).as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_servers_are_told_apart_and_passwords_are_not_taken_from_arguments() {
        assert!(
            matches!(parse("/var/lib/store"), Ok(Location::Directory(path)) if path == Path::new("/var/lib/store"))
        );
        assert!(matches!(parse("postgres:///db"), Ok(Location::Postgres(_))));
        assert!(parse("postgres://u:secret@127.0.0.1/db").unwrap_err().contains("PGPASSFILE"));
        assert!(parse("@/nowhere").is_err());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, "postgres://u:secret@127.0.0.1/db\n").unwrap();
        let argument = format!("@{}", file.display());
        assert!(parse(&argument).is_err(), "everybody may read it");
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(parse(&argument), Ok(Location::Postgres(_))));
    }
}
