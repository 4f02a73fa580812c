// SPDX-License-Identifier: Apache-2.0
//! Numbers for Prometheus, on loopback. Nothing of a guest but its numbers of states and times is in them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::daemon::state_file;
use crate::daemon::status::{GuestStatus, GuestWord, Status};
use crate::daemon::tcb::TcbWord;

type Shown = watch::Receiver<Option<Arc<Status>>>;

/// Listens for Prometheus.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("agent.metrics_listen: cannot listen on {address}"))
}

/// Answers `/metrics` and `/healthz` for ever.
pub(crate) async fn serve(listener: TcpListener, status: Shown) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = status.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .keep_alive(false)
                .max_buf_size(16 * 1024)
                .serve_connection(
                    TokioIo::new(stream),
                    service_fn(|request| {
                        let answer = answer(&request, status.borrow().as_deref());
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    }),
                );
            // Who breaks off gets nothing more.
            let _ = tokio::time::timeout(Duration::from_secs(10), connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, status: Option<&Status>) -> Response<Full<Bytes>> {
    let (code, text) = match (request.method(), request.uri().path(), status) {
        (&Method::GET, "/metrics", Some(status)) => (StatusCode::OK, render(status)),
        (&Method::GET, "/healthz", Some(status)) => health(status),
        (&Method::GET, "/metrics" | "/healthz", None) => (StatusCode::SERVICE_UNAVAILABLE, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A daemon that cannot write its state down changes nothing any more, whatever happens to guests.
fn health(status: &Status) -> (StatusCode, String) {
    match status.reasons.iter().find(|reason| state_file::says_unwritten(reason)) {
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reason.code)),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

/// Prometheus' text format.
fn render(status: &Status) -> String {
    let mut text = Text(String::new());
    text.family("chrysalis_agent_simulated", "gauge", "Whether guests run on simulated hardware.");
    text.line("chrysalis_agent_simulated", "", u64::from(status.simulated));
    text.family("chrysalis_cache_bytes", "gauge", "Bytes of encrypted packs.");
    text.line("chrysalis_cache_bytes", "", status.cache.bytes);
    text.family("chrysalis_cache_quota_bytes", "gauge", "Most bytes of encrypted packs.");
    text.line("chrysalis_cache_quota_bytes", "", status.cache.quota);
    text.family("chrysalis_cache_packs", "gauge", "Encrypted packs.");
    text.line("chrysalis_cache_packs", "", status.cache.packs);
    if let Some(tcb) = &status.tcb {
        text.family("chrysalis_host_tcb_state", "gauge", "1 for how this host's TCB stands.");
        for word in TcbWord::ALL {
            let labels = format!("state=\"{}\"", word.as_str());
            text.line("chrysalis_host_tcb_state", &labels, u64::from(tcb.state == word));
        }
        if let Some(days) = tcb.days_left {
            text.family(
                "chrysalis_host_tcb_days_left",
                "gauge",
                "Days until this host's TCB is out; absent where it stays.",
            );
            text.line("chrysalis_host_tcb_days_left", "", days);
        }
    }
    text.family("chrysalis_guest_state", "gauge", "1 for the state that a guest is in.");
    for guest in &status.guests {
        for word in GuestWord::ALL {
            let labels = format!("guest=\"{}\",state=\"{}\"", guest.name, word.as_str());
            text.line("chrysalis_guest_state", &labels, u64::from(guest.state == word));
        }
    }
    let families: [Family; 9] = [
        ("chrysalis_guest_restarts_total", "counter", "Attempts after the first of each generation.", |g| g.restarts),
        ("chrysalis_guest_connections", "gauge", "Open connections of clients.", |g| g.connections),
        ("chrysalis_guest_accepted_total", "counter", "Connections passed on since the front started.", |g| g.accepted),
        ("chrysalis_guest_turned_away_total", "counter", "Connections closed at once: nobody served.", |g| {
            g.turned_away
        }),
        ("chrysalis_guest_reasons", "gauge", "What keeps it from being as declared.", |g| count(g.reasons.len())),
        (
            "chrysalis_guest_finishing",
            "gauge",
            "Generations that end their connections with the answers that run.",
            |g| count(g.finishing.len()),
        ),
        ("chrysalis_guest_silent", "gauge", "1 if the active generation serves and does not answer.", |g| {
            g.active.as_ref().map_or(0, |active| u64::from(active.silent))
        }),
        ("chrysalis_guest_generation", "gauge", "Number of the active generation.", |g| {
            g.active.as_ref().map_or(0, |active| active.number)
        }),
        ("chrysalis_guest_failures", "gauge", "Failures in a row of the active generation.", |g| {
            g.active.as_ref().map_or(0, |active| u64::from(active.failures))
        }),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for guest in &status.guests {
            text.line(name, &format!("guest=\"{}\"", guest.name), value(guest));
        }
    }
    text.family("chrysalis_guest_boot_milliseconds", "gauge", "When a phase of the last boot ended, since its start.");
    for guest in &status.guests {
        for phase in guest.active.iter().flat_map(|active| &active.phases) {
            let labels = format!("guest=\"{}\",phase=\"{}\"", guest.name, phase.phase);
            text.line("chrysalis_guest_boot_milliseconds", &labels, phase.milliseconds);
        }
    }
    text.0
}

/// Name, kind, help, and the value of a guest.
type Family = (&'static str, &'static str, &'static str, fn(&GuestStatus) -> u64);

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }
}

const CONNECTIONS: usize = 16;
