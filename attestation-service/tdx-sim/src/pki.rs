// SPDX-License-Identifier: Apache-2.0
//! The keys and certificates of one simulated platform: root CA → PCK platform CA → PCK, and the key that signs
//! collateral. Made new for every run; nothing is shared between runs.

pub(crate) mod certificates;
mod store;

use std::path::PathBuf;

use p256::ecdsa::{SigningKey, signature::Signer as _};
use p256::pkcs8::DecodePrivateKey as _;
use rcgen::KeyPair;
use sha2::Digest as _;

pub use certificates::ROOT_LABEL;
pub(crate) use certificates::Span;

/// Why keys, certificates or collateral could not be made, saved or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate or a revocation list could not be made.
    #[error("certificate or revocation list: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key is not a P-256 key in PKCS #8.
    #[error("key `{0}` is not a P-256 key in PKCS #8")]
    Key(&'static str),
    /// No random bytes from the operating system.
    #[error("random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// A time is out of range.
    #[error("time {0} is out of range")]
    Time(i64),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory has keys already; they are made once.
    #[error("{0} exists already: keys of a run are made once")]
    Exists(PathBuf),
    /// `platform.json` is not what [`SimulatedPlatform::save`] writes.
    #[error("platform.json: {0}")]
    Format(String),
}

/// Keys, certificates and security versions of one simulated platform.
///
/// What it signs is *simulated*: it verifies only under [`SimulatedPlatform::root_der`].
pub struct SimulatedPlatform {
    pub(crate) keys: Keys,
    pub(crate) certificates: Certificates,
    pub(crate) identity: PlatformIdentity,
    /// When the certificates begin and end.
    pub(crate) span: Span,
    /// Certification data of the attestation key (type 6): the quoting enclave's report, signed by the PCK.
    pub(crate) certification: Vec<u8>,
    /// The attestation key, ready to sign: a quote is made for every request under load.
    pub(crate) signer: SigningKey,
}

/// The platform's private keys, all P-256.
pub(crate) struct Keys {
    pub(crate) root: KeyPair,
    pub(crate) platform_ca: KeyPair,
    pub(crate) pck: KeyPair,
    pub(crate) tcb_signer: KeyPair,
    pub(crate) attestation: KeyPair,
}

/// The platform's certificates, DER.
pub(crate) struct Certificates {
    pub(crate) root: Vec<u8>,
    pub(crate) platform_ca: Vec<u8>,
    pub(crate) pck: Vec<u8>,
    pub(crate) tcb_signer: Vec<u8>,
}

/// What tells this platform from others, as it stands in the PCK certificate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlatformIdentity {
    #[serde(with = "hex::serde")]
    pub(crate) ppid: [u8; 16],
    #[serde(with = "hex::serde")]
    pub(crate) instance: [u8; 16],
}

impl SimulatedPlatform {
    /// Makes a new platform with new keys. Certificates are valid from an hour before `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`PkiError::Certificate`], [`PkiError::Random`], [`PkiError::Time`].
    pub fn generate(now: u64) -> Result<Self, PkiError> {
        let from = now.saturating_sub(3600);
        Self::generate_for(from, from.saturating_add(certificates::CERTIFICATE_LIFE))
    }

    /// [`SimulatedPlatform::generate`] with the time for which the certificates are valid, seconds since 1970.
    ///
    /// # Errors
    /// As there.
    pub fn generate_for(from: u64, until: u64) -> Result<Self, PkiError> {
        let mut identity = PlatformIdentity { ppid: [0; 16], instance: [0; 16] };
        getrandom::fill(&mut identity.ppid)?;
        getrandom::fill(&mut identity.instance)?;
        let keys = Keys {
            root: KeyPair::generate()?,
            platform_ca: KeyPair::generate()?,
            pck: KeyPair::generate()?,
            tcb_signer: KeyPair::generate()?,
            attestation: KeyPair::generate()?,
        };
        let span = Span { from, until };
        let certificates = certificates::issue(&keys, &identity, span)?;
        Self::assemble(keys, certificates, identity, span)
    }

    fn assemble(
        keys: Keys,
        certificates: Certificates,
        identity: PlatformIdentity,
        span: Span,
    ) -> Result<Self, PkiError> {
        let certification = crate::quote::certification(&keys, &certificates)?;
        let signer = signing_key("attestation", &keys.attestation)?;
        Ok(Self { keys, certificates, identity, span, certification, signer })
    }

    /// Another PCK certificate of the platform, bad in one way.
    pub(crate) fn other_pck(&self, fault: Option<crate::Fault>) -> Result<Vec<u8>, PkiError> {
        certificates::other_pck(self, fault)
    }

    /// The root certificate, DER: the only anchor under which this platform's quotes verify.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.certificates.root
    }

    /// The platform provisioning ID, as the PCK certificate shows it.
    #[must_use]
    pub const fn ppid(&self) -> [u8; 16] {
        self.identity.ppid
    }
}

/// CPU security versions of the platform, one byte per component.
pub(crate) const CPU_SVN: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
/// Security version of the provisioning certification enclave.
pub(crate) const PCE_SVN: u16 = 13;
/// Family, model, stepping, platform: says what it is.
pub(crate) const FMSPC: [u8; 6] = *b"SIM\0\0\0";
/// Security versions of the TDX module: ISVSVN 6 of module version 1, microcode 3.
pub(crate) const TEE_TCB_SVN: [u8; 16] = [6, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// ECDSA with SHA-256 over `message`, r ‖ s.
pub(crate) fn sign_raw(name: &'static str, key: &KeyPair, message: &[u8]) -> Result<[u8; 64], PkiError> {
    Ok(sign_with(&signing_key(name, key)?, message))
}

/// [`sign_raw`] with a key that was read before.
pub(crate) fn sign_with(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let signature: p256::ecdsa::Signature = key.sign(message);
    signature.to_bytes().into()
}

fn signing_key(name: &'static str, key: &KeyPair) -> Result<SigningKey, PkiError> {
    SigningKey::from_pkcs8_der(key.serialized_der()).map_err(|_| PkiError::Key(name))
}

/// The public key as x ‖ y.
pub(crate) fn raw_public(name: &'static str, key: &KeyPair) -> Result<[u8; 64], PkiError> {
    let point = key.public_key_raw();
    match point.split_first() {
        Some((4, coordinates)) => coordinates.try_into().map_err(|_| PkiError::Key(name)),
        _ => Err(PkiError::Key(name)),
    }
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = sha2::Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

pub(crate) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

pub(crate) fn date(seconds: i64) -> Result<time::OffsetDateTime, PkiError> {
    time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| PkiError::Time(seconds))
}
