// SPDX-License-Identifier: Apache-2.0
//! SPDX 2.3, JSON (ISO/IEC 5962 and its 2.3 revision, clauses 6, 7 and 11).

use serde_json::{Value, json};

use super::{Bill, Part, Relation};

/// The bill as one document.
pub(crate) fn to_json(bill: &Bill) -> Value {
    let mut packages = vec![json!({
        "SPDXID": IMAGE,
        "name": bill.name,
        "versionInfo": bill.version,
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseConcluded": NOTHING,
        "licenseDeclared": NOTHING,
        "copyrightText": NOTHING,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    })];
    let mut relationships = vec![json!({
        "spdxElementId": DOCUMENT, "relationshipType": "DESCRIBES", "relatedSpdxElement": IMAGE,
    })];
    for (index, part) in bill.parts.iter().enumerate() {
        let id =
            format!("SPDXRef-{index}-{}", part.name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-"));
        relationships.push(match part.relation {
            Relation::Contained => {
                json!({"spdxElementId": IMAGE, "relationshipType": "CONTAINS", "relatedSpdxElement": id})
            }
            Relation::BuildTool => {
                json!({"spdxElementId": id, "relationshipType": "BUILD_TOOL_OF", "relatedSpdxElement": IMAGE})
            }
        });
        packages.push(package(part, &id));
    }
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": bill.name,
        "documentNamespace": format!("https://chrysalis.invalid/spdx/{}/{}", bill.name, bill.identity),
        "creationInfo": {
            "created": bill.created,
            "creators": [format!("Tool: chrysalis-image-{}", bill.version)],
        },
        "packages": packages,
        "relationships": relationships,
    });
    let mut own: Vec<&str> = bill.parts.iter().flat_map(|part| part.licence.split(' ')).collect();
    own.retain(|word| word.starts_with("LicenseRef-"));
    own.sort_unstable();
    own.dedup();
    if let Some(fields) = document.as_object_mut().filter(|_| !own.is_empty()) {
        let licence = |id: &&str| json!({"licenseId": id, "extractedText": "See the file copyright of the package."});
        fields.insert("hasExtractedLicensingInfos".to_owned(), own.iter().map(licence).collect());
    }
    document
}

fn package(part: &Part, id: &str) -> Value {
    let mut package = json!({
        "SPDXID": id,
        "name": part.name,
        "versionInfo": part.version,
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseConcluded": NOTHING,
        "licenseDeclared": part.licence,
        "copyrightText": NOTHING,
    });
    if let Some(fields) = package.as_object_mut() {
        if let Some(sha256) = &part.sha256 {
            let checksums = json!([{"algorithm": "SHA256", "checksumValue": sha256.to_string()}]);
            fields.insert("checksums".to_owned(), checksums);
        }
        if let Some(purl) = &part.purl {
            let reference =
                json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}]);
            fields.insert("externalRefs".to_owned(), reference);
        }
    }
    package
}

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-image";
const NOTHING: &str = "NOASSERTION";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sbom::tests::example;

    #[test]
    fn every_part_is_a_package_with_a_relationship() {
        let document = to_json(&example());
        assert_eq!(document, to_json(&example()));
        let packages = document["packages"].as_array().unwrap();
        let relationships = document["relationships"].as_array().unwrap();
        assert_eq!((packages.len(), relationships.len()), (3, 3));
        assert_eq!(packages[1]["SPDXID"], "SPDXRef-0-a-b");
        assert_eq!(packages[1]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(packages[1]["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64);
        assert_eq!(relationships[2]["relationshipType"], "BUILD_TOOL_OF");
        assert_eq!(relationships[2]["spdxElementId"], packages[2]["SPDXID"]);
        assert!(document.get("hasExtractedLicensingInfos").is_none());
    }

    #[test]
    fn licences_without_a_name_of_spdx_are_declared_once() {
        let mut bill = example();
        bill.parts.iter_mut().for_each(|part| part.licence = "LicenseRef-X".into());
        let declared = &to_json(&bill)["hasExtractedLicensingInfos"];
        assert_eq!(declared.as_array().unwrap().len(), 1);
        assert_eq!(declared[0]["licenseId"], "LicenseRef-X");
    }
}
