// SPDX-License-Identifier: Apache-2.0
//! The table of endpoints. Requests are routed by it and the OpenAPI description is made from it, so that the two
//! cannot say different things.

use http::{Method, StatusCode};
use key_release::{KeyReleaseRequest, SignedOwnerCommand};
use types::Document as _;

use crate::codes;

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Time,
    Challenge,
    KeyRelease,
    OwnerCommand,
    Release,
    Checkpoint,
    Tile,
    ResultKeys,
    OpenApi,
    Service,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    /// Its path. `{name}` at the end stands for one segment, for all that are left where [`Parameter::greedy`] is set.
    pub(crate) path: &'static str,
    /// OpenAPI's `operationId`.
    pub(crate) operation: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: &'static str,
    pub(crate) parameter: Option<Parameter>,
    pub(crate) body: Body,
    pub(crate) answer: Answer,
    /// Refusals of this endpoint, beside those that every endpoint has ([`ANY`]).
    pub(crate) refusals: &'static [(StatusCode, &'static [codes::Step])],
}

/// The one parameter of an endpoint.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// OpenAPI's `in`: `path` or `query`.
    pub(crate) place: &'static str,
    /// Takes every segment that is left.
    pub(crate) greedy: bool,
    /// Name of its schema.
    pub(crate) schema: &'static str,
    pub(crate) description: &'static str,
}

/// What a request carries.
#[derive(Debug)]
pub(crate) enum Body {
    /// Nothing is read.
    None,
    /// Must be empty.
    Empty,
    /// Canonical JSON of this schema, of at most so many bytes.
    Json { schema: &'static str, max: usize },
}

/// Media type and, for JSON, name of the schema.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: &'static str,
    pub(crate) schema: &'static str,
    pub(crate) description: &'static str,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The endpoint, and the rest of the path where it has one as parameter.
    Endpoint(Endpoint, &'a str),
    /// The path is known, the method is not: what is allowed.
    OtherMethod(Method),
    /// Nothing.
    Nothing,
}

/// Finds the endpoint of a request.
pub(crate) fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    let mut allowed = None;
    for route in &ROUTES {
        let Some(rest) = route.rest(path) else { continue };
        if route.method == *method {
            return Found::Endpoint(route.endpoint, rest);
        }
        allowed = Some(route.method.clone());
    }
    allowed.map_or(Found::Nothing, Found::OtherMethod)
}

impl Route {
    /// What stands for the parameter, empty where there is none; nothing for another path.
    fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((fixed, _)) = self.path.split_once('{') else { return (path == self.path).then_some("") };
        let rest = path.strip_prefix(fixed).filter(|rest| !rest.is_empty())?;
        let greedy = self.parameter.as_ref().is_some_and(|parameter| parameter.greedy);
        (greedy || !rest.contains('/')).then_some(rest)
    }
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const BYTES: &str = "application/octet-stream";

/// Refusals that every endpoint has.
pub(crate) const ANY: &[(StatusCode, &[codes::Step])] = &[
    (StatusCode::REQUEST_TIMEOUT, &[("", &["request_timeout"])]),
    (StatusCode::TOO_MANY_REQUESTS, &[("", &["rate_limited"])]),
    (StatusCode::SERVICE_UNAVAILABLE, &[codes::SERVICE]),
];
const MALFORMED: (StatusCode, &[codes::Step]) = (StatusCode::BAD_REQUEST, &[("", &["request_malformed"])]);
const MEDIA_TYPE: (StatusCode, &[codes::Step]) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, &[("", &["media_type"])]);
const BUSY: (StatusCode, &[codes::Step]) = (StatusCode::TOO_MANY_REQUESTS, &[("", &["busy"])]);
const NOT_FOUND: (StatusCode, &[codes::Step]) = (StatusCode::NOT_FOUND, &[("", &["not_found"])]);

/// All endpoints. A path has one method.
pub(crate) static ROUTES: [Route; 10] = [
    Route {
        endpoint: Endpoint::Time,
        method: Method::GET,
        path: "/v1/time",
        operation: "time",
        summary: "The time, signed for a nonce",
        description: "Signed by the key that guests pin. A guest's certificates and evidence of GPUs are judged by it.",
        parameter: Some(Parameter {
            name: "nonce",
            place: "query",
            greedy: false,
            schema: "Hex32",
            description: "32 random bytes of the guest. The query holds nothing else.",
        }),
        body: Body::None,
        answer: Answer { kind: JSON, schema: "AttestedTime", description: "The signed time" },
        refusals: &[MALFORMED],
    },
    Route {
        endpoint: Endpoint::Challenge,
        method: Method::POST,
        path: "/v1/challenges",
        operation: "challenge",
        summary: "A challenge for one key release",
        description: "Good once, for a minute, until the service starts again. Nothing of it is stored.",
        parameter: None,
        body: Body::Empty,
        answer: Answer { kind: JSON, schema: "ChallengeAnswer", description: "The challenge" },
        refusals: &[
            MALFORMED,
            (StatusCode::TOO_MANY_REQUESTS, &[("", &["challenges_exhausted"])]),
            (StatusCode::SERVICE_UNAVAILABLE, &[("", &["challenges_exhausted"])]),
        ],
    },
    Route {
        endpoint: Endpoint::KeyRelease,
        method: Method::POST,
        path: "/v1/key-release",
        operation: "releaseKey",
        summary: "Evidence for a challenge, against a sealed key",
        description: "The evidence is bound to the TLS connection of this very request (RFC 5705, RFC 8446 section 7.5: \
             exporter label EXPORTER-chrysalis-attest-v1, context = challenge). The release stands in the audit log, on \
             disk, before the key is sealed. Every reason of a refusal is given that does not depend on another one.",
        parameter: None,
        body: Body::Json { schema: "KeyReleaseRequest", max: KeyReleaseRequest::MAX_BYTES },
        answer: Answer { kind: JSON, schema: "KeyReleaseAnswer", description: "The sealed key and its audit entry" },
        refusals: &[MALFORMED, (StatusCode::FORBIDDEN, codes::KEY_RELEASE), MEDIA_TYPE, BUSY],
    },
    Route {
        endpoint: Endpoint::OwnerCommand,
        method: Method::POST,
        path: "/v1/owner-commands",
        operation: "commandAsOwner",
        summary: "A command that a model's owner signed",
        description: "Entered in the audit log before it is carried out. Whoever sends it: the signature counts.",
        parameter: None,
        body: Body::Json { schema: "SignedOwnerCommand", max: SignedOwnerCommand::MAX_BYTES },
        answer: Answer { kind: JSON, schema: "OwnerAnswer", description: "It was carried out" },
        refusals: &[MALFORMED, (StatusCode::FORBIDDEN, &[codes::OWNERS]), MEDIA_TYPE, BUSY],
    },
    Route {
        endpoint: Endpoint::Release,
        method: Method::GET,
        path: "/v1/releases/{digest}",
        operation: "release",
        summary: "The bundle of an imported release",
        description: "A sigstore bundle v0.3 with the statement that releases are judged by.",
        parameter: Some(Parameter {
            name: "digest",
            place: "path",
            greedy: false,
            schema: "Sha256Digest",
            description: "Digest of the release, as verdicts and audit entries show it.",
        }),
        body: Body::None,
        answer: Answer { kind: JSON, schema: "Bundle", description: "The bundle, as it was imported" },
        refusals: &[MALFORMED, NOT_FOUND, BUSY],
    },
    Route {
        endpoint: Endpoint::Checkpoint,
        method: Method::GET,
        path: "/v1/log/checkpoint",
        operation: "checkpoint",
        summary: "The newest checkpoint of the audit log",
        description: "C2SP tlog-checkpoint: a signed note.",
        parameter: None,
        body: Body::None,
        answer: Answer { kind: TEXT, schema: "Checkpoint", description: "The signed note" },
        refusals: &[BUSY],
    },
    Route {
        endpoint: Endpoint::Tile,
        method: Method::GET,
        path: "/v1/log/{tile}",
        operation: "tile",
        summary: "A tile or a bundle of entries of the audit log",
        description: "C2SP tlog-tiles. The parameter is the path from `tile/` on, slashes included; they may be written \
             as %2F.",
        parameter: Some(Parameter {
            name: "tile",
            place: "path",
            greedy: true,
            schema: "TilePath",
            description: "As `tile/0/000.p/5`, `tile/0/x001/234` or `tile/entries/000.p/5`.",
        }),
        body: Body::None,
        answer: Answer { kind: BYTES, schema: "Bytes", description: "The tile" },
        refusals: &[NOT_FOUND, BUSY],
    },
    Route {
        endpoint: Endpoint::Service,
        method: Method::GET,
        path: "/v1/service",
        operation: "service",
        summary: "The service's keys",
        description: "The key that guests pin, and the one that owners seal keys of models to, signed by it.",
        parameter: None,
        body: Body::None,
        answer: Answer { kind: JSON, schema: "ServiceKeys", description: "The keys" },
        refusals: &[],
    },
    Route {
        endpoint: Endpoint::ResultKeys,
        method: Method::GET,
        path: "/v1/ear/keys",
        operation: "resultKeys",
        summary: "Keys that verify attestation results",
        description: "A JWK set. The service's identity, whose pin guests know, signed it. A released key comes with an \
             attestation result (EAR, a JWT) in the header chrysalis-ear.",
        parameter: None,
        body: Body::None,
        answer: Answer { kind: JSON, schema: "ResultKeys", description: "The keys" },
        refusals: &[],
    },
    Route {
        endpoint: Endpoint::OpenApi,
        method: Method::GET,
        path: "/v1/openapi.json",
        operation: "openApi",
        summary: "This description",
        description: "OpenAPI 3.1.",
        parameter: None,
        body: Body::None,
        answer: Answer { kind: JSON, schema: "OpenApi", description: "The description" },
        refusals: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_by_table() {
        use Endpoint::*;
        for (method, path, found) in [
            (Method::GET, "/v1/time", Found::Endpoint(Time, "")),
            (Method::POST, "/v1/time", Found::OtherMethod(Method::GET)),
            (Method::GET, "/v1/time/", Found::Nothing),
            (Method::GET, "/v1/log/checkpoint", Found::Endpoint(Checkpoint, "")),
            (Method::GET, "/v1/log/tile/0/000", Found::Endpoint(Tile, "tile/0/000")),
            (Method::PUT, "/v1/log/tile/0/000", Found::OtherMethod(Method::GET)),
            (Method::GET, "/v1/log/", Found::Nothing),
            (Method::GET, "/v1/releases/ab", Found::Endpoint(Release, "ab")),
            (Method::GET, "/v1/releases/ab/cd", Found::Nothing),
            (Method::GET, "/v1/releases/", Found::Nothing),
            (Method::GET, "", Found::Nothing),
            (Method::GET, "*", Found::Nothing),
        ] {
            assert_eq!(find(&method, path), found, "{method} {path}");
        }
    }

    /// A path that another one hides would never be reached.
    #[test]
    fn every_route_is_reached_by_its_own_path() {
        for route in &ROUTES {
            let example = route.path.split_once('{').map_or(route.path.to_owned(), |(fixed, _)| format!("{fixed}x"));
            assert!(
                matches!(find(&route.method, &example), Found::Endpoint(endpoint, _) if endpoint == route.endpoint),
                "{example}"
            );
            assert_eq!(route.path.contains('{'), route.parameter.as_ref().is_some_and(|p| p.place == "path"));
        }
    }
}
