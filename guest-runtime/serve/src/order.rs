// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests by themselves: what the engine would be asked, without a connection.

use engine_protocol::Command;

use crate::{
    embeddings::EmbeddingRequest,
    limits::Limits,
    request::{ApiRequest, Kind},
};

/// An error answer, in OpenAI's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyRefused {
    /// Status of HTTP.
    pub status: u16,
    /// The JSON of the answer. It holds names of parameters and limits, and no value of the request.
    pub json: Vec<u8>,
}

/// What the engine would be asked for a body that was posted to `path`, with `id`, tenant and absent seed still 0; `None`
/// where no model answers bodies at this path. Whether the named model is the one that is served, and the length of the
/// body, are judged elsewhere.
///
/// # Errors
/// [`BodyRefused`], as the client would get it.
#[must_use]
pub fn order(path: &str, body: &[u8], limits: &Limits) -> Option<Result<Command, BodyRefused>> {
    let generate = |kind| ApiRequest::parse(kind, body, limits).map(|request| Command::Generate(request.generate));
    let parsed = match path {
        "/v1/chat/completions" => generate(Kind::Chat),
        "/v1/completions" => generate(Kind::Text),
        "/v1/embeddings" => EmbeddingRequest::parse(body).map(|request| Command::Embed(request.into_embed())),
        _ => return None,
    };
    Some(parsed.map_err(|error| BodyRefused { status: error.status.as_u16(), json: error.to_json() }))
}
