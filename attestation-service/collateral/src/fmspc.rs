// SPDX-License-Identifier: Apache-2.0
//! Kinds of platforms.

use core::fmt;
use core::str::FromStr;

use der::Decode as _;
use serde::{Deserialize, Serialize, Serializer};
use x509_cert::{certificate::Rfc5280, crl::CertificateList};

/// Family, model, stepping, platform type and custom SKU: the kind of a platform, for which Intel publishes collateral.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fmspc([u8; 6]);

/// Which authority issued the PCK certificates of a kind of platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PckCa {
    /// "Intel SGX PCK Platform CA": all servers with TDX.
    #[default]
    Platform,
    /// "Intel SGX PCK Processor CA".
    Processor,
}

/// Collateral that a service needs. Written `90c06f000000` or `90c06f000000:processor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The kind of platform.
    pub fmspc: Fmspc,
    /// The authority of its PCK certificates.
    pub ca: PckCa,
}

/// Text that names no kind of platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an FMSPC has 12 hexadecimal digits, and may be followed by :platform or :processor")]
pub struct FmspcError;

impl Fmspc {
    /// Takes the six bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }
}

impl PckCa {
    /// Its name in Intel's interface.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Processor => "processor",
        }
    }

    /// Which authority issued a revocation list (DER), by the common name of its issuer. **Verifies nothing.**
    pub(crate) fn of_list(der: &[u8]) -> Option<Self> {
        let list = CertificateList::<Rfc5280>::from_der(der).ok()?;
        let name = list.tbs_cert_list.issuer.common_name().ok()??;
        [Self::Platform, Self::Processor].into_iter().find(|ca| name.value().ends_with(ca.common_name()))
    }

    /// The end of its common name; a simulated one has another beginning.
    const fn common_name(self) -> &'static str {
        match self {
            Self::Platform => " PCK Platform CA",
            Self::Processor => " PCK Processor CA",
        }
    }
}

impl fmt::Display for PckCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Fmspc {
    type Err = FmspcError;

    fn from_str(text: &str) -> Result<Self, FmspcError> {
        let mut bytes = [0; 6];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| FmspcError)?;
        Ok(Self(bytes))
    }
}

impl FromStr for Wanted {
    type Err = FmspcError;

    fn from_str(text: &str) -> Result<Self, FmspcError> {
        let (fmspc, ca) = text.split_once(':').unwrap_or((text, "platform"));
        let ca = match ca {
            "platform" => PckCa::Platform,
            "processor" => PckCa::Processor,
            _ => return Err(FmspcError),
        };
        Ok(Self { fmspc: fmspc.parse()?, ca })
    }
}

impl fmt::Display for Fmspc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Fmspc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hexadecimal() {
        let wanted: Wanted = "90C06F000000".parse().unwrap();
        assert_eq!((wanted.fmspc.to_string().as_str(), wanted.ca), ("90c06f000000", PckCa::Platform));
        assert_eq!("90c06f000000:processor".parse::<Wanted>().unwrap().ca, PckCa::Processor);
        for bad in
            ["", "90c06f", "90c06f00000g", "90c06f000000:", "90c06f000000:root", "../../../..", "90c06f0000000000"]
        {
            assert_eq!(bad.parse::<Wanted>(), Err(FmspcError), "{bad}");
        }
    }
}
