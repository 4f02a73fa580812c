// SPDX-License-Identifier: Apache-2.0
//! Whom to believe about hardware.

use serde::{Deserialize, Serialize};

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
