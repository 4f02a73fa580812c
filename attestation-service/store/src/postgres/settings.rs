// SPDX-License-Identifier: Apache-2.0
//! Where the database server is, and how it is reached: a URL as PostgreSQL's own programs take it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use tokio_postgres::config::{Host, SslMode};
use zeroize::Zeroizing;

use super::tls::{self, MakeTls};

/// A database server, and how it is reached.
#[derive(Clone)]
pub struct PostgresSettings {
    pub(super) config: tokio_postgres::Config,
    tls: Option<Arc<ClientConfig>>,
    /// Passwords and what is stored travel in clear over a network.
    exposed: bool,
}

/// Why a URL is not used. No variant shows the URL: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Its form.
    #[error("the database's URL is malformed: {0}")]
    Form(String),
    /// A password stands in it where everybody on the machine can read it.
    #[error(
        "a password on the command line shows in the list of processes: put it into PGPASSFILE, or the whole URL into a file (--store @FILE)"
    )]
    PasswordShown,
    /// Another mode than the two that say what they do.
    #[error(
        "sslmode must be verify-full (the default over a network) or disable, found {0}: the others do not verify who answers"
    )]
    SslMode(String),
    /// A file could not be read.
    #[error("could not read {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file with passwords.
    #[error(transparent)]
    Password(#[from] key_wrap::PrivateFileError),
}

impl PostgresSettings {
    /// Reads `postgres://[USER[:PASSWORD]@][HOST][:PORT]/DATABASE[?NAME=VALUE&…]`. Beside what PostgreSQL's programs
    /// know, `sslmode` is `verify-full` or `disable`, `sslrootcert` a file of certificates (the system's otherwise).
    /// Without TLS a host must be a Unix socket's directory or of the loopback network, unless `sslmode=disable` is said.
    /// Where the URL has no password, it is looked for in `password_file` (PostgreSQL's own format).
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn parse(url: &str, password_file: Option<&Path>) -> Result<Self, SettingsError> {
        let (url, parameters) = take_parameters(url)?;
        let form = |error: &dyn core::error::Error| {
            SettingsError::Form(error.source().map_or_else(|| error.to_string(), ToString::to_string))
        };
        let mut config: tokio_postgres::Config = url.parse().map_err(|error| form(&error))?;
        if config.get_hosts().is_empty() {
            config.host_path("/run/postgresql");
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(SettingsError::Form("it names no database".to_owned()));
        }
        let near = config.get_hosts().iter().all(is_near) && config.get_hostaddrs().iter().all(IpAddr::is_loopback);
        let verify = match parameters.sslmode.as_deref() {
            None => !near,
            Some("disable") => false,
            Some("verify-full") => true,
            Some(other) => return Err(SettingsError::SslMode(other.to_owned())),
        };
        let mut tls = None;
        if verify {
            let path = PathBuf::from(parameters.sslrootcert.as_deref().unwrap_or(SYSTEM_CERTIFICATES));
            let fail = |reason| SettingsError::File { path: path.clone(), reason };
            let pem = fs::read(&path).map_err(|error| fail(error.to_string()))?;
            tls = Some(tls::config(&pem).map_err(fail)?);
        }
        config.ssl_mode(if verify { SslMode::Require } else { SslMode::Disable });
        config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        config.application_name("attestation-service");
        let mut settings = Self { config, tls, exposed: !verify && !near };
        settings.find_password(password_file)?;
        Ok(settings)
    }

    /// Whether the URL `text` has a password in it.
    #[must_use]
    pub fn shows_password(text: &str) -> bool {
        let authority = text.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        user.contains(':') || text.contains("?password=") || text.contains("&password=")
    }

    /// Whether `sslmode=disable` was said for a host of the network: worth a warning.
    #[must_use]
    pub const fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// Sets the password, where the URL has none.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        if self.config.get_password().is_none() {
            self.config.password(password);
        }
        self
    }

    pub(super) fn connector(&self) -> MakeTls {
        MakeTls(self.tls.clone())
    }

    /// Lines `host:port:database:user:password`; `*` stands for any, `\` before `:` and `\`.
    fn find_password(&mut self, file: Option<&Path>) -> Result<(), SettingsError> {
        let Some(path) = file.filter(|_| self.config.get_password().is_none()) else { return Ok(()) };
        let text = key_wrap::private_text(path)?;
        let wanted = [
            self.config.get_hosts().first().map_or_else(String::new, |host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(_) => "localhost".to_owned(),
            }),
            self.config.get_ports().first().copied().unwrap_or(5432).to_string(),
            self.config.get_dbname().unwrap_or_default().to_owned(),
            self.config.get_user().unwrap_or_default().to_owned(),
        ];
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let fields = split_line(line);
            if let [host, port, database, user, password] = fields.as_slice()
                && [host, port, database, user]
                    .iter()
                    .zip(&wanted)
                    .all(|(f, w)| f.as_str() == "*" || f.as_str() == w.as_str())
            {
                self.config.password(password.as_bytes());
                break;
            }
        }
        Ok(())
    }
}

impl core::fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("hosts", &self.config.get_hosts())
            .field("database", &self.config.get_dbname())
            .finish_non_exhaustive()
    }
}

impl core::fmt::Display for PostgresSettings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        write!(f, "database {} at {host}", self.config.get_dbname().unwrap_or_default())
    }
}

#[derive(Default)]
struct Parameters {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
}

/// Takes out what is ours to judge; the rest is the client's.
fn take_parameters(url: &str) -> Result<(Zeroizing<String>, Parameters), SettingsError> {
    let mut taken = Parameters::default();
    let Some((base, query)) = url.split_once('?') else { return Ok((Zeroizing::new(url.to_owned()), taken)) };
    let mut rest = Vec::new();
    for pair in query.split('&') {
        let place = match pair.split_once('=') {
            Some(("sslmode", _)) => &mut taken.sslmode,
            Some(("sslrootcert", _)) => &mut taken.sslrootcert,
            Some(("target_session_attrs" | "sslnegotiation" | "channel_binding", _)) | None => {
                return Err(SettingsError::Form("it has a parameter that is not known".to_owned()));
            }
            Some(_) => {
                rest.push(pair);
                continue;
            }
        };
        let value = pair.split_once('=').map_or("", |(_, value)| value);
        if place.replace(value.to_owned()).is_some() {
            return Err(SettingsError::Form("it has a parameter twice".to_owned()));
        }
    }
    let rest = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((Zeroizing::new(rest), taken))
}

fn is_near(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

fn split_line(line: &str) -> Vec<Zeroizing<String>> {
    let (mut fields, mut field, mut escaped) = (Vec::new(), Zeroizing::new(String::new()), false);
    for character in line.chars() {
        match character {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ':' if !escaped => fields.push(core::mem::take(&mut field)),
            other => field.push(other),
        }
        escaped = false;
    }
    fields.push(field);
    fields
}

const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn parse(url: &str) -> Result<PostgresSettings, SettingsError> {
        PostgresSettings::parse(url, None)
    }

    #[test]
    fn nothing_goes_in_clear_over_a_network_unless_it_is_said() {
        for near in [
            "postgres:///db",
            "postgres://u@127.0.0.1:5433/db",
            "postgres://u@[::1]/db",
            "postgres://u@localhost/db",
            "postgres://u@%2Frun%2Fpostgresql/db",
            "postgresql:///db?host=/run/postgresql&user=u",
        ] {
            let settings = parse(near).unwrap_or_else(|e| panic!("{near}: {e}"));
            assert_eq!((settings.config.get_ssl_mode(), settings.is_exposed()), (SslMode::Disable, false), "{near}");
        }
        let said = parse("postgres://u@db.example/db?sslmode=disable").unwrap();
        assert_eq!((said.config.get_ssl_mode(), said.is_exposed()), (SslMode::Disable, true));
        // Over a network TLS is demanded, and needs certificates.
        let missing = parse("postgres://u@db.example/db?sslrootcert=/nowhere");
        assert!(matches!(missing, Err(SettingsError::File { .. })));
        assert!(matches!(
            parse("postgres://u@127.0.0.1,db.example/db?sslrootcert=/nowhere"),
            Err(SettingsError::File { .. })
        ));
        for mode in ["prefer", "require", "verify-ca", "allow"] {
            let refused = parse(&format!("postgres://u@db.example/db?sslmode={mode}"));
            assert!(matches!(refused, Err(SettingsError::SslMode(found)) if found == mode));
        }
        for bad in [
            "",
            "postgres://",
            "postgres://u@h",
            "mysql://u@h/db",
            "postgres:///db?nonsense=1",
            "postgres:///db?sslmode=disable&sslmode=verify-full",
            "postgres:///db?target_session_attrs=any",
        ] {
            assert!(matches!(parse(bad), Err(SettingsError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn passwords_are_found_and_never_shown() {
        for shown in ["postgres://u:secret@h/db", "postgres:///db?password=secret", "postgres:///db?user=u&password=s"]
        {
            assert!(PostgresSettings::shows_password(shown), "{shown}");
        }
        for hidden in ["postgres://u@h:5432/db", "postgres:///db", "/var/lib/store", "postgres://h:1/db:x@y"] {
            assert!(!PostgresSettings::shows_password(hidden), "{hidden}");
        }
        let settings = parse("postgres://u:secret@127.0.0.1/db").unwrap();
        assert_eq!(settings.config.get_password(), Some(b"secret".as_slice()));
        assert!(!format!("{settings:?} {settings}").contains("secret"));
        let error = parse("postgres://u:secret@127.0.0.1/db?nonsense=1").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("secret"));
    }

    #[test]
    fn a_password_file_is_private_and_read_as_postgresql_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        fs::write(&path, "# comment\nother:*:*:*:no\n127.0.0.1:5433:d\\:b:*:p\\:w\\\\d\n*:*:*:*:last\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let url = "postgres://u@127.0.0.1:5433/d:b";
        assert!(matches!(PostgresSettings::parse(url, Some(&path)), Err(SettingsError::Password(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let password = |url: &str| {
            let settings = PostgresSettings::parse(url, Some(&path)).unwrap();
            String::from_utf8(settings.config.get_password().unwrap().to_vec()).unwrap()
        };
        assert_eq!(password(url), "p:w\\d");
        assert_eq!(password("postgres://u@127.0.0.1:5434/d:b"), "last");
        assert_eq!(password("postgres://u:own@127.0.0.1:5433/d:b"), "own");
        assert_eq!(parse(url).unwrap().with_password("x").config.get_password(), Some(b"x".as_slice()));
    }
}
