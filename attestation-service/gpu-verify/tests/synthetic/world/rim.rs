// SPDX-License-Identifier: Apache-2.0
//! Manifests of the test maker.

use aws_lc_rs::digest::{SHA384, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, PKCS_ECDSA_P384_SHA384};

use super::{Authority, MAKER, issue, leaf, measurement, sign};

/// What a manifest says.
#[derive(Clone)]
pub struct RimSpec {
    pub version: &'static str,
    pub product: &'static str,
    pub edition: &'static str,
    /// Index from 0, whether active, allowed values.
    pub resources: Vec<(u8, bool, Vec<[u8; 48]>)>,
}

impl RimSpec {
    /// Fits [`super::Device::gpu`]: several values at one index, an inactive one that does not fit.
    pub fn driver() -> Self {
        let mut resources: Vec<_> = (7..12).map(|index| (index, true, vec![measurement(index + 1)])).collect();
        resources[2].2 = vec![[0xee; 48], measurement(10), [0xdd; 48]];
        resources.push((20, false, vec![[0; 48]]));
        // No decoder: not compared.
        resources.push((35, true, vec![[0xcc; 48]]));
        Self { version: "550.10", product: "GH100", edition: "GPU", resources }
    }

    pub fn vbios() -> Self {
        let resources = (0..4).map(|index| (index, true, vec![measurement(index + 1)])).collect();
        Self { version: "96.00.5E.00.01", product: "GH100", edition: "GPU", resources }
    }

    pub fn switch() -> Self {
        Self { version: "96.10.55.00.01", product: "LS10", edition: "SWITCH", ..Self::vbios() }
    }

    pub fn xml(&self) -> Vec<u8> {
        self.xml_by(&MAKER.rim, |_| {})
    }

    pub fn xml_by(&self, authorities: &[Authority], change: impl Fn(&mut CertificateParams)) -> Vec<u8> {
        let mut params = leaf("HCC RIM L4 Signer");
        change(&mut params);
        let signer = issue(params, authorities.last().unwrap(), &PKCS_ECDSA_P384_SHA384);
        sign_rim(&self.body(), &signer, authorities).into_bytes()
    }

    /// Everything but the signature and the end of the document, in canonical form.
    pub fn body(&self) -> String {
        let Self { version, product, edition, .. } = self;
        let mut text = format!(
            "<SoftwareIdentity {NAMESPACES} name=\"{product}\"><ns0:Entity name=\"Test\"></ns0:Entity>\
             <ns0:Meta xmlns:ns1=\"{TCG}\" colloquialVersion=\"{version}\" edition=\"{edition}\" product=\"{product}\" \
             ns1:BindingSpec=\"RIMIM\"></ns0:Meta><ns0:Payload>\n"
        );
        for (index, active, values) in &self.resources {
            let active = if *active { "True" } else { "False" };
            let hashes: String =
                values.iter().enumerate().map(|(i, v)| format!(" ns2:Hash{i}=\"{}\"", hex::encode(v))).collect();
            text += &format!(
                "<ns0:Resource active=\"{active}\" alternatives=\"{}\" index=\"{index}\" name=\"M{index}\" size=\"48\" \
                 type=\"Measurement\"{hashes}></ns0:Resource>\n",
                values.len()
            );
        }
        text + "</ns0:Payload>\n"
    }
}

/// Signs `body` (as [`RimSpec::body`] writes it) and ends the document.
pub fn sign_rim(body: &str, signer: &Authority, authorities: &[Authority]) -> String {
    let document = format!("{body}</SoftwareIdentity>");
    let digest = STANDARD.encode(digest(&SHA384, document.as_bytes()));
    let inside = format!(
        "<ds:CanonicalizationMethod Algorithm=\"{C14N}\"></ds:CanonicalizationMethod>\
         <ds:SignatureMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384\"></ds:SignatureMethod>\
         <ds:Reference URI=\"\"><ds:Transforms>\
         <ds:Transform Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\"></ds:Transform>\
         <ds:Transform Algorithm=\"{C14N}\"></ds:Transform></ds:Transforms>\
         <ds:DigestMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#sha384\"></ds:DigestMethod>\
         <ds:DigestValue>{digest}</ds:DigestValue></ds:Reference>"
    );
    let (own, others) = NAMESPACES.split_once(' ').unwrap();
    let signed = format!("<ds:SignedInfo {own} xmlns:ds=\"{DSIG}\" {others}>{inside}</ds:SignedInfo>");
    let value = STANDARD.encode(sign(&signer.key, signed.as_bytes()));
    let certificates: String = core::iter::once(signer)
        .chain(authorities.iter().rev())
        .map(|authority| format!("<ds:X509Certificate>{}</ds:X509Certificate>", STANDARD.encode(&authority.der)))
        .collect();
    format!(
        "{body}<ds:Signature xmlns:ds=\"{DSIG}\"><ds:SignedInfo>{inside}</ds:SignedInfo>\
         <ds:SignatureValue>{value}</ds:SignatureValue>\
         <ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>\n"
    )
}

const NAMESPACES: &str = "xmlns=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                          xmlns:ns0=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                          xmlns:ns2=\"http://www.w3.org/2001/04/xmlenc#sha384\"";
const TCG: &str = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
const C14N: &str = "http://www.w3.org/2006/12/xml-c14n11";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
