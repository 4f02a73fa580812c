// SPDX-License-Identifier: Apache-2.0
//! Reference manifests: missing, expired, forged, wrapped, and ones that do not fit.

use gpu_verify::{DeviceEvidence, LibraryError, MAX_RIMS, Requirement, RimLibrary};
use rcgen::PKCS_ECDSA_P384_SHA384;

use crate::{
    PDI, Scenario,
    world::{Device, MAKER, NOW, RimSpec, authorities, issue, leaf, measurement, sign_rim},
};

fn with_driver(xml: Vec<u8>) -> Scenario {
    let mut scenario = Scenario::one(&Device::gpu(PDI));
    scenario.rims[0] = xml;
    scenario
}

fn with_spec(change: impl Fn(&mut RimSpec)) -> Vec<&'static str> {
    let mut spec = RimSpec::driver();
    change(&mut spec);
    with_driver(spec.xml()).codes()
}

/// The good manifest's text, changed.
fn with_text(change: impl Fn(&str) -> String) -> Vec<&'static str> {
    let xml = String::from_utf8(RimSpec::driver().xml()).unwrap();
    let changed = change(&xml);
    assert_ne!(xml, changed);
    with_driver(changed.into_bytes()).codes()
}

#[test]
fn attack_46_missing_and_mismatch_differ() {
    let mut scenario = Scenario::one(&Device::gpu(PDI));
    scenario.rims.remove(0);
    assert_eq!(scenario.codes(), ["rim_missing"]);
    let mut device = Device::gpu(PDI);
    device.changed = vec![(9, [0; 48]), (10, [1; 48]), (2, [5; 48])];
    let scenario = Scenario::one(&device);
    assert_eq!(scenario.codes(), ["measurement_mismatch"]);
    let reasons = scenario.verdict().reasons();
    let fields: Vec<_> = reasons.iter().map(|reason| reason.field.as_str()).collect();
    let expected = ["gpu[0].measurements.driver[8]", "gpu[0].measurements.driver[9]", "gpu[0].measurements.vbios[1]"];
    assert_eq!(fields, expected);
    // One of several values, and an index that is not active.
    device.changed = vec![(10, [0xee; 48]), (21, [9; 48])];
    assert_eq!(Scenario::one(&device).codes(), [""; 0]);
    // With a decoder, index 35 counts.
    device.set(11, &[0xaa]);
    assert_eq!(Scenario::one(&device).codes(), ["measurement_mismatch"]);
    device.changed.push((36, [0xcc; 48]));
    assert_eq!(Scenario::one(&device).codes(), [""; 0]);
}

/// A guest without manifests judges everything else, and nobody gets devices from such a verdict.
#[test]
fn without_measurements_all_else_is_judged() {
    let good = Scenario { rims: Vec::new(), ..Scenario::one(&Device::gpu(PDI)) };
    assert!(good.without_measurements().is_accepted());
    let reasons = good.without_measurements().accept().unwrap_err();
    assert_eq!(reasons.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>(), ["measurements_not_compared"]);
    assert_eq!(good.codes(), ["rim_missing"]);
    let bad: [fn(&mut Scenario); 4] = [
        |scenario| scenario.nonce = Some([8; 32]),
        |scenario| scenario.driver_state = None,
        |scenario| scenario.now = 2_000_000_000,
        |scenario| scenario.gpus.clear(),
    ];
    for (number, change) in bad.into_iter().enumerate() {
        let mut scenario = Scenario::one(&Device::gpu(PDI));
        change(&mut scenario);
        assert!(!scenario.without_measurements().is_accepted(), "{number}");
    }
}

/// Of many manifests those are verified that the reports name: the others may be of any quality.
#[test]
fn a_library_gives_what_reports_ask_for() {
    let made = Device::gpu(PDI).make();
    let (driver, vbios) = (RimSpec::driver().xml(), RimSpec::vbios().xml());
    let mut other = RimSpec::driver();
    other.version = "999.1";
    let forged = String::from_utf8(other.xml()).unwrap().replacen("Hash0=\"", "Hash0=\"00", 1).into_bytes();
    let files = vec![forged, driver.clone(), RimSpec::switch().xml(), vbios];
    let devices = [DeviceEvidence { report: &made.report, chain: &made.chain }];
    let verify = |library: &RimLibrary, devices: &[DeviceEvidence<'_>], now| {
        library.verify(devices, &MAKER.anchors(), &[], Requirement::Optional, now)
    };
    let library = RimLibrary::new(files).unwrap();
    let found = verify(&library, &devices, NOW);
    assert_eq!(found.iter().flatten().count(), 2);
    assert_eq!(found.len(), 2);
    // One that is needed and not good is given, with its reason.
    assert_eq!(verify(&library, &devices, 2_000_000_000).iter().filter(|rim| rim.is_err()).count(), 2);
    let switch = Device::switch(PDI, &[]).make();
    let switch = DeviceEvidence { report: &switch.report, chain: &switch.chain };
    assert_eq!(verify(&library, &[switch], NOW).len(), 1);
    assert!(verify(&library, &[DeviceEvidence { report: b"x", chain: b"" }], NOW).is_empty());
    assert!(verify(RimLibrary::EMPTY, &devices, NOW).is_empty());
    // A report may ask for no more work than an appraisal has: one above the limit shows that there are too many.
    let same = RimLibrary::new(vec![driver.clone(); 2 * MAX_RIMS]).unwrap();
    assert_eq!(verify(&same, &devices, NOW).len(), MAX_RIMS + 1);
    let malformed = RimLibrary::new(vec![driver, b"<a/>".to_vec()]).unwrap_err();
    assert!(matches!(malformed, LibraryError::Malformed { index: 1, .. }), "{malformed}");
    assert_eq!(RimLibrary::new(vec![Vec::new(); 513]).unwrap_err(), LibraryError::TooMany(513));
}

#[test]
fn of_another_version_or_chip() {
    assert_eq!(with_spec(|spec| spec.version = "550.11"), ["rim_version"]);
    assert_eq!(with_spec(|spec| spec.product = "GB100"), ["rim_product"]);
    assert_eq!(with_spec(|spec| spec.edition = "SWITCH"), ["rim_product"]);
    assert_eq!(with_spec(|spec| spec.resources[0].0 = 1), ["rim_conflict", "measurement_mismatch"]);
    assert_eq!(with_spec(|spec| spec.resources.push((70, true, vec![measurement(71)]))), ["measurement_mismatch"]);
    assert_eq!(with_spec(|spec| spec.resources.push((255, true, vec![[0; 48]]))), ["measurement_mismatch"]);
    let empty = with_spec(|spec| spec.resources.retain(|(index, _, _)| *index == 35));
    assert_eq!(empty, ["measurement_mismatch"], "an empty comparison accepts nothing");
}

#[test]
fn expired_and_not_yet_valid() {
    let by = |from: i32, to: i32| {
        let change = move |params: &mut rcgen::CertificateParams| {
            params.not_before = rcgen::date_time_ymd(from, 6, 1);
            params.not_after = rcgen::date_time_ymd(to, 6, 1);
        };
        with_driver(RimSpec::driver().xml_by(&MAKER.rim, change)).codes()
    };
    assert_eq!(by(2024, 2025), ["rim_expired", "rim_refused"]);
    assert_eq!(by(2026, 2027), ["rim_not_yet_valid", "rim_refused"]);
    let mut scenario = Scenario::one(&Device::gpu(PDI));
    scenario.now = NOW + 6 * 365 * 86_400;
    assert_eq!(scenario.codes(), ["rim_expired", "gpu_certificate_expired", "rim_refused"]);
}

#[test]
fn another_signer() {
    let fake = authorities(&["Test RIM Root", "Test GH100 Values", "Test L3"]);
    assert_eq!(with_driver(RimSpec::driver().xml_by(&fake, |_| {})).codes(), ["rim_root_untrusted", "rim_refused"]);
    // Certificates of the maker beside a signature of the attacker's.
    let theirs = with_text(|xml| {
        let forged = RimSpec::driver().xml_by(&fake, |_| {});
        let forged = String::from_utf8(forged).unwrap();
        let (start, _) = forged.split_once("<ds:KeyInfo>").unwrap();
        let (_, end) = xml.split_once("<ds:KeyInfo>").unwrap();
        format!("{start}<ds:KeyInfo>{end}")
    });
    assert_eq!(theirs, ["rim_signature", "rim_refused"]);
    // A device's certificate signs no manifest.
    let signer = issue(leaf("Device"), &MAKER.device[2], &PKCS_ECDSA_P384_SHA384);
    let xml = sign_rim(&RimSpec::driver().body(), &signer, &MAKER.device);
    assert_eq!(with_driver(xml.into_bytes()).codes(), ["rim_root_untrusted", "rim_refused"]);
    // A CA is no signer.
    let as_ca = |params: &mut rcgen::CertificateParams| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    assert_eq!(with_driver(RimSpec::driver().xml_by(&MAKER.rim, as_ca)).codes(), ["rim_chain", "rim_refused"]);
}

#[test]
fn changed_content() {
    let values: [(&str, &str); 6] = [
        ("active=\"False\"", "active=\"True\""),
        ("edition=\"GPU\"", "edition=\"GPV\""),
        ("name=\"Test\"", "name=\"Tess\""),
        ("<ns0:Payload>\n", "<ns0:Payload>\n\n"),
        ("</ns0:Payload>\n", "</ns0:Payload>"),
        ("name=\"M7\"", "name=\"M8\""),
    ];
    for (from, to) in values {
        assert_eq!(with_text(|xml| xml.replacen(from, to, 1))[0], "rim_signature", "{to}");
    }
    // The same document, written otherwise: its canonical form did not change.
    let same: [(&str, &str); 5] = [
        ("></ns0:Resource>", "/>"),
        ("<ns0:Payload>\n", "<ns0:Payload >&#10;"),
        ("name=\"Test\"", "name = 'Te&#115;t'"),
        ("<SoftwareIdentity ", "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<SoftwareIdentity "),
        ("alternatives=\"1\" index=\"7\"", "index=\"7\"\n  alternatives=\"1\""),
    ];
    for (from, to) in same {
        assert_eq!(with_text(|xml| xml.replacen(from, to, 1)), [""; 0], "{to}");
    }
}

#[test]
fn signature_wrapping_and_other_profiles() {
    let good = String::from_utf8(RimSpec::driver().xml()).unwrap();
    let (body, signature) = good.split_once("<ds:Signature ").unwrap();
    let signature = format!("<ds:Signature {}", signature.trim_end().strip_suffix("</SoftwareIdentity>").unwrap());
    let evil = body.replace("active=\"True\"", "active=\"False\"").replacen("active=\"False\"", "active=\"True\"", 1);
    let inner = good.trim_end();
    let cases = [
        // The signed document inside another one.
        format!("{evil}{inner}</SoftwareIdentity>"),
        format!(
            "{evil}<ds:Object xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\">{inner}</ds:Object></SoftwareIdentity>"
        ),
        format!(
            "{evil}{}</SoftwareIdentity>",
            signature.replace("</ds:KeyInfo>", &format!("</ds:KeyInfo><ds:Object>{inner}</ds:Object>"))
        ),
        // Two signatures, or one at another place.
        format!("{body}{signature}{signature}</SoftwareIdentity>"),
        format!(
            "{}{signature}<ns0:Payload>{}</SoftwareIdentity>",
            body.split("<ns0:Payload>").next().unwrap(),
            body.split("<ns0:Payload>").nth(1).unwrap()
        ),
        good.replacen("</ns0:Payload>", "", 1).replace("</SoftwareIdentity>", "</ns0:Payload></SoftwareIdentity>"),
        // Two payloads, two of what names the version.
        good.replacen("<ns0:Payload>", "<ns0:Payload></ns0:Payload><ns0:Payload>", 1),
        good.replacen("<ns0:Meta", "<ns0:Meta colloquialVersion=\"1\"></ns0:Meta><ns0:Meta", 1),
        // Other profiles of the signature.
        good.replace("URI=\"\"", "URI=\"#it\""),
        good.replace("URI=\"\"", "URI=\"\" Type=\"x\""),
        good.replace(" URI=\"\"", ""),
        good.replacen("http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/2001/10/xml-exc-c14n#", 1),
        good.replace("ecdsa-sha384", "ecdsa-sha1"),
        good.replace("ecdsa-sha384", "hmac-sha384"),
        good.replace("xmldsig-more#sha384", "xmldsig-more#sha224"),
        good.replace(
            "</ds:Transforms>",
            "<ds:Transform Algorithm=\"http://www.w3.org/TR/1999/REC-xpath-19991116\"></ds:Transform></ds:Transforms>",
        ),
        good.replace("</ds:Reference>", "</ds:Reference><ds:Reference URI=\"\"></ds:Reference>"),
        good.replace("<ds:X509Data>", "<ds:KeyValue></ds:KeyValue><ds:X509Data>"),
        // What a reader may take apart otherwise.
        good.replace("<ds:DigestValue>", "<ds:DigestValue><!-- -->"),
        good.replace("<ns0:Payload>", "<?x?><ns0:Payload>"),
        good.replace(
            "<SoftwareIdentity ",
            "<!DOCTYPE SoftwareIdentity [<!ATTLIST Resource active CDATA 'True'>]><SoftwareIdentity ",
        ),
        good.replace("<ns0:Payload>", "<ns0:Payload>text"),
        good.replace("<ns0:Meta ", "<ns0:Meta xml:base=\"x\" "),
    ];
    for (case, xml) in cases.into_iter().enumerate() {
        assert_ne!(xml, good, "case {case}");
        let codes = with_driver(xml.into_bytes()).codes();
        assert_eq!(codes[0], "rim_malformed", "case {case}");
    }
}

#[test]
fn entity_bombs_and_sizes() {
    let mut bomb = "<!DOCTYPE a [<!ENTITY b0 'bbbbbbbbbb'>".to_owned();
    for level in 1..10 {
        bomb += &format!("<!ENTITY b{level} '{}'>", format!("&b{};", level - 1).repeat(10));
    }
    bomb += "]><SoftwareIdentity>&b9;</SoftwareIdentity>";
    let deep = "<a>".repeat(50_000);
    let long = format!("<a b='{}'/>", "x".repeat(gpu_verify::MAX_XML_LEN));
    for xml in [bomb, deep, long, String::new(), "<a".to_owned(), "{}".to_owned()] {
        let codes = with_driver(xml.into_bytes()).codes();
        assert_eq!(codes, ["rim_malformed", "rim_missing"]);
    }
}

#[test]
fn forms_of_resources() {
    let forms: [(&str, &str); 14] = [
        ("type=\"Measurement\"", "type=\"File\""),
        (" type=\"Measurement\"", ""),
        ("index=\"7\"", "index=\"8\""),
        ("index=\"7\"", "index=\"07\""),
        ("index=\"7\"", "index=\"256\""),
        ("index=\"7\"", "index=\"-1\""),
        ("size=\"48\"", "size=\"32\""),
        ("size=\"48\"", "size=\"0\""),
        ("active=\"True\"", "active=\"true\""),
        ("alternatives=\"1\"", "alternatives=\"2\""),
        ("alternatives=\"1\"", "alternatives=\"0\""),
        ("alternatives=\"3\"", "alternatives=\"2\""),
        ("alternatives=\"1\"", "alternatives=\"1\" key=\"x\""),
        ("></ns0:Resource>", "><ns0:Resource></ns0:Resource></ns0:Resource>"),
    ];
    for (from, to) in forms {
        assert_eq!(with_text(|xml| xml.replacen(from, to, 1))[0], "rim_malformed", "{to}");
    }
    assert_eq!(with_text(|xml| xml.replace("active=\"True\"", "active=\"False\""))[0], "rim_malformed");
    assert_eq!(with_text(|xml| xml.replace("BindingSpec", "BindingSpek"))[0], "rim_malformed");
    assert_eq!(with_text(|xml| xml.replacen("2015/schema.xsd", "2016/schema.xsd", 2))[0], "rim_malformed");
}
