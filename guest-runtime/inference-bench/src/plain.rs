// SPDX-License-Identifier: Apache-2.0
//! The peer: what a server without TLS, proofs, receipts and padding would do. One engine, server-sent events over plain
//! HTTP, nothing else; what it is sent is not checked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use engine_protocol::{Command, Decoder, Event, Form, Generate, Message, Prompt, Role, Sampling, Tenant, encode};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf};
use tokio::sync::mpsc;

/// Prints the address and answers until standard input ends.
pub(crate) async fn serve(engine_socket: &Path) -> anyhow::Result<()> {
    let (reader, writer) = UnixStream::connect(engine_socket).await?.into_split();
    let engine = Arc::new(Engine {
        writer: tokio::sync::Mutex::new(writer),
        waiting: Mutex::default(),
        next: AtomicU64::new(1),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tokio::spawn(Arc::clone(&engine).run(reader));
    tokio::spawn(accept(listener, engine));
    tokio::task::spawn_blocking(|| std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new())).await??;
    Ok(())
}

struct Engine {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Mutex<HashMap<u64, mpsc::UnboundedSender<Event>>>,
    next: AtomicU64,
}

impl Engine {
    async fn generate(&self, tenant: u64, body: &Value) -> anyhow::Result<(u64, mpsc::UnboundedReceiver<Event>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        self.lock().insert(id, sender);
        let frame = encode(&Command::Generate(request(id, tenant, body).context("no request")?))?;
        self.writer.lock().await.write_all(&frame).await?;
        Ok((id, events))
    }

    async fn forget(&self, tenant: u64) -> anyhow::Result<()> {
        let frame = encode(&Command::Forget { tenant: tenant_of(tenant) })?;
        Ok(self.writer.lock().await.write_all(&frame).await?)
    }

    async fn run(self: Arc<Self>, mut reader: OwnedReadHalf) -> anyhow::Result<()> {
        let (mut decoder, mut buffer) = (Decoder::<Event>::new(), vec![0; 64 << 10]);
        loop {
            let length = reader.read(&mut buffer).await?;
            anyhow::ensure!(length > 0, "the engine ended");
            decoder.push(buffer.get(..length).unwrap_or_default());
            while let Some(event) = decoder.next_message()? {
                let (id, is_last) = match &event {
                    // Nobody asks for vectors.
                    Event::Hello { .. } | Event::Vector { .. } => continue,
                    Event::Done { id, .. } | Event::Failed { id, .. } => (*id, true),
                    Event::Started { id, .. } | Event::Token { id, .. } | Event::Ended { id, .. } => (*id, false),
                };
                let sender = if is_last { self.lock().remove(&id) } else { self.lock().get(&id).cloned() };
                // Nobody waits any more: nobody is told.
                let _ = sender.map(|sender| sender.send(event));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, mpsc::UnboundedSender<Event>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message of a user, greedy: what the bench asks.
fn request(id: u64, tenant: u64, body: &Value) -> Option<Generate> {
    let content = body.pointer("/messages/0/content")?.as_str()?.to_owned();
    let max_tokens = u32::try_from(body.get("max_completion_tokens")?.as_u64()?).ok()?;
    Some(Generate {
        id,
        tenant: tenant_of(tenant),
        prompt: Prompt::Chat(vec![Message { role: Role::User, content }]),
        choices: 1,
        max_tokens: Some(max_tokens),
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 0 },
        stop: Vec::new(),
        logprobs: None,
        form: Form::Free,
    })
}

fn tenant_of(number: u64) -> Tenant {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(number.to_be_bytes()).for_each(|(byte, value)| *byte = value);
    Tenant(bytes)
}

async fn accept(listener: TcpListener, engine: Arc<Engine>) {
    let mut tenant = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tenant += 1;
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&engine), tenant, request));
            // Whatever ends a connection is between its two ends.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            // As `serve` does: what is kept slows down what comes after it.
            let _ = engine.forget(tenant).await;
        });
    }
}

async fn answer(engine: Arc<Engine>, tenant: u64, request: Request<Incoming>) -> anyhow::Result<Response<Events>> {
    let body: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes())?;
    let (id, events) = engine.generate(tenant, &body).await?;
    Ok(Response::builder().header("content-type", "text/event-stream").body(Events { id, events, ended: false })?)
}

/// An answer as server-sent events.
struct Events {
    id: u64,
    events: mpsc::UnboundedReceiver<Event>,
    ended: bool,
}

impl Events {
    fn chunk(&self, delta: &Value, reason: Option<&str>, usage: &Value) -> Bytes {
        let document = json!({
            "id": self.id.to_string(), "object": "chat.completion.chunk", "created": 0, "model": "m", "usage": usage,
            "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason }],
        });
        format!("data: {document}\n\n").into()
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(event) = self.events.poll_recv(context) else { return Poll::Pending };
        let bytes = match event {
            Some(Event::Token { text, .. }) => self.chunk(&json!({ "content": text }), None, &Value::Null),
            Some(Event::Done { completion_tokens, .. }) => {
                self.ended = true;
                self.chunk(&json!({}), Some("stop"), &json!({ "completion_tokens": completion_tokens }))
            }
            Some(Event::Failed { .. }) | None => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Some(Event::Hello { .. } | Event::Vector { .. } | Event::Started { .. } | Event::Ended { .. }) => {
                Bytes::from_static(b":\n\n")
            }
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
