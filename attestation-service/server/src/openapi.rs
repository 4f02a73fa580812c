// SPDX-License-Identifier: Apache-2.0
//! The OpenAPI 3.1 description, made from the table of endpoints, the codes and the sizes of the protocol's types.

mod schemas;

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    codes,
    routes::{ANY, Body, Endpoint, ROUTES, Route},
};

/// The description as it is served: made once, and the same memory for all.
pub(crate) fn bytes() -> Bytes {
    static BYTES: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    BYTES.clone()
}

/// The description.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        paths.insert(route.path.to_owned(), json!({ method: operation(route) }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Chrysalis attestation service",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": DESCRIPTION,
        },
        // Whoever runs it: there is no address that all share.
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas::all() },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "description": route.description,
        "responses": responses(route),
    });
    if let Some(parameter) = &route.parameter {
        let parameters = json!([{
            "name": parameter.name,
            "in": parameter.place,
            "required": true,
            "description": parameter.description,
            "schema": reference(parameter.schema),
        }]);
        insert(&mut operation, "parameters", parameters);
    }
    if let Body::Json { schema, max } = &route.body {
        let body = json!({
            "required": true,
            "description": format!("Canonical JSON (RFC 8785), at most {max} bytes, no content coding"),
            "content": { "application/json": { "schema": reference(schema) } },
        });
        insert(&mut operation, "requestBody", body);
    }
    operation
}

fn responses(route: &Route) -> Value {
    let answer = &route.answer;
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({
            "description": answer.description,
            "headers": { "cache-control": { "schema": { "const": "no-store" } } },
            "content": { answer.kind: { "schema": reference(answer.schema) } },
        }),
    );
    let mut refusals: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (status, steps) in ANY.iter().chain(route.refusals) {
        refusals.entry(status.as_u16()).or_default().extend(steps.iter().flat_map(|(_, codes)| *codes));
    }
    for (status, mut codes) in refusals {
        codes.sort_unstable();
        // Verdicts get further codes with time, and rules of owners name their own.
        let open = status == StatusCode::FORBIDDEN.as_u16() && route.endpoint == Endpoint::KeyRelease;
        responses.insert(status.to_string(), refusal(status, &codes, open));
    }
    Value::Object(responses)
}

fn refusal(status: u16, codes: &[&str], open: bool) -> Value {
    let mut code = json!({ "enum": codes });
    if open {
        code = json!({ "$ref": "#/components/schemas/Code", "examples": codes });
    }
    let reason = json!({ "allOf": [reference("Refusal"), { "properties": { "code": code } }] });
    let schema = json!({ "allOf": [reference("Refusals"), { "properties": { "reasons": { "items": reason } } }] });
    let description = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut refusal = json!({
        "description": description.unwrap_or("Refused"),
        "content": { "application/json": { "schema": schema } },
    });
    if RETRY.contains(&status) {
        let header = json!({ "retry-after": { "description": "Seconds", "schema": { "type": "integer" } } });
        insert(&mut refusal, "headers", header);
    }
    refusal
}

fn insert(value: &mut Value, key: &str, field: Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.insert(key.to_owned(), field);
    }
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// Codes of every endpoint and step, for readers.
fn all_codes() -> Vec<&'static str> {
    let steps = codes::KEY_RELEASE.iter().chain([&codes::REQUEST, &codes::OWNERS, &codes::SERVICE]);
    steps.flat_map(|(_, codes)| *codes).copied().collect()
}

/// Statuses with a header `retry-after`.
const RETRY: [u16; 2] = [429, 503];
const DESCRIPTION: &str = "Holds the keys of encrypted models and releases each only to a guest that proves, for this \
    very request, that it runs a published release on acceptable hardware. TLS 1.3 only; HTTP/1.1 and HTTP/2. The \
    service's certificate is self-signed: pin SHA-256 of its SubjectPublicKeyInfo. Documents are canonical JSON \
    (RFC 8785): integers only, no unknown and no duplicate fields. A path that is known answers another method with 405 \
    and `allow`; one that is not known answers 404.";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every reference has a schema, and every schema is used.
    #[test]
    fn references_resolve() {
        let document = document();
        let text = document.to_string();
        let marker = "\"#/components/schemas/";
        let used: BTreeSet<_> = text.split(marker).skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let known = document["components"]["schemas"].as_object().unwrap();
        assert_eq!(used, known.keys().map(String::as_str).collect::<BTreeSet<_>>());
    }

    /// The committed page is this one: `attestation-service openapi > docs/openapi.json`.
    #[test]
    fn the_committed_description_is_not_stale() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let committed: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(committed == document(), "write it anew: attestation-service openapi > docs/openapi.json");
    }
}
