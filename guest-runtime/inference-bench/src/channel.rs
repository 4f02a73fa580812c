// SPDX-License-Identifier: Apache-2.0
//! Answers over attested connections and over plain ones, in turns, and challenges all at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use client::{AttestedConnection, Blocks, Upstream, Verifier, chat, connect, question};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::{Binaries, Measure, Part, guest, policy, programs::Programs};

pub(crate) async fn measure(arguments: &Measure, document: &mut Map<String, Value>) -> anyhow::Result<()> {
    let quick = arguments.quick;
    let mut tell = |field: &str, value: Value| {
        eprintln!("{field}: {value}");
        document.insert(field.to_owned(), value);
    };
    if arguments.wants(Part::Throughput) {
        tell("throughput", throughput(&arguments.binaries, quick).await?);
    }
    let directory = tempfile::tempdir()?;
    let guest = Guest::start(&arguments.binaries, directory.path())?;
    let start = guest.programs.memory()?;
    if arguments.wants(Part::FirstToken) {
        tell("first_token", guest.first_token(if quick { 3 } else { 101 }).await?);
    }
    if arguments.wants(Part::Challenges) {
        // What answers at once leave in memory is counted too.
        guest.rates(8, if quick { 16 } else { 192 }, 1).await?;
        let (connections, rounds) = if quick { (20, 1) } else { (500, 5) };
        tell("challenges", guest.challenges(connections, rounds).await?);
    }
    tell("memory", json!({ "start": start, "end": guest.programs.memory()? }));
    Ok(())
}

/// Tokens a second of whole answers, one at a time and eight at once, over several guests: two processes of the same
/// engine differ by some percent for as long as they run (seen; why is not known), so one pair says little.
async fn throughput(binaries: &Binaries, quick: bool) -> anyhow::Result<Value> {
    let (guests, tokens) = if quick { (1, 16) } else { (GUESTS, 192) };
    // Eight take longer.
    let streams = [(1_usize, 4_usize), (8, 1)];
    let mut seen = streams.map(|_| (Vec::new(), Vec::new(), Vec::new()));
    for _ in 0..guests {
        let directory = tempfile::tempdir()?;
        let guest = Guest::start(binaries, directory.path())?;
        for ((streams, rounds), (attested, plain, ratios)) in streams.into_iter().zip(&mut seen) {
            let (a, b) = guest.rates(streams, tokens, rounds).await?;
            eprintln!("{streams} at once: attested {a:.1} t/s, plain {b:.1} t/s");
            attested.push(a);
            plain.push(b);
            ratios.push(a / b);
        }
    }
    let rows = streams.into_iter().zip(seen).map(|((streams, _), (attested, plain, ratios))| {
        json!({
            "streams": streams, "attested": quantile(attested, 0.5), "plain": quantile(plain, 0.5),
            "ratio": quantile(ratios.clone(), 0.5), "ratios": ratios,
        })
    });
    Ok(rows.collect())
}

struct Guest {
    programs: Programs,
    upstream: Upstream,
    verifier: Arc<Verifier>,
}

/// What an answer took.
#[derive(Debug, Clone, Copy)]
struct Times {
    first: Duration,
    all: Duration,
    tokens: u64,
}

impl Guest {
    fn start(binaries: &Binaries, directory: &Path) -> anyhow::Result<Self> {
        let programs = Programs::start(binaries, directory)?;
        let upstream = Upstream::new("127.0.0.1", programs.attested.address.port());
        Ok(Self { programs, upstream, verifier: policy::verifier(directory)? })
    }

    /// Milliseconds from a request on an open connection to the first text; the prompt was read before, so that the engine
    /// has little to do.
    async fn first_token(&self, rounds: usize) -> anyhow::Result<Value> {
        let (mut attested, mut plain) = (self.attested().await?, self.plain().await?);
        let ask = question(&policy::model()?, "What is the capital of France?", 4);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..=rounds {
            a.push(attested_answer(&mut attested, &ask).await?.first.as_secs_f64() * 1e3);
            b.push(plain.answer(&ask).await?.first.as_secs_f64() * 1e3);
        }
        // The first of each reads the prompt.
        let (a, b) = (quantile(a.split_off(1), 0.5), quantile(b.split_off(1), 0.5));
        Ok(json!({ "attested_ms": a, "plain_ms": b, "rounds": rounds }))
    }

    /// Tokens a second of whole answers, so many at once, attested and plain: medians of `rounds`, each of which begins
    /// with the other one than the last. A round before them reads the prompts and wakes what sleeps.
    async fn rates(&self, streams: usize, tokens: u32, rounds: usize) -> anyhow::Result<(f64, f64)> {
        let (mut attested, mut plain, mut asks) = (Vec::new(), Vec::new(), Vec::new());
        for stream in 0..streams {
            attested.push(self.attested().await?);
            plain.push(self.plain().await?);
            asks.push(question(&policy::model()?, &format!("Tell a long story about {stream} ships."), tokens));
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            for is_attested in [round % 2 == 0, round % 2 != 0] {
                let rate = if is_attested {
                    rate(attested.iter_mut().zip(&asks).map(|(to, ask)| attested_answer(to, ask))).await?
                } else {
                    rate(plain.iter_mut().zip(&asks).map(|(to, ask)| to.answer(ask))).await?
                };
                if round > 0 {
                    if is_attested { a.push(rate) } else { b.push(rate) }
                }
            }
        }
        Ok((quantile(a, 0.5), quantile(b, 0.5)))
    }

    /// All connections ask for a proof at once, again and again; each proof is verified by the client.
    async fn challenges(&self, connections: usize, rounds: usize) -> anyhow::Result<Value> {
        let start = Instant::now();
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections.div_ceil(HANDSHAKES) {
            let mut some = tokio::task::JoinSet::new();
            for _ in 0..HANDSHAKES.min(connections.saturating_sub(open.len())) {
                let (upstream, verifier) = (self.upstream.clone(), Arc::clone(&self.verifier));
                some.spawn(async move { connect(&upstream, &verifier).await });
            }
            while let Some(connection) = some.join_next().await {
                open.push(connection??);
            }
        }
        let handshakes = start.elapsed();
        // One alone: its quote, and nobody beside it.
        let start = Instant::now();
        open.first_mut().context("no connection")?.renew().await?;
        let alone = start.elapsed();
        let mut latencies = Vec::new();
        for _ in 0..rounds {
            let ready = Arc::new(Barrier::new(open.len()));
            let mut asking = tokio::task::JoinSet::new();
            for mut connection in open.drain(..) {
                let ready = Arc::clone(&ready);
                asking.spawn(async move {
                    ready.wait().await;
                    let start = Instant::now();
                    connection.renew().await.map(|()| (connection, start.elapsed()))
                });
            }
            while let Some(asked) = asking.join_next().await {
                let (connection, took) = asked??;
                latencies.push(took.as_secs_f64() * 1e3);
                open.push(connection);
            }
        }
        Ok(json!({
            "connections": connections, "rounds": rounds, "quote_ms": guest::QUOTE.as_secs_f64() * 1e3,
            "alone_ms": alone.as_secs_f64() * 1e3,
            "p50_ms": quantile(latencies.clone(), 0.5), "p99_ms": quantile(latencies, 0.99),
            "handshakes_s": handshakes.as_secs_f64(),
        }))
    }

    async fn attested(&self) -> anyhow::Result<AttestedConnection> {
        Ok(connect(&self.upstream, &self.verifier).await?)
    }

    async fn plain(&self) -> anyhow::Result<Plain> {
        let stream = TcpStream::connect(self.programs.plain).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end shows in the sender.
        tokio::spawn(connection);
        Ok(Plain { sender })
    }
}

/// An answer with everything that a client checks: padding dropped, receipt verified.
async fn attested_answer(connection: &mut AttestedConnection, ask: &Value) -> anyhow::Result<Times> {
    let (start, mut first) = (Instant::now(), None);
    let answer = chat(connection, ask, |text| {
        if !text.is_empty() {
            first.get_or_insert_with(|| start.elapsed());
        }
    })
    .await?;
    let first = first.context("no text")?;
    Ok(Times { first, all: start.elapsed(), tokens: answer.usage.completion_tokens })
}

struct Plain {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Plain {
    async fn answer(&mut self, ask: &Value) -> anyhow::Result<Times> {
        let (start, mut first, mut tokens) = (Instant::now(), None, None);
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        let request = request.header("host", "localhost").body(Full::from(ask.to_string()))?;
        self.sender.ready().await?;
        let mut body = self.sender.send_request(request).await?.into_body();
        let mut blocks = Blocks::default();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                blocks.push(&bytes);
            }
            while let Some(block) = blocks.next_block()? {
                let Some(data) = block.data else { continue };
                let event: Value = serde_json::from_str(&data)?;
                let text = event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default();
                if !text.is_empty() {
                    first.get_or_insert_with(|| start.elapsed());
                }
                tokens = tokens.or_else(|| event.pointer("/usage/completion_tokens").and_then(Value::as_u64));
            }
        }
        let (first, tokens) = first.zip(tokens).context("no answer")?;
        Ok(Times { first, all: start.elapsed(), tokens })
    }
}

/// Tokens a second of some answers at once.
async fn rate(answers: impl Iterator<Item = impl Future<Output = anyhow::Result<Times>>>) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut all = Vec::new();
    // Each is polled as its bytes come: all of them belong to this task.
    let mut answers: Vec<_> = answers.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        answers.retain_mut(|answer| match answer.as_mut().poll(context) {
            std::task::Poll::Ready(times) => {
                all.push(times);
                false
            }
            std::task::Poll::Pending => true,
        });
        if answers.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    let took = start.elapsed().as_secs_f64();
    let mut tokens = 0.0;
    for times in all {
        let times = times?;
        anyhow::ensure!(times.all >= times.first, "an answer ended before it began");
        tokens += f64::from(u32::try_from(times.tokens)?);
    }
    Ok(tokens / took)
}

/// The value below which `share` of the values are.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length is an index"
    )]
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// That throughput is measured over.
const GUESTS: usize = 7;
/// Connections that are made at once.
const HANDSHAKES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_list() {
        let values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(quantile(values.clone(), 0.5), 50.0);
        assert_eq!(quantile(values.clone(), 0.99), 99.0);
        assert_eq!(quantile(values, 1.0), 99.0);
    }

    #[tokio::test]
    async fn a_rate_counts_the_tokens_of_all_answers() {
        let second = Duration::from_millis(1);
        let answer = |tokens| async move { Ok(Times { first: second, all: second, tokens }) };
        assert!(rate([answer(3), answer(4)].into_iter()).await.unwrap() > 0.0);
        let wrong = async { Ok(Times { first: second, all: Duration::ZERO, tokens: 1 }) };
        assert!(rate([wrong].into_iter()).await.is_err());
    }
}
