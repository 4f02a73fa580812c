// SPDX-License-Identifier: Apache-2.0
//! A chain of certificates from a leaf to a root that is known by its digest (RFC 5280, section 6).
//!
//! The same rules serve devices and reference manifests: every certificate is issued by the next one in order,
//! the last one is the root itself.

use der::oid::ObjectIdentifier;
use types::Sha256Digest;

use crate::certificate::{BASIC_CONSTRAINTS, Cert, KEY_USAGE, MAX_CERTIFICATES};

/// One rule that a chain broke. `index` counts certificates from the leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// No certificates, too many, or none that can be read.
    #[error("the chain {0}")]
    Malformed(String),
    /// The last certificate is not the root that is trusted.
    #[error("the last certificate has digest {found}, the root has {expected}")]
    Root {
        /// Digest of the trusted root.
        expected: Sha256Digest,
        /// Digest of the last certificate.
        found: Sha256Digest,
    },
    /// A certificate names another issuer than the next one's subject.
    #[error("certificate {index} is not issued in the name of the next one")]
    Issuer {
        /// Which certificate.
        index: usize,
    },
    /// The next certificate's key did not sign this one.
    #[error("certificate {index} is not signed by the next one")]
    Signature {
        /// Which certificate.
        index: usize,
    },
    /// Neither ECDSA with P-384 and SHA-384 nor X.509 version 3.
    #[error("certificate {index} must be X.509 version 3 with ECDSA, P-384 and SHA-384")]
    Algorithm {
        /// Which certificate.
        index: usize,
    },
    /// After its time.
    #[error("certificate {index} ended at {not_after} s since 1970")]
    Expired {
        /// Which certificate.
        index: usize,
        /// Its last second.
        not_after: u64,
    },
    /// Before its time.
    #[error("certificate {index} begins at {not_before} s since 1970")]
    NotYetValid {
        /// Which certificate.
        index: usize,
        /// Its first second.
        not_before: u64,
    },
    /// The key may not be used so.
    #[error("the key usage of certificate {index} must be {expected}")]
    KeyUsage {
        /// Which certificate.
        index: usize,
        /// What it must allow.
        expected: &'static str,
    },
    /// A leaf that is a CA, a CA that is none, or too long a path below a CA.
    #[error("the basic constraints of certificate {index}: {rule}")]
    Constraints {
        /// Which certificate.
        index: usize,
        /// The rule.
        rule: &'static str,
    },
    /// A critical extension that is not known here, or one that stands twice.
    #[error("extension {oid} of certificate {index} stands twice, or is critical and not known")]
    Extension {
        /// Which certificate.
        index: usize,
        /// Its identifier.
        oid: ObjectIdentifier,
    },
}

/// All rules that the chain breaks; none when it is good at `now` under `root`.
pub(crate) fn faults(chain: &[Cert], root: &Sha256Digest, now: u64) -> Vec<ChainFault> {
    let (Some(last), true) = (chain.last(), chain.len() >= 2 && chain.len() <= MAX_CERTIFICATES) else {
        let rule = format!("must have 2 to {MAX_CERTIFICATES} certificates, found {}", chain.len());
        return vec![ChainFault::Malformed(rule)];
    };
    let mut faults = Vec::new();
    let found = last.digest();
    if found != *root {
        faults.push(ChainFault::Root { expected: *root, found });
    }
    for (index, certificate) in chain.iter().enumerate() {
        own_faults(certificate, index, now, &mut faults);
    }
    // The root's own signature proves nothing beyond its digest.
    for (index, (certificate, issuer)) in chain.iter().zip(chain.iter().skip(1)).enumerate() {
        if certificate.tbs().issuer() != issuer.tbs().subject() {
            faults.push(ChainFault::Issuer { index });
        }
        if !certificate.is_signed_by(issuer) {
            faults.push(ChainFault::Signature { index });
        }
    }
    faults
}

/// Rules for one certificate at its place.
fn own_faults(certificate: &Cert, index: usize, now: u64, faults: &mut Vec<ChainFault>) {
    if certificate.tbs().version() != x509_cert::Version::V3 || !certificate.uses_p384() {
        faults.push(ChainFault::Algorithm { index });
    }
    let (not_before, not_after) = certificate.validity();
    if now < not_before {
        faults.push(ChainFault::NotYetValid { index, not_before });
    }
    if now > not_after {
        faults.push(ChainFault::Expired { index, not_after });
    }
    let usage = certificate.key_usage();
    let (good, expected) = if index == 0 {
        let signs = |usage: x509_cert::ext::pkix::KeyUsage| usage.digital_signature() && !usage.key_cert_sign();
        (usage.is_some_and(signs), "digitalSignature, not keyCertSign")
    } else {
        (usage.is_some_and(|usage| usage.key_cert_sign()), "keyCertSign")
    };
    if !good {
        faults.push(ChainFault::KeyUsage { index, expected });
    }
    if let Some(rule) = constraints_rule(certificate, index) {
        faults.push(ChainFault::Constraints { index, rule });
    }
    let extensions = certificate.extensions();
    for (place, extension) in extensions.iter().enumerate() {
        let oid = extension.extn_id;
        let twice = extensions.iter().take(place).any(|other| other.extn_id == oid);
        if twice || (extension.critical && !UNDERSTOOD.contains(&oid)) {
            faults.push(ChainFault::Extension { index, oid });
        }
    }
}

/// The rule of basic constraints that is broken, if any.
fn constraints_rule(certificate: &Cert, index: usize) -> Option<&'static str> {
    let present = certificate.extension(BASIC_CONSTRAINTS).is_some();
    let constraints = certificate.basic_constraints();
    if index == 0 {
        let leaf = !present || constraints.is_some_and(|found| !found.ca);
        return (!leaf).then_some("a leaf is no CA");
    }
    let Some(constraints) = constraints.filter(|found| found.ca) else { return Some("an issuer is a CA") };
    // Certificates of CAs between this one and the leaf.
    let below = index.saturating_sub(1);
    let short = constraints.path_len_constraint.is_some_and(|allowed| below > usize::from(allowed));
    short.then_some("more CAs below it than its path length allows")
}

/// Critical extensions that the rules here judge.
const UNDERSTOOD: [ObjectIdentifier; 2] = [BASIC_CONSTRAINTS, KEY_USAGE];
