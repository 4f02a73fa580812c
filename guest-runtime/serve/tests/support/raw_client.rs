// SPDX-License-Identifier: Apache-2.0
//! A client that speaks to the attested API and believes everything.

use std::{net::SocketAddr, sync::Arc};

use attested_channel::{
    stream::{Channel, share},
    tls::client_config,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use types::{ConnectionProof, Document as _, Hex32};

/// A client on one connection.
pub(crate) struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    channel: Channel<TcpStream>,
    /// What further requests bring beside their host.
    pub(crate) headers: http::HeaderMap,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await.unwrap()
    }

    /// On a connection that is there; `None` if the server makes no handshake on it.
    pub(crate) async fn over(tcp: TcpStream) -> Option<Self> {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config().unwrap()));
        let stream = connector.connect("guest".try_into().unwrap(), tcp).await.ok()?;
        let (stream, channel) = share(stream.into());
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Some(Self { sender, channel, headers: http::HeaderMap::new() })
    }

    /// Connects and asks for a proof.
    pub(crate) async fn proven(address: SocketAddr) -> (Self, [u8; 32]) {
        let mut client = Self::connect(address).await;
        let (_, binding) = client.attest([7; 32]).await;
        (client, binding)
    }

    /// Connects, asks for a proof, and has requests bring an API key.
    #[allow(dead_code, reason = "most guests may be asked by anybody")]
    pub(crate) async fn of_tenant(address: SocketAddr, key: &str) -> Self {
        let (mut client, _) = Self::proven(address).await;
        client.headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
        client
    }

    pub(crate) async fn attest(&mut self, challenge: [u8; 32]) -> (ConnectionProof, [u8; 32]) {
        let body = format!("{{\"challenge\":\"{}\"}}", Hex32::new(challenge));
        let (status, _, body) = self.send(Method::POST, "/v1/attestation", body).await;
        assert_eq!(status, StatusCode::OK);
        (ConnectionProof::from_canonical(&body).unwrap(), self.channel.binding(&challenge).unwrap())
    }

    pub(crate) async fn start(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let request = http::Request::builder().method(method).uri(path).header("host", "guest");
        let mut request = request.body(Full::from(body.into())).unwrap();
        request.headers_mut().extend(self.headers.clone());
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, http::HeaderMap, Bytes) {
        let response = self.start(method, path, body).await;
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    /// Waits until the server has closed the connection.
    #[allow(dead_code, reason = "most connections are ended by the client")]
    pub(crate) async fn closed(&self) {
        for _ in 0..6000 {
            if self.sender.is_closed() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the connection is not closed");
    }

    pub(crate) async fn chat(&mut self, prompt: &str, extra: &str) -> (StatusCode, http::HeaderMap, Bytes) {
        self.send(Method::POST, "/v1/chat/completions", chat_body(prompt, extra)).await
    }
}

pub(crate) fn chat_body(prompt: &str, extra: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{prompt}"}}]{extra}}}"#)
}

/// A client on a connection of its own, without an HTTP library that would have manners.
#[allow(dead_code, reason = "most tests need no raw connection")]
pub(crate) async fn raw(address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config().unwrap()));
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect("guest".try_into().unwrap(), tcp).await.unwrap();
    let challenge = format!(r#"{{"challenge":"{}"}}"#, "07".repeat(32));
    stream.write_all(&post("/v1/attestation", &challenge)).await.unwrap();
    until_read(&mut stream, "\"tree_size\"").await;
    stream
}

/// A request's bytes.
#[allow(dead_code, reason = "most tests need no raw connection")]
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Reads until `text` has come.
#[allow(dead_code, reason = "most tests need no raw connection")]
pub(crate) async fn until_read(stream: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).await.unwrap();
        assert_ne!(length, 0, "closed before '{text}'");
        all.extend_from_slice(&bytes[..length]);
        let seen = String::from_utf8_lossy(&all);
        if seen.contains(text) {
            return seen.into_owned();
        }
    }
}
