// SPDX-License-Identifier: Apache-2.0
//! A client that would carry a session, and what was proven in it, into a new connection.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use attacks::resume::Offer;
use attacks::wire::model;
use release_client::Challenge;
use release_client::key_release_protocol::{KeyReleaseRequest, ReleaseKeyPair, UnwrapErr};
use types::{Base64, Document as _, Refusal, refusal::Refusals};

use crate::guest::Guest;

/// The reasons why `challenge`, of another connection, gets no key on one that was to be resumed.
pub(crate) fn resume(service: SocketAddr, guest: &Guest, challenge: &Challenge) -> Result<Vec<Refusal>> {
    let early = b"POST /v1/challenges HTTP/1.1\r\nHost: early.invalid\r\nContent-Length: 0\r\n\r\n";
    let offered = Offer::new()?.to(service, early)?;
    ensure!(!offered.resumed, "the service resumed a session");
    ensure!(!offered.early_data, "the service took early data");
    let (answer, tickets) = offered.send(&request(guest, challenge)?)?;
    ensure!(tickets == 0, "the service hands out {tickets} tickets");
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 403 "), "{head}");
    Ok(serde_json::from_str::<Refusals>(body)?.reasons)
}

fn request(guest: &Guest, challenge: &Challenge) -> Result<Vec<u8>> {
    let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
    let evidence = guest.evidence(challenge, challenge.binding(), key.public(), &[], &[])?;
    let body = KeyReleaseRequest {
        schema: KeyReleaseRequest::SCHEMA.to_owned(),
        token: *challenge.token(),
        model: model()?,
        evidence: Base64::new(evidence).context("evidence")?,
        work: None,
    }
    .to_canonical()?;
    let head = format!(
        "POST /v1/key-release HTTP/1.1\r\nHost: service.invalid\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.into_bytes(), body].concat())
}
