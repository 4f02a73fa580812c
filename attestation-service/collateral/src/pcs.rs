// SPDX-License-Identifier: Apache-2.0
//! Intel's interface ("API Documentation for SGX and TDX Provisioning Certification Service", version 4), as Intel's
//! PCS and every PCCS speak it.

use std::{io, time::Duration};

use http::HeaderMap;
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use types::Refusal;

use crate::{
    Wanted,
    http::{Answer, Endpoint, HttpError, SourceError},
};

/// A PCCS, or Intel's PCS.
#[derive(Debug, Clone)]
pub struct Source {
    base: Endpoint,
    /// Where the root's revocation list is: Intel's own service has it elsewhere.
    root_list: Option<Endpoint>,
}

/// Which TCB evaluation is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationSet {
    /// The one in force.
    Standard,
    /// The newest that is published, commonly weeks before it is in force.
    Early,
}

/// Why no collateral was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request failed.
    #[error("{what}: {source}")]
    Http {
        /// What was asked for.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: HttpError,
    },
    /// The answer is not of Intel's form.
    #[error("{what}: {rule}")]
    Form {
        /// What was asked for.
        what: &'static str,
        /// What is wrong.
        rule: &'static str,
    },
}

impl Source {
    /// A source at `url` (`https://HOST[:PORT][/PATH]`; with `http://` anybody on the way can keep it from answering, or
    /// answer with what is old, which [`crate::Keeper`] refuses). `authorities` gives the certificates (PEM) that https
    /// is judged by.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn new(url: &str, authorities: impl Fn() -> io::Result<Vec<u8>>) -> Result<Self, SourceError> {
        let base = Endpoint::parse(url, &authorities)?.without(&["/sgx/certification/v4", "/tdx/certification/v4"]);
        let root_list =
            (base.host() == INTEL_PCS).then(|| Endpoint::parse(INTEL_ROOT_LIST, &authorities)).transpose()?;
        Ok(Self { base, root_list })
    }

    /// The same source with another limit for one request; 15 s otherwise.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        let Self { base, root_list } = self;
        Self { base: base.within(limit), root_list: root_list.map(|endpoint| endpoint.within(limit)) }
    }

    /// Fetches collateral for one kind of platform, in the JSON form of [`tdx_verify::Collateral`]. **Not verified.**
    ///
    /// # Errors
    /// [`FetchError`] names the request.
    pub async fn fetch(&self, wanted: &Wanted, set: EvaluationSet) -> Result<Vec<u8>, FetchError> {
        // A PCCS of an older version does not know the parameter; what it gives without is the standard set.
        let (and, only) = match set {
            EvaluationSet::Standard => ("", ""),
            EvaluationSet::Early => ("&update=early", "?update=early"),
        };
        let (fmspc, ca) = (hex::encode_upper(wanted.fmspc.as_bytes()), wanted.ca.as_str());
        let list = self.get(PCK_CRL, &format!("/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")).await?;
        let info = self.get(TCB_INFO, &format!("/tdx/certification/v4/tcb?fmspc={fmspc}{and}")).await?;
        let identity = self.get(QE_IDENTITY, &format!("/tdx/certification/v4/qe/identity{only}")).await?;
        let root_list = match &self.root_list {
            Some(endpoint) => endpoint.get("").await.map_err(|source| FetchError::Http { what: ROOT_CRL, source })?,
            None => self.get(ROOT_CRL, "/sgx/certification/v4/rootcacrl").await?,
        };
        let (tcb_info, tcb_info_signature) = signed::<TcbInfoAnswer>(TCB_INFO, &info)?.parts();
        let (qe_identity, qe_identity_signature) = signed::<QeIdentityAnswer>(QE_IDENTITY, &identity)?.parts();
        let file = json!({
            "pck_crl_issuer_chain": chain(PCK_CRL, &list.headers, &["sgx-pck-crl-issuer-chain"])?,
            "root_ca_crl": hex::encode(revocation_list(ROOT_CRL, &root_list.body)?),
            "pck_crl": hex::encode(revocation_list(PCK_CRL, &list.body)?),
            "tcb_info_issuer_chain":
                chain(TCB_INFO, &info.headers, &["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"])?,
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_info_signature,
            "qe_identity_issuer_chain": chain(QE_IDENTITY, &identity.headers, &["sgx-enclave-identity-issuer-chain"])?,
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_identity_signature,
        });
        Ok(file.to_string().into_bytes())
    }

    async fn get(&self, what: &'static str, below: &str) -> Result<Answer, FetchError> {
        self.base.get(below).await.map_err(|source| FetchError::Http { what, source })
    }
}

impl FetchError {
    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Http { what, .. } => Refusal::new(
                "collateral_source",
                what,
                self.to_string(),
                "look after the PCCS, or give the address of another one",
            ),
            Self::Form { what, .. } => Refusal::new(
                "collateral_malformed",
                what,
                self.to_string(),
                "give the address of a PCCS that speaks version 4 of Intel's interface",
            ),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcbInfoAnswer {
    #[serde(rename = "tcbInfo")]
    tcb_info: Box<RawValue>,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QeIdentityAnswer {
    #[serde(rename = "enclaveIdentity")]
    enclave_identity: Box<RawValue>,
    signature: String,
}

/// A document as its bytes were served, and the signature over them.
trait Signed {
    fn parts(self) -> (String, String);
}

impl Signed for TcbInfoAnswer {
    fn parts(self) -> (String, String) {
        (self.tcb_info.get().to_owned(), self.signature)
    }
}

impl Signed for QeIdentityAnswer {
    fn parts(self) -> (String, String) {
        (self.enclave_identity.get().to_owned(), self.signature)
    }
}

fn signed<T: Signed + for<'de> Deserialize<'de>>(what: &'static str, answer: &Answer) -> Result<T, FetchError> {
    serde_json::from_slice(&answer.body)
        .map_err(|_| FetchError::Form { what, rule: "the body is not a signed document of Intel's form" })
}

/// The issuer's chain in the first header of `names` that is there: PEM, percent-encoded.
fn chain(what: &'static str, headers: &HeaderMap, names: &[&str]) -> Result<String, FetchError> {
    let form = |rule| FetchError::Form { what, rule };
    let value =
        names.iter().find_map(|name| headers.get(*name)).ok_or_else(|| form("the issuer's chain is missing"))?;
    percent_decode(value.as_bytes()).ok_or_else(|| form("the issuer's chain is not percent-encoded text"))
}

fn percent_decode(text: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            decoded.extend(byte);
            rest = after;
        } else {
            decoded.push(*first);
        }
    }
    String::from_utf8(decoded).ok()
}

/// A revocation list as sources serve it: DER, the same in hexadecimal, or PEM.
fn revocation_list(what: &'static str, body: &[u8]) -> Result<Vec<u8>, FetchError> {
    if body.first() == Some(&SEQUENCE) {
        return Ok(body.to_vec());
    }
    let pem = || CertificateRevocationListDer::from_pem_slice(body).ok().map(|list| list.to_vec());
    hex::decode(body.trim_ascii())
        .ok()
        .filter(|der| der.first() == Some(&SEQUENCE))
        .or_else(pem)
        .ok_or(FetchError::Form { what, rule: "the body is no revocation list in DER, hexadecimal or PEM" })
}

const PCK_CRL: &str = "pck_crl";
const TCB_INFO: &str = "tcb_info";
const QE_IDENTITY: &str = "qe_identity";
const ROOT_CRL: &str = "root_ca_crl";
const SEQUENCE: u8 = 0x30;
const INTEL_PCS: &str = "api.trustedservices.intel.com";
const INTEL_ROOT_LIST: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_percent_encoded() {
        assert_eq!(percent_decode(b"-----BEGIN%20X%0A%2b").as_deref(), Some("-----BEGIN X\n+"));
        for bad in [&b"%"[..], b"%2", b"%zz", b"%ff"] {
            assert_eq!(percent_decode(bad), None);
        }
    }

    #[test]
    fn lists_come_in_three_forms() {
        let der = vec![0x30, 1, 2];
        assert_eq!(revocation_list("x", &der).unwrap(), der);
        assert_eq!(revocation_list("x", b"300102\n").unwrap(), der);
        assert_eq!(revocation_list("x", b"-----BEGIN X509 CRL-----\nMAEC\n-----END X509 CRL-----\n").unwrap(), der);
        for bad in [&b""[..], b"x", b"1234", b"<html>"] {
            assert!(matches!(revocation_list("x", bad), Err(FetchError::Form { .. })));
        }
    }
}
