// SPDX-License-Identifier: Apache-2.0
//! CycloneDX 1.6, JSON (ECMA-424).

use serde_json::{Value, json};

use super::{Bill, Part, Relation};

/// The bill as one document.
pub(crate) fn to_json(bill: &Bill) -> Value {
    let identity = bill.identity.to_string();
    let ids: Vec<String> = (0..bill.parts.len()).map(|index| format!("part-{index}")).collect();
    let components: Vec<Value> = bill.parts.iter().zip(&ids).map(|(part, id)| component(part, id)).collect();
    let contained = bill.parts.iter().zip(&ids).filter(|(part, _)| part.relation == Relation::Contained);
    let contained: Vec<&String> = contained.map(|(_, id)| id).collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(&identity)),
        "version": 1,
        "metadata": {
            "timestamp": bill.created,
            "tools": {"components": [{"type": "application", "name": "chrysalis-image", "version": bill.version}]},
            "component": {
                "type": "operating-system",
                "bom-ref": IMAGE,
                "name": bill.name,
                "version": bill.version,
                "properties": [{"name": "chrysalis:image", "value": identity}],
            },
        },
        "components": components,
        "dependencies": [{"ref": IMAGE, "dependsOn": contained}],
    })
}

fn component(part: &Part, id: &str) -> Value {
    let scope = match part.relation {
        Relation::Contained => "required",
        Relation::BuildTool => "excluded",
    };
    let mut component = json!({
        "type": "library", "bom-ref": id, "name": part.name, "version": part.version, "scope": scope,
    });
    if let Some(fields) = component.as_object_mut() {
        if part.licence != "NOASSERTION" {
            fields.insert("licenses".to_owned(), json!([{"expression": part.licence}]));
        }
        if let Some(sha256) = &part.sha256 {
            fields.insert("hashes".to_owned(), json!([{"alg": "SHA-256", "content": sha256.to_string()}]));
        }
        if let Some(purl) = &part.purl {
            fields.insert("purl".to_owned(), json!(purl));
        }
    }
    component
}

/// The first 128 bits of a digest in hexadecimal as a UUID of version 8 (RFC 9562, 5.8: bits of the maker's choice).
fn uuid(digest: &str) -> String {
    let part = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

const IMAGE: &str = "image";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sbom::tests::example;

    #[test]
    fn every_part_is_a_component_and_what_is_contained_a_dependency() {
        let document = to_json(&example());
        assert_eq!(document, to_json(&example()));
        let components = document["components"].as_array().unwrap();
        assert_eq!(components.len(), 2);
        assert_eq!(
            (components[0]["scope"].as_str(), components[1]["scope"].as_str()),
            (Some("required"), Some("excluded"))
        );
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(components[1].get("licenses").is_none());
        assert_eq!(document["dependencies"][0]["dependsOn"], json!(["part-0"]));
    }

    #[test]
    fn serial_numbers_are_uuids() {
        assert_eq!(uuid("00112233445566778899aabbccddeeff"), "00112233-4455-8677-8899-aabbccddeeff");
        assert_eq!(uuid("001122334455f677f899aabbccddeeff"), "00112233-4455-8677-8899-aabbccddeeff");
    }
}
