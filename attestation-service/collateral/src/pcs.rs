// SPDX-License-Identifier: Apache-2.0
//! Intel's interface ("API Documentation for SGX and TDX Provisioning Certification Service", version 4), as Intel's
//! PCS and every PCCS speak it.

use std::{io, time::Duration};

use http::HeaderValue;
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
        let answers = Answers {
            pck_crl: Signed::of(&list, &["sgx-pck-crl-issuer-chain"]),
            root_ca_crl: &root_list.body,
            tcb_info: Signed::of(&info, &["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"]),
            qe_identity: Signed::of(&identity, &["sgx-enclave-identity-issuer-chain"]),
        };
        answers.assemble()
    }

    async fn get(&self, what: &'static str, below: &str) -> Result<Answer, FetchError> {
        self.base.get(below).await.map_err(|source| FetchError::Http { what, source })
    }
}

/// The four answers of a source, as they came.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// Revoked PCK certificates.
    pub pck_crl: Signed<'a>,
    /// The root's revocation list.
    pub root_ca_crl: &'a [u8],
    /// TCB information.
    pub tcb_info: Signed<'a>,
    /// Identity of the quoting enclave.
    pub qe_identity: Signed<'a>,
}

/// An answer that came with its issuer's chain.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The body.
    pub body: &'a [u8],
    /// Value of the header with the chain: PEM, percent-encoded.
    pub chain: Option<&'a [u8]>,
}

impl Answers<'_> {
    /// Puts them together in the JSON form of [`tdx_verify::Collateral`]. **Nothing is verified.**
    ///
    /// # Errors
    /// [`FetchError::Form`] names the answer.
    pub fn assemble(&self) -> Result<Vec<u8>, FetchError> {
        let Self { pck_crl, root_ca_crl, tcb_info, qe_identity } = self;
        let info: TcbInfoAnswer = tcb_info.read(TCB_INFO)?;
        let identity: QeIdentityAnswer = qe_identity.read(QE_IDENTITY)?;
        let file = json!({
            "pck_crl_issuer_chain": pck_crl.chain(PCK_CRL)?,
            "root_ca_crl": hex::encode(revocation_list(ROOT_CRL, root_ca_crl)?),
            "pck_crl": hex::encode(revocation_list(PCK_CRL, pck_crl.body)?),
            "tcb_info_issuer_chain": tcb_info.chain(TCB_INFO)?,
            "tcb_info": info.tcb_info.get(),
            "tcb_info_signature": info.signature,
            "qe_identity_issuer_chain": qe_identity.chain(QE_IDENTITY)?,
            "qe_identity": identity.enclave_identity.get(),
            "qe_identity_signature": identity.signature,
        });
        Ok(file.to_string().into_bytes())
    }
}

impl<'a> Signed<'a> {
    /// The chain stands in the first header of `names` that is there.
    fn of(answer: &'a Answer, names: &[&str]) -> Self {
        let chain = names.iter().find_map(|name| answer.headers.get(*name)).map(HeaderValue::as_bytes);
        Self { body: &answer.body, chain }
    }

    fn read<T: Deserialize<'a>>(&self, what: &'static str) -> Result<T, FetchError> {
        serde_json::from_slice(self.body)
            .map_err(|_| FetchError::Form { what, rule: "the body is not a signed document of Intel's form" })
    }

    fn chain(&self, what: &'static str) -> Result<String, FetchError> {
        let form = |rule| FetchError::Form { what, rule };
        let value = self.chain.ok_or_else(|| form("the issuer's chain is missing"))?;
        percent_decode(value).ok_or_else(|| form("the issuer's chain is not percent-encoded text"))
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
    /// As it was served: the signature goes over these bytes.
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
