// SPDX-License-Identifier: Apache-2.0
//! Collateral by itself, without a quote: who issued it, and from when until when it may be used.
//!
//! This decides what is worth keeping. It replaces nothing: [`crate::verify`] judges the same bytes again, with the
//! quote, by `dcap-qvl`.

use der::{Decode as _, Document, Encode as _, Reader as _, SliceReader, oid::ObjectIdentifier};
use ecdsa_verify::Scheme;
use serde::{Deserialize, Serialize};
use types::Refusal;
use x509_cert::{
    Certificate,
    certificate::Rfc5280,
    crl::CertificateList,
    ext::pkix::{BasicConstraints, KeyUsage},
};

use crate::{ChainRule, Collateral, TrustAnchors};

/// What verified collateral says of itself. All times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollateralFacts {
    /// The TCB information.
    pub tcb_info: Span,
    /// The quoting enclave's identity.
    pub qe_identity: Span,
    /// The revocation list for PCK certificates.
    pub pck_crl: Span,
    /// The root's revocation list.
    pub root_ca_crl: Span,
    /// `tcbEvaluationDataNumber` of the TCB information.
    pub tcb_evaluation_data_number: u32,
    /// `tcbEvaluationDataNumber` of the quoting enclave's identity.
    pub qe_evaluation_data_number: u32,
    /// Date of the newest TCB level that is `UpToDate`.
    pub newest_level: u64,
    /// First end of any certificate of the issuers' chains.
    pub certificates_end: u64,
}

/// When something was issued, and when its successor is due; it is valid until then, that second included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// `issueDate` or `thisUpdate`.
    pub issued: u64,
    /// `nextUpdate`.
    pub next_update: u64,
}

/// Why collateral was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct CollateralFault {
    rule: ChainRule,
    field: &'static str,
    detail: String,
}

impl CollateralFacts {
    /// The last second at which all of it is valid.
    #[must_use]
    pub fn expires(&self) -> u64 {
        let Self { tcb_info, qe_identity, pck_crl, root_ca_crl, certificates_end, .. } = self;
        [tcb_info, qe_identity, pck_crl, root_ca_crl]
            .map(|span| span.next_update)
            .into_iter()
            .fold(*certificates_end, u64::min)
    }
}

impl CollateralFault {
    /// The rule that was broken.
    #[must_use]
    pub const fn rule(&self) -> ChainRule {
        self.rule
    }

    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, _, fix) = self.rule.facts();
        Refusal::new(code, &format!("collateral.{}", self.field), self.detail.clone(), fix)
    }
}

impl Collateral {
    /// Verifies signatures, certificates, revocation and validity at `now` (seconds since 1970), under `anchors`.
    ///
    /// Establishes that the four parts were issued under that root. Not that they are the newest: an older issue that
    /// is still valid passes. Nor that they fit a quote.
    ///
    /// # Errors
    /// The first [`CollateralFault`].
    pub fn check(&self, anchors: &TrustAnchors, now: u64) -> Result<CollateralFacts, CollateralFault> {
        let at = |field| Check { field, anchors, now };
        let inner = &self.inner;
        let crl = at("root_ca_crl");
        let (pck_ca, root) = at("pck_crl_issuer_chain").chain(&inner.pck_crl_issuer_chain, Usage::Authority)?;
        let (root_ca_crl, revoked) = crl.list(&inner.root_ca_crl, &root)?;
        at("pck_crl_issuer_chain").not_revoked(&pck_ca, &revoked)?;
        let (pck_crl, _) = at("pck_crl").list(&inner.pck_crl, &pck_ca)?;
        let mut ends = vec![pck_ca.validity().1, root.validity().1];
        let mut signed = |field, chain, text: &str, signature: &[u8]| {
            let check = at(field);
            let (signer, _) = check.chain(chain, Usage::Signer)?;
            check.not_revoked(&signer, &revoked)?;
            ends.push(signer.validity().1);
            let fault = || check.fault(ChainRule::CollateralSignature, "its signature does not verify");
            Scheme::P256Fixed.verifies(signer.key(), text.as_bytes(), signature).then_some(()).ok_or_else(fault)
        };
        signed("tcb_info", &inner.tcb_info_issuer_chain, &inner.tcb_info, &inner.tcb_info_signature)?;
        signed("qe_identity", &inner.qe_identity_issuer_chain, &inner.qe_identity, &inner.qe_identity_signature)?;
        let info: dcap_qvl::TcbInfo = at("tcb_info").parse(&inner.tcb_info)?;
        let identity: dcap_qvl::QeIdentity = at("qe_identity").parse(&inner.qe_identity)?;
        if identity.id != "TD_QE" {
            return Err(at("qe_identity").fault(ChainRule::CollateralMalformed, "it is not of the TD quoting enclave"));
        }
        let mut newest_level = 0;
        for level in info.tcb_levels.iter().filter(|level| level.tcb_status == dcap_qvl::TcbStatus::UpToDate) {
            newest_level = newest_level.max(at("tcb_info").time(&level.tcb_date)?);
        }
        Ok(CollateralFacts {
            tcb_info: at("tcb_info").span(&info.issue_date, &info.next_update)?,
            qe_identity: at("qe_identity").span(&identity.issue_date, &identity.next_update)?,
            pck_crl,
            root_ca_crl,
            tcb_evaluation_data_number: info.tcb_evaluation_data_number,
            qe_evaluation_data_number: identity.tcb_evaluation_data_number,
            newest_level,
            certificates_end: ends.into_iter().min().unwrap_or_default(),
        })
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// Signs certificates and revocation lists.
    Authority,
    /// Signs documents.
    Signer,
}

/// One field under examination.
#[derive(Clone, Copy)]
struct Check<'a> {
    field: &'static str,
    anchors: &'a TrustAnchors,
    now: u64,
}

impl Check<'_> {
    fn fault(&self, rule: ChainRule, detail: impl Into<String>) -> CollateralFault {
        CollateralFault { rule, field: self.field, detail: detail.into() }
    }

    fn malformed(&self, detail: impl Into<String>) -> CollateralFault {
        self.fault(ChainRule::CollateralMalformed, detail)
    }

    /// The certificate of `usage`, and the root that issued it: nothing stands between them in Intel's chains.
    fn chain(&self, pem: &str, usage: Usage) -> Result<(Cert, Cert), CollateralFault> {
        let mut chain = certificates(pem).map_err(|detail| self.malformed(detail))?;
        let (Some(root), Some(first), true) = (chain.pop(), chain.pop(), chain.is_empty()) else {
            return Err(self.malformed("the issuer's chain must have two certificates"));
        };
        if !self.anchors.is_root(&root.der) || !first.is_issued_by(&root) {
            return Err(self.fault(ChainRule::RootUntrusted, "the issuer's chain does not end in the trusted root"));
        }
        for certificate in [&first, &root] {
            let (from, until) = certificate.validity();
            if self.now < from {
                let detail = format!("a certificate of the issuer begins at {from} (seconds since 1970)");
                return Err(self.fault(ChainRule::CertificateNotYetValid, detail));
            }
            if self.now > until {
                let detail = format!("a certificate of the issuer ended at {until} (seconds since 1970)");
                return Err(self.fault(ChainRule::CertificateExpired, detail));
            }
        }
        if !first.is_for(usage) {
            return Err(self.malformed("the issuer's certificate is not for this use"));
        }
        Ok((first, root))
    }

    /// A revocation list of `issuer`, and the serial numbers on it.
    fn list(&self, der: &[u8], issuer: &Cert) -> Result<(Span, Vec<Vec<u8>>), CollateralFault> {
        let invalid = |detail: &str| self.fault(ChainRule::CrlInvalid, detail);
        let list = CertificateList::<Rfc5280>::from_der(der).map_err(|_| invalid("it is no revocation list"))?;
        let signed = signed_part(der).map_err(|_| invalid("it is no revocation list"))?;
        let tbs = &list.tbs_cert_list;
        if tbs.issuer.to_der().ok() != issuer.parsed.tbs_certificate().subject().to_der().ok()
            || !issuer.signed(&signed, list.signature.as_bytes().unwrap_or_default())
        {
            return Err(invalid("it is not signed by its issuer"));
        }
        let next = tbs.next_update.ok_or_else(|| invalid("it names no next update"))?;
        let span = Span {
            issued: tbs.this_update.to_unix_duration().as_secs(),
            next_update: next.to_unix_duration().as_secs(),
        };
        self.current(span, ChainRule::CrlExpired)?;
        let revoked = tbs.revoked_certificates.iter().flatten();
        Ok((span, revoked.map(|entry| entry.serial_number.as_bytes().to_vec()).collect()))
    }

    fn not_revoked(&self, certificate: &Cert, revoked: &[Vec<u8>]) -> Result<(), CollateralFault> {
        let serial = certificate.parsed.tbs_certificate().serial_number().as_bytes();
        if revoked.iter().any(|entry| entry == serial) {
            return Err(self.fault(ChainRule::CertificateRevoked, "the root revoked the issuer's certificate"));
        }
        Ok(())
    }

    fn current(&self, span: Span, expired: ChainRule) -> Result<(), CollateralFault> {
        if self.now < span.issued {
            let detail = format!("it was issued at {}, it is {} (seconds since 1970)", span.issued, self.now);
            return Err(self.fault(ChainRule::CollateralNotYetValid, detail));
        }
        if self.now > span.next_update {
            let detail = format!("its time ended at {}, it is {} (seconds since 1970)", span.next_update, self.now);
            return Err(self.fault(expired, detail));
        }
        Ok(())
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, CollateralFault> {
        serde_json::from_str(text)
            .map_err(|e| self.malformed(format!("{:?} error at column {}", e.classify(), e.column())))
    }

    fn span(&self, issued: &str, next_update: &str) -> Result<Span, CollateralFault> {
        let span = Span { issued: self.time(issued)?, next_update: self.time(next_update)? };
        self.current(span, ChainRule::CollateralExpired)?;
        Ok(span)
    }

    /// Intel writes times as `2026-03-20T00:00:00Z`.
    fn time(&self, text: &str) -> Result<u64, CollateralFault> {
        let time: Option<der::DateTime> = text.parse().ok();
        Ok(time.ok_or_else(|| self.malformed("a date is not of RFC 3339 in UTC"))?.unix_duration().as_secs())
    }
}

/// A certificate and the bytes that its issuer signed.
struct Cert {
    der: Vec<u8>,
    signed: Vec<u8>,
    parsed: Certificate,
}

impl Cert {
    fn key(&self) -> &[u8] {
        self.parsed.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes().unwrap_or_default()
    }

    fn validity(&self) -> (u64, u64) {
        let validity = self.parsed.tbs_certificate().validity();
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs())
    }

    /// Whether the holder of this certificate's key signed `message`: ECDSA, P-256, SHA-256 and nothing else.
    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        Scheme::P256Der.verifies(self.key(), message, signature)
    }

    fn is_issued_by(&self, issuer: &Self) -> bool {
        let name = issuer.parsed.tbs_certificate().subject().to_der().ok();
        self.parsed.tbs_certificate().issuer().to_der().ok() == name
            && issuer.is_for(Usage::Authority)
            && issuer.signed(&self.signed, self.parsed.signature().as_bytes().unwrap_or_default())
    }

    fn is_for(&self, usage: Usage) -> bool {
        let authority = self
            .extension(BASIC_CONSTRAINTS)
            .is_some_and(|der| BasicConstraints::from_der(der).is_ok_and(|constraints| constraints.ca));
        let Some(usages) = self.extension(KEY_USAGE).and_then(|der| KeyUsage::from_der(der).ok()) else { return false };
        match usage {
            Usage::Authority => authority && usages.key_cert_sign() && usages.crl_sign(),
            Usage::Signer => !authority && usages.digital_signature(),
        }
    }

    fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.parsed.tbs_certificate().extensions()?;
        extensions.iter().find(|extension| extension.extn_id == oid).map(|found| found.extn_value.as_bytes())
    }
}

/// Certificates of PEM text, in order; NUL bytes may stand at the end, as Intel's tools write them.
fn certificates(pem: &str) -> Result<Vec<Cert>, &'static str> {
    let mut rest = pem.trim_end_matches('\0').trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let end = rest.find(END).ok_or("the issuer's chain is not PEM")?.saturating_add(END.len());
        let (one, after) = rest.split_at_checked(end).ok_or("the issuer's chain is not PEM")?;
        let (label, document) = Document::from_pem(one).map_err(|_| "the issuer's chain is not PEM")?;
        let der = document.into_vec();
        let parsed = Certificate::from_der(&der).map_err(|_| "the issuer's chain has no X.509 certificate")?;
        let signed = signed_part(&der).map_err(|_| "the issuer's chain has no X.509 certificate")?;
        if label != "CERTIFICATE" || found.len() >= MAX_CERTIFICATES {
            return Err("the issuer's chain must have two certificates");
        }
        found.push(Cert { der, signed, parsed });
        rest = after.trim_start();
    }
    Ok(found)
}

/// The signed part of a certificate or revocation list, as it stands in `der`: not a re-encoding.
fn signed_part(der: &[u8]) -> der::Result<Vec<u8>> {
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|inner| {
        let signed = inner.tlv_bytes()?.to_vec();
        inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        Ok::<_, der::Error>(signed)
    })
}

const END: &str = "-----END CERTIFICATE-----";
const MAX_CERTIFICATES: usize = 4;
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
