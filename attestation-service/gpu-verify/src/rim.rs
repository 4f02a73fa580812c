// SPDX-License-Identifier: Apache-2.0
//! Reference integrity manifests: SWID tags (ISO/IEC 19770-2:2015) with the attributes of the TCG "Reference Integrity
//! Manifest Information Model", as NVIDIA publishes them for drivers, VBIOSes and switch firmware.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};
use types::{Refusal, Sha256Digest};

use crate::{
    GpuAnchors,
    certificate::Cert,
    chain::{self, ChainFault},
    measured::Golden,
    ocsp,
    policy::Requirement,
    rim_signature, xml,
};

/// A manifest whose signature, certificates and form are good. Only [`Rim::verify`] makes one.
#[derive(Debug, Clone)]
pub struct Rim {
    pub(crate) identity: RimIdentity,
    pub(crate) golden: BTreeMap<u8, Golden>,
    /// SHA-256 of the file.
    pub(crate) digest: Sha256Digest,
    /// Last second (since 1970) at which all its certificates, and the OCSP answers about them, are valid.
    pub(crate) expires: u64,
    pub(crate) revocation_checked: bool,
}

/// What a manifest says that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RimIdentity {
    /// Version of the driver or firmware.
    pub version: String,
    /// Name of the chip, e.g. `GH100`.
    pub product: String,
    /// `GPU` or `SWITCH`.
    pub edition: String,
}

/// Why a manifest was refused: all independent reasons. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the reference manifest was refused: {}", .faults.iter().map(RimFault::code).collect::<Vec<_>>().join(", "))]
pub struct RimRefused {
    /// What the manifest says of itself, where it can be read. Not to be relied on.
    pub claims: Option<RimIdentity>,
    /// The reasons.
    pub faults: Vec<RimFault>,
}

/// One rule that a manifest broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RimFault {
    /// Not the XML that is known.
    #[error("the manifest {0}")]
    Malformed(String),
    /// The signature does not cover the document, or is not by the first certificate.
    #[error("the manifest's signature {0}")]
    Signature(String),
    /// Its certificates.
    #[error("{0}")]
    Chain(ChainFault),
    /// The issuer of one of its certificates revoked it, or nobody says that it did not.
    #[error("certificate {index} of the manifest: {status}")]
    Revocation {
        /// Which certificate.
        index: usize,
        /// Code of the reason.
        code: &'static str,
        /// What the answers say.
        status: &'static str,
    },
}

impl Rim {
    /// Verifies a manifest at `now` (seconds since 1970).
    ///
    /// `ocsp` are answers of NVIDIA's OCSP service, fetched before; without them `revocation` decides.
    ///
    /// # Errors
    /// [`RimRefused`] with all reasons; a malformed manifest has that one alone.
    pub fn verify(
        bytes: &[u8],
        anchors: &GpuAnchors,
        ocsp: &[Vec<u8>],
        revocation: Requirement,
        now: u64,
    ) -> Result<Self, RimRefused> {
        let refuse = |claims, fault| RimRefused { claims, faults: vec![fault] };
        let document = xml::parse(bytes).map_err(|rule| refuse(None, RimFault::Malformed(rule)))?;
        let parts = Parts::of(&document).map_err(|rule| refuse(None, RimFault::Malformed(rule)))?;
        let identity = identity(parts.meta).map_err(|rule| refuse(None, RimFault::Malformed(rule)))?;
        let malformed = |rule| refuse(Some(identity.clone()), RimFault::Malformed(rule));
        let golden = golden(parts.payload).map_err(malformed)?;
        let signature = rim_signature::read(parts.root, parts.signature).map_err(malformed)?;
        let mut faults = Vec::new();
        if let Err(rule) = signature.verify() {
            faults.push(RimFault::Signature(rule));
        }
        let chain = chain::faults(&signature.certificates, anchors.rim_root(), now);
        faults.extend(chain.into_iter().map(RimFault::Chain));
        let (revocation_checked, answered) =
            check_revocation(&signature.certificates, ocsp, revocation, now, &mut faults);
        if !faults.is_empty() {
            return Err(RimRefused { claims: Some(identity), faults });
        }
        let expires = signature.certificates.iter().map(|cert| cert.validity().1).fold(answered, u64::min);
        Ok(Self { identity, golden, digest: Sha256Digest::of(bytes), expires, revocation_checked })
    }

    /// What a manifest says that it is about, without believing it.
    pub(crate) fn claims(bytes: &[u8]) -> Result<RimIdentity, RimFault> {
        let document = xml::parse(bytes).map_err(RimFault::Malformed)?;
        let parts = Parts::of(&document).map_err(RimFault::Malformed)?;
        identity(parts.meta).map_err(RimFault::Malformed)
    }

    /// The certificates of a manifest, without believing it; none where it cannot be read.
    pub(crate) fn claimed_certificates(bytes: &[u8]) -> Vec<Cert> {
        let read = |document: &Document<'_>| {
            let parts = Parts::of(document).ok()?;
            rim_signature::read(parts.root, parts.signature).ok()
        };
        xml::parse(bytes).ok().as_ref().and_then(read).map(|signature| signature.certificates).unwrap_or_default()
    }

    /// What it is about.
    #[must_use]
    pub const fn identity(&self) -> &RimIdentity {
        &self.identity
    }

    /// SHA-256 of the file.
    #[must_use]
    pub const fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// Last second (since 1970) at which all its certificates, and the OCSP answers about them, are valid.
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }

    /// Number of values that must match.
    #[must_use]
    pub fn active(&self) -> usize {
        self.golden.len()
    }
}

impl RimRefused {
    /// The reasons in the form that users see.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        let refusal = |fault: &RimFault| Refusal::new(fault.code(), "rim", self.detail(fault), fault.fix());
        self.faults.iter().map(refusal).collect()
    }

    pub(crate) fn detail(&self, fault: &RimFault) -> String {
        match &self.claims {
            None => fault.to_string(),
            Some(claims) => format!("{fault} (manifest that claims {} {})", claims.product, claims.version),
        }
    }
}

impl RimFault {
    /// Stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Chain(ChainFault::Malformed(_)) => "rim_malformed",
            Self::Signature(_) => "rim_signature",
            Self::Chain(ChainFault::Root { .. }) => "rim_root_untrusted",
            Self::Chain(ChainFault::Expired { .. }) => "rim_expired",
            Self::Chain(ChainFault::NotYetValid { .. }) => "rim_not_yet_valid",
            Self::Chain(_) => "rim_chain",
            Self::Revocation { code, .. } => code,
        }
    }

    pub(crate) const fn fix(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Signature(_) | Self::Chain(ChainFault::Malformed(_)) => {
                "fetch the manifest again from NVIDIA's RIM service"
            }
            Self::Chain(ChainFault::Expired { .. }) => {
                "fetch the manifest again: NVIDIA renews them; or use a driver and VBIOS whose manifests are still renewed"
            }
            Self::Chain(ChainFault::NotYetValid { .. }) => "check the time at which the evidence is judged",
            Self::Chain(_) => "use a manifest that NVIDIA signed",
            Self::Revocation { .. } => "give fresh OCSP answers; a revoked manifest cannot be used",
        }
    }
}

fn check_revocation(
    chain: &[Cert],
    answers: &[Vec<u8>],
    requirement: Requirement,
    now: u64,
    faults: &mut Vec<RimFault>,
) -> (bool, u64) {
    let (mut all_good, mut expires) = (true, u64::MAX);
    for (index, (certificate, issuer)) in chain.iter().zip(chain.iter().skip(1)).enumerate() {
        let ocsp::Said { status, until } = ocsp::status(certificate, issuer, answers, now);
        all_good &= status == ocsp::Status::Good;
        expires = expires.min(until);
        let (code, status) = match status {
            ocsp::Status::Good => continue,
            ocsp::Status::Absent if requirement == Requirement::Optional => continue,
            ocsp::Status::Absent => ("rim_revocation_unknown", "no answer tells whether it is revoked"),
            ocsp::Status::Revoked => ("rim_revoked", "it is revoked"),
            ocsp::Status::Unknown => ("rim_revocation_unknown", "the responder does not know it"),
            ocsp::Status::Expired => ("rim_ocsp_expired", "the answer's time is over or has not begun"),
            ocsp::Status::Signature => ("rim_ocsp_signature", "the answer is not signed by its issuer"),
        };
        faults.push(RimFault::Revocation { index, code, status });
    }
    (all_good, expires)
}

/// The elements of a manifest, each at its only place.
struct Parts<'a, 'input> {
    root: Node<'a, 'input>,
    meta: Node<'a, 'input>,
    payload: Node<'a, 'input>,
    signature: Node<'a, 'input>,
}

impl<'a, 'input> Parts<'a, 'input> {
    fn of(document: &'a Document<'input>) -> Result<Self, String> {
        let root = document.root_element();
        if !root.has_tag_name((SWID, "SoftwareIdentity")) {
            return Err("is no SoftwareIdentity".to_owned());
        }
        let mut names = Vec::new();
        for child in root.children() {
            if child.is_element() {
                names.push((child.tag_name().namespace().unwrap_or_default(), child.tag_name().name(), child));
            } else if !is_blank(child) {
                return Err("has text outside of its elements".to_owned());
            }
        }
        match names.as_slice() {
            [(SWID, "Entity", _), (SWID, "Meta", meta), (SWID, "Payload", payload), (DSIG, "Signature", signature)] => {
                Ok(Self { root, meta: *meta, payload: *payload, signature: *signature })
            }
            _ => Err("must have one Entity, Meta, Payload and Signature, in this order".to_owned()),
        }
    }
}

fn identity(meta: Node<'_, '_>) -> Result<RimIdentity, String> {
    if meta.has_children() {
        return Err("has something inside Meta".to_owned());
    }
    let text = |name: &str| {
        let value = meta.attribute(name).unwrap_or_default();
        let good = !value.is_empty() && value.len() <= MAX_NAME && value.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(value.to_owned()) } else { Err(format!("has no usable {name}")) }
    };
    if meta.attribute((TCG_RIM, "BindingSpec")) != Some("RIMIM") {
        return Err("is not bound to the TCG RIM Information Model".to_owned());
    }
    Ok(RimIdentity { version: text("colloquialVersion")?, product: text("product")?, edition: text("edition")? })
}

/// Values by index, from 0; only active ones.
fn golden(payload: Node<'_, '_>) -> Result<BTreeMap<u8, Golden>, String> {
    let mut active = BTreeMap::new();
    let mut seen = Vec::new();
    for child in payload.children() {
        if is_blank(child) {
            continue;
        }
        if !child.has_tag_name((SWID, "Resource")) || child.has_children() {
            return Err("has something other than an empty Resource in its Payload".to_owned());
        }
        let (index, golden) = resource(child)?;
        if seen.contains(&index) {
            return Err(format!("has index {index} twice"));
        }
        seen.push(index);
        if let Some(golden) = golden {
            active.insert(index, golden);
        }
    }
    if active.is_empty() {
        return Err("has no active measurement".to_owned());
    }
    Ok(active)
}

/// A value, or `None` in its place where it is not active.
fn resource(node: Node<'_, '_>) -> Result<(u8, Option<Golden>), String> {
    let attribute = |name: &str| node.attribute(name).ok_or_else(|| format!("has a Resource without {name}"));
    let number = |name: &str| {
        let text = attribute(name)?;
        text.parse::<u8>()
            .ok()
            .filter(|value| value.to_string() == text)
            .ok_or(format!("has a Resource with {name} {text:?}"))
    };
    if attribute("type")? != "Measurement" {
        return Err("has a Resource that is no Measurement".to_owned());
    }
    let index = number("index")?;
    let alternatives = number("alternatives")?;
    let size = usize::from(number("size")?);
    let active = match attribute("active")? {
        "True" => true,
        "False" => false,
        other => return Err(format!("has active {other:?} at index {index}")),
    };
    let mut values = Vec::new();
    for place in 0..alternatives {
        let name = format!("Hash{place}");
        let text = node.attribute((SHA384, name.as_str())).ok_or_else(|| format!("has no {name} at index {index}"))?;
        let value = hex::decode(text).map_err(|_| format!("has a {name} that is not hexadecimal at index {index}"))?;
        if value.len() != size || size == 0 {
            return Err(format!("has a {name} of another size at index {index}"));
        }
        values.push(value);
    }
    // What is not named above would be signed, but not judged.
    let known = ["type", "index", "alternatives", "size", "active", "name"];
    let plain =
        node.attributes().filter(|found| found.namespace().is_none()).all(|found| known.contains(&found.name()));
    let hashes = node.attributes().filter(|found| found.namespace().is_some()).count();
    if values.is_empty() || !plain || hashes != values.len() {
        return Err(format!("has other attributes or hashes than it announces at index {index}"));
    }
    Ok((
        index,
        active.then(|| Golden { name: attribute("name").unwrap_or_default().chars().take(MAX_NAME).collect(), values }),
    ))
}

pub(crate) fn is_blank(node: Node<'_, '_>) -> bool {
    node.is_text() && node.text().is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_whitespace()))
}

const MAX_NAME: usize = 64;
const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const TCG_RIM: &str =
    "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
pub(crate) const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
