// SPDX-License-Identifier: Apache-2.0
//! The directory that holds the keys of a run.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::KeyPair;

use super::{Certificates, Keys, PkiError, PlatformIdentity, SimulatedPlatform, Span};

impl SimulatedPlatform {
    /// Writes `platform.json` (keys, mode 0600), `root.der` and `collateral.json` (good collateral, issued `now`).
    ///
    /// # Errors
    /// [`PkiError::Exists`] when the directory has keys already, [`PkiError::File`].
    pub fn save(&self, dir: &Path, now: u64) -> Result<(), PkiError> {
        let path = dir.join(PLATFORM);
        if path.exists() {
            return Err(PkiError::Exists(path));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| file(dir, source))?;
        let collateral = self.collateral(now, None)?.to_json();
        write_private(dir, "root.der", self.root_der())?;
        write_private(dir, "collateral.json", collateral.as_bytes())?;
        let text = serde_json::to_string(&self.to_stored()).map_err(|e| PkiError::Format(e.to_string()))?;
        write_private(dir, PLATFORM, text.as_bytes())
    }

    /// Reads what [`SimulatedPlatform::save`] wrote.
    ///
    /// # Errors
    /// [`PkiError::File`], [`PkiError::Format`], [`PkiError::Key`].
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(PLATFORM);
        let text = fs::read(&path).map_err(|source| file(&path, source))?;
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| PkiError::Format(e.to_string()))?;
        Self::from_stored(stored)
    }

    fn to_stored(&self) -> Stored {
        let key = |key: &KeyPair| BASE64.encode(key.serialized_der());
        Stored {
            schema: SCHEMA.to_owned(),
            created: self.span.from,
            until: self.span.until,
            identity: self.identity.clone(),
            keys: StoredKeys {
                root: key(&self.keys.root),
                platform_ca: key(&self.keys.platform_ca),
                pck: key(&self.keys.pck),
                tcb_signer: key(&self.keys.tcb_signer),
                attestation: key(&self.keys.attestation),
            },
            certificates: StoredCertificates {
                root: BASE64.encode(&self.certificates.root),
                platform_ca: BASE64.encode(&self.certificates.platform_ca),
                pck: BASE64.encode(&self.certificates.pck),
                tcb_signer: BASE64.encode(&self.certificates.tcb_signer),
            },
        }
    }

    fn from_stored(stored: Stored) -> Result<Self, PkiError> {
        let Stored { schema, created, until, identity, keys, certificates } = stored;
        if schema != SCHEMA {
            return Err(PkiError::Format(format!("schema is not {SCHEMA}")));
        }
        let keys = Keys {
            root: read_key("root", &keys.root)?,
            platform_ca: read_key("platform_ca", &keys.platform_ca)?,
            pck: read_key("pck", &keys.pck)?,
            tcb_signer: read_key("tcb_signer", &keys.tcb_signer)?,
            attestation: read_key("attestation", &keys.attestation)?,
        };
        let certificates = Certificates {
            root: read_base64("certificates.root", &certificates.root)?,
            platform_ca: read_base64("certificates.platform_ca", &certificates.platform_ca)?,
            pck: read_base64("certificates.pck", &certificates.pck)?,
            tcb_signer: read_base64("certificates.tcb_signer", &certificates.tcb_signer)?,
        };
        Self::assemble(keys, certificates, identity, Span { from: created, until })
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    schema: String,
    created: u64,
    until: u64,
    identity: PlatformIdentity,
    keys: StoredKeys,
    certificates: StoredCertificates,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKeys {
    root: String,
    platform_ca: String,
    pck: String,
    tcb_signer: String,
    attestation: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCertificates {
    root: String,
    platform_ca: String,
    pck: String,
    tcb_signer: String,
}

fn read_key(name: &'static str, text: &str) -> Result<KeyPair, PkiError> {
    let der = read_base64(name, text)?;
    KeyPair::try_from(der.as_slice()).map_err(|_| PkiError::Key(name))
}

fn read_base64(name: &'static str, text: &str) -> Result<Vec<u8>, PkiError> {
    BASE64.decode(text).map_err(|_| PkiError::Format(format!("{name} is not base64")))
}

/// Writes to a temporary file, then renames, mode 0600.
fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), PkiError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|source| file(&path, source))
}

fn file(path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), source }
}

const PLATFORM: &str = "platform.json";
const SCHEMA: &str = "chrysalis/simulated-platform/v1";
