// SPDX-License-Identifier: Apache-2.0
//! The enveloped XML signature of a manifest (W3C "XML Signature Syntax and Processing").
//!
//! One profile, which all published manifests have, and no other: one reference with the empty URI (the whole
//! document), the transforms `enveloped-signature` and Canonical XML 1.1, SHA-384, ECDSA with P-384. The signature is the
//! last child of the document element, so what is read is what is signed: there is no identifier to point
//! elsewhere, no second signature and no other transform.

use ecdsa_verify::Hash;
use roxmltree::Node;
use subtle::ConstantTimeEq as _;

use crate::{
    certificate::{Cert, MAX_CERTIFICATES, decode_base64},
    rim::{DSIG, is_blank},
    xml,
};

/// A signature in the one known profile, not yet verified.
pub(crate) struct Signature {
    /// Canonical form of `SignedInfo`.
    signed_info: Vec<u8>,
    /// Digest of the document without its signature.
    document: Vec<u8>,
    /// The digest that `SignedInfo` names.
    expected: Vec<u8>,
    value: Vec<u8>,
    /// From the signer to the root.
    pub(crate) certificates: Vec<Cert>,
}

impl Signature {
    /// Whether the first certificate's key signed exactly this document.
    pub(crate) fn verify(&self) -> Result<(), String> {
        if !bool::from(self.document.ct_eq(&self.expected)) {
            return Err("is over another document".to_owned());
        }
        let signer = self.certificates.first().ok_or("has no certificate")?;
        if !signer.verifies_fixed(&self.signed_info, &self.value) {
            return Err("is not by the manifest's first certificate".to_owned());
        }
        Ok(())
    }
}

/// Reads the signature of the document element `root`.
pub(crate) fn read(root: Node<'_, '_>, signature: Node<'_, '_>) -> Result<Signature, String> {
    let of_profile = |rule: &str| format!("has a signature of another profile: {rule}");
    let [signed_info, value, key_info] = children(signature, ["SignedInfo", "SignatureValue", "KeyInfo"])
        .ok_or_else(|| of_profile("SignedInfo, SignatureValue and KeyInfo are expected"))?;
    let expected =
        read_signed_info(signed_info).ok_or_else(|| of_profile("its SignedInfo is not the one that is known"))?;
    let certificates = read_certificates(key_info)?;
    let canonical = |node, left_out| xml::canonical(node, left_out).ok_or("has no canonical form");
    Ok(Signature {
        signed_info: canonical(signed_info, None)?,
        document: Hash::Sha384.digest(&canonical(root, Some(signature))?),
        expected: decode_base64(expected).map_err(|rule| format!("has a digest that {rule}"))?,
        value: decode_base64(text(value).unwrap_or_default()).map_err(|rule| format!("has a signature that {rule}"))?,
        certificates,
    })
}

/// The digest value of a `SignedInfo` in the known profile.
fn read_signed_info<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    let [canonicalization, method, reference] =
        children(node, ["CanonicalizationMethod", "SignatureMethod", "Reference"])?;
    only_algorithm(canonicalization, C14N_11)?;
    only_algorithm(method, ECDSA_SHA384)?;
    let whole_document = reference.attributes().len() == 1 && reference.attribute("URI") == Some("");
    let [transforms, digest_method, value] = children(reference, ["Transforms", "DigestMethod", "DigestValue"])?;
    let [enveloped, canonical] = children(transforms, ["Transform", "Transform"])?;
    only_algorithm(enveloped, ENVELOPED)?;
    only_algorithm(canonical, C14N_11)?;
    only_algorithm(digest_method, SHA384)?;
    (whole_document && node.attributes().len() == 0 && transforms.attributes().len() == 0).then_some(())?;
    text(value)
}

fn read_certificates(key_info: Node<'_, '_>) -> Result<Vec<Cert>, String> {
    let [data] = children(key_info, ["X509Data"]).ok_or("has no X509Data, or more beside it")?;
    let mut certificates = Vec::new();
    for child in data.children().filter(|child| !is_blank(*child)) {
        if !child.has_tag_name((DSIG, "X509Certificate")) || certificates.len() >= MAX_CERTIFICATES {
            return Err("has something other than certificates in X509Data, or too many".to_owned());
        }
        let der =
            decode_base64(text(child).unwrap_or_default()).map_err(|rule| format!("has a certificate that {rule}"))?;
        certificates.push(Cert::parse(&der).map_err(|rule| format!("has a certificate that {rule}"))?);
    }
    Ok(certificates)
}

/// Exactly these elements of the signature namespace, in order, with nothing but white space between them.
fn children<'a, 'input, const N: usize>(node: Node<'a, 'input>, names: [&str; N]) -> Option<[Node<'a, 'input>; N]> {
    let found: Vec<_> = node.children().filter(|child| !is_blank(*child)).collect();
    let found: [Node<'a, 'input>; N] = found.try_into().ok()?;
    found.iter().zip(names).all(|(child, name)| child.has_tag_name((DSIG, name))).then_some(found)
}

/// An empty element whose only attribute names `algorithm`.
fn only_algorithm(node: Node<'_, '_>, algorithm: &str) -> Option<()> {
    let fits = node.attribute("Algorithm") == Some(algorithm) && node.attributes().len() == 1;
    (fits && node.children().all(is_blank)).then_some(())
}

/// The text of an element that has nothing else.
fn text<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    let mut children = node.children();
    match (children.next(), children.next()) {
        (Some(only), None) if only.is_text() => only.text(),
        _ => None,
    }
}

const C14N_11: &str = "http://www.w3.org/2006/12/xml-c14n11";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
