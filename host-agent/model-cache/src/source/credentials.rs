// SPDX-License-Identifier: Apache-2.0
//! Keys of a store, from a file that nobody else may read.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::source::sigv4::Keys;

/// Why a file of credentials cannot be used. Nothing of what is in it is said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::ErrorKind),
    /// A directory, a pipe, a device.
    #[error("it is not a regular file")]
    NoFile,
    /// Others may read it.
    #[error("its mode is {0:o}: others may read it")]
    Mode(u32),
    /// It is somebody else's.
    #[error("it belongs to the user {owner}, and the agent is {user}")]
    Owner {
        /// Of the file.
        owner: u32,
        /// Who reads it.
        user: u32,
    },
    /// Too much.
    #[error("it has more than {MAX_FILE} bytes")]
    Size,
    /// Neither a comment nor one of the three names with a value that can be one, or a name again.
    #[error(
        "line {0} is not `aws_access_key_id`, `aws_secret_access_key` or `aws_session_token`, once each, with `=` and a value"
    )]
    Line(usize),
    /// A name that must be there.
    #[error("`{0}` is missing")]
    Missing(&'static str),
}

/// Reads `path`, whose owner and mode are checked on the opened file.
pub(crate) fn read(path: &Path) -> Result<Keys, CredentialsError> {
    let failed = |error: io::Error| CredentialsError::Unreadable(error.kind());
    // A pipe without a writer must not have anybody wait.
    let careful = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(careful).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(CredentialsError::NoFile);
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Mode(mode));
    }
    let (owner, user) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    // Root may read the agent's file, as it may read everything.
    if owner != user && user != 0 {
        return Err(CredentialsError::Owner { owner, user });
    }
    // Its room is taken at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE.saturating_add(1)));
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        return Err(CredentialsError::Size);
    }
    let text = core::str::from_utf8(&bytes).map_err(|_| CredentialsError::Unreadable(io::ErrorKind::InvalidData))?;
    parse(text)
}

/// The form of AWS's own file, of one profile: `NAME = VALUE` lines, perhaps below one `[PROFILE]`, comments with `#`.
fn parse(text: &str) -> Result<Keys, CredentialsError> {
    let mut values = [const { None::<Zeroizing<String>> }; NAMES.len()];
    let mut profiles = 0_usize;
    for (line, number) in text.lines().zip(1_usize..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let bad = || CredentialsError::Line(number);
        if line.starts_with('[') && line.ends_with(']') {
            profiles = profiles.saturating_add(1);
            // Of two profiles nobody said which.
            if profiles > 1 || values.iter().any(Option::is_some) {
                return Err(bad());
            }
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(bad)?;
        let (name, value) = (name.trim(), value.trim());
        let known = NAMES.iter().zip(&mut values).find(|((known, _), _)| *known == name);
        let ((_, most), place) = known.ok_or_else(bad)?;
        let plain = !value.is_empty() && value.len() <= *most && value.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || place.is_some() {
            return Err(bad());
        }
        *place = Some(Zeroizing::new(value.to_owned()));
    }
    let [id, secret, token] = values;
    let id = id.ok_or(CredentialsError::Missing("aws_access_key_id"))?.as_str().to_owned();
    let secret = secret.ok_or(CredentialsError::Missing("aws_secret_access_key"))?;
    Ok(Keys { id, secret, token })
}

/// Names, and the longest values.
const NAMES: [(&str, usize); 3] =
    [("aws_access_key_id", 128), ("aws_secret_access_key", 256), ("aws_session_token", 8192)];
const MAX_FILE: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const GOOD: &str = "# of the packs\n[default]\naws_access_key_id = ID\naws_secret_access_key=se/cr+et=\n";

    #[test]
    fn the_file_of_aws_is_read_and_mistakes_are_named_by_line() {
        let keys = parse(GOOD).unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token.is_none()), ("ID", "se/cr+et=", true));
        let keys = parse(&format!("{GOOD}aws_session_token = T\n")).unwrap();
        assert_eq!(keys.token.unwrap().as_str(), "T");
        for (more, line) in [
            ("aws_access_key_id = B", 5),
            ("region = r", 5),
            ("[other]", 5),
            ("aws_session_token =", 5),
            ("aws_session_token = a b", 5),
            ("\naws_session_token = \u{e9}", 6),
            ("secret", 5),
        ] {
            assert_eq!(parse(&format!("{GOOD}{more}")).err(), Some(CredentialsError::Line(line)), "{more}");
        }
        let long = format!("{GOOD}aws_session_token = {}", "t".repeat(8193));
        assert_eq!(parse(&long).err(), Some(CredentialsError::Line(5)));
        assert_eq!(parse("").err(), Some(CredentialsError::Missing("aws_access_key_id")));
        assert_eq!(parse("aws_access_key_id=I").err(), Some(CredentialsError::Missing("aws_secret_access_key")));
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, GOOD).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).err(), Some(CredentialsError::Mode(mode)));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(read(&path).unwrap().id, "ID");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "#".repeat(MAX_FILE + 1)).unwrap();
        assert_eq!(read(&path).err(), Some(CredentialsError::Size));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&pipe).err(), Some(CredentialsError::NoFile));
        assert_eq!(read(directory.path()).err(), Some(CredentialsError::NoFile));
        let missing = read(&directory.path().join("none")).err();
        assert_eq!(missing, Some(CredentialsError::Unreadable(io::ErrorKind::NotFound)));
    }
}
