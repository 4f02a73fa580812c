// SPDX-License-Identifier: Apache-2.0
//! Whom to believe about hardware.

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

/// The root under which quotes, collateral and revocation lists must stand.
///
/// There is no constructor that reads a file, a flag or the environment, and this type is not deserialisable:
/// which hardware a program trusts is fixed when it is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustAnchors(Root);

/// What stands behind a verified quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// A processor with Intel TDX.
    Tdx,
    /// A simulator of the hardware. It protects nothing.
    Simulated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    Intel,
    Custom(Vec<u8>),
}

impl TrustAnchors {
    /// Intel's SGX root CA, compiled in.
    #[must_use]
    pub const fn intel() -> Self {
        Self(Root::Intel)
    }

    /// Another root (DER of the self-signed certificate). Only for binaries of development-only crates:
    /// everything verified under it is [`Hardware::Simulated`], and no release for real hardware fits it.
    #[must_use]
    pub const fn custom(root_der: Vec<u8>) -> Self {
        Self(Root::Custom(root_der))
    }

    /// What quotes verified under these anchors come from.
    #[must_use]
    pub const fn hardware(&self) -> Hardware {
        match self.0 {
            Root::Intel => Hardware::Tdx,
            Root::Custom(_) => Hardware::Simulated,
        }
    }

    /// Whether `der` is the root certificate, byte by byte.
    pub(crate) fn is_root(&self, der: &[u8]) -> bool {
        match &self.0 {
            Root::Intel => Sha256Digest::of(der).as_bytes() == &INTEL_ROOT_SHA256,
            Root::Custom(root) => root == der,
        }
    }

    pub(crate) fn verifier(&self) -> dcap_qvl::verify::QuoteVerifier {
        match &self.0 {
            Root::Intel => dcap_qvl::verify::QuoteVerifier::new_prod(),
            Root::Custom(der) => dcap_qvl::verify::QuoteVerifier::new(der.clone()),
        }
    }
}

impl Hardware {
    /// The word for it in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Simulated => "simulated",
        }
    }
}

impl core::fmt::Display for Hardware {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// SHA-256 of "Intel SGX Root CA", the certificate that `dcap-qvl` has compiled in.
const INTEL_ROOT_SHA256: [u8; 32] = [
    0x44, 0xa0, 0x19, 0x6b, 0x2b, 0x99, 0xf8, 0x89, 0xb8, 0xe1, 0x49, 0xe9, 0x5b, 0x80, 0x7a, 0x35, 0x0e, 0x74, 0x24,
    0x96, 0x43, 0x99, 0xe8, 0x85, 0xa7, 0xcb, 0xb8, 0xcc, 0xfa, 0xb6, 0x74, 0xd3,
];
