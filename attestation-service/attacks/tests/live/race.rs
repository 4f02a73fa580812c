// SPDX-License-Identifier: Apache-2.0
//! Redemptions of one challenge at once, each of which alone would get the key: they come over streams of the one
//! connection that the challenge is bound to.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use attacks::wire::{Running, model};
use attested_channel::{stream, tls};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use release_client::key_release_protocol::{
    ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, ReleaseKeyPair, SealContext, UnwrapErr,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use types::{Base64, Document as _, Refusal, Sha256Digest, canonical, refusal::Refusals};

use crate::guest::Guest;

/// What each of `number` contenders got: the reasons of its refusal; none for a key, which is the one of the store.
pub(crate) async fn race(
    service: &Running,
    pin: Sha256Digest,
    guest: &Guest,
    number: usize,
) -> Result<Vec<Option<Vec<Refusal>>>> {
    let mut config = tls::pinned_client_config(pin)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(service.address()).await?;
    let name = ServerName::try_from("attestation-service.invalid")?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (stream, channel) = stream::share(TlsStream::Client(tls));
    let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let (status, body) = whole(post(&mut sender, "/v1/challenges", Vec::new()).await?).await?;
    ensure!(status == StatusCode::OK, "no challenge: {status}");
    let token = canonical::from_bytes::<ChallengeAnswer>(&body, body.len())?.token;
    let challenge = token.challenge();
    let binding = channel.binding(&challenge)?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..number {
        let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
        let evidence = guest.evidence_for(&challenge, &binding, key.public(), &[], &[])?;
        let digest = Sha256Digest::of(&evidence);
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.to_owned(),
            token,
            model: model()?,
            evidence: Base64::new(evidence).context("evidence")?,
            work: None,
        };
        let (request, mut sender) = (request.to_canonical()?, sender.clone());
        tasks.spawn(async move {
            let (status, body) = whole(post(&mut sender, "/v1/key-release", request).await?).await?;
            if status != StatusCode::OK {
                return Ok(Some(serde_json::from_slice::<Refusals>(&body)?.reasons));
            }
            let answer = KeyReleaseAnswer::from_canonical(&body)?;
            let context = SealContext {
                challenge: &challenge,
                model: &model()?,
                key_version: answer.key_version,
                evidence: &digest,
                audit_leaf: &answer.audit.leaf,
            };
            ensure!(
                *key.open(&answer.enc, &answer.ciphertext, &context)?.key == [7; 32],
                "another key than was imported"
            );
            Ok(None)
        });
    }
    let outcomes = tasks.join_all().await.into_iter().collect();
    driver.abort();
    outcomes
}

async fn post(sender: &mut SendRequest<Full<Bytes>>, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
    let uri = format!("https://attestation-service.invalid{path}");
    let request = Request::post(uri).header("content-type", "application/json").body(Full::new(Bytes::from(body)))?;
    sender.ready().await?;
    Ok(sender.send_request(request).await?)
}

async fn whole(answer: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
    let status = answer.status();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}
