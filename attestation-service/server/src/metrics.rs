// SPDX-License-Identifier: Apache-2.0
//! Numbers for operators: Prometheus' text format, health and readiness, on a listener of its own.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::service::Service;

/// What is counted beside outcomes.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Requests that were answered, however.
    pub(crate) requests: AtomicU64,
    /// Connections that are open.
    pub(crate) connections: AtomicU64,
    /// Challenges that asked for work.
    pub(crate) work_asked: AtomicU64,
    /// The service is ending.
    pub(crate) stopping: AtomicBool,
    /// Key releases by how long they took, refused ones included.
    pub(crate) releases: Histogram,
    /// The appraisals among them, from the redeemed challenge to the verdict.
    pub(crate) appraisals: Histogram,
    /// Entries of released keys, from the entry to its proof.
    pub(crate) entries: Histogram,
}

impl Gauges {
    /// Changes whenever something was done that frees memory.
    pub(crate) fn done(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.connections.load(Ordering::Relaxed))
    }
}

/// Durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// How many were at most as long as each of [`BOUNDS`].
    at_most: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = duration.as_secs_f64();
        for (bound, number) in BOUNDS.iter().zip(&mut counts.at_most) {
            *number = number.saturating_add(u64::from(seconds <= *bound));
        }
        counts.count = counts.count.saturating_add(1);
        counts.sum += seconds;
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        head(text, name, "histogram", help);
        for (bound, number) in BOUNDS.iter().zip(counts.at_most) {
            line(text, &format!("{name}_bucket{{le=\"{bound}\"}}"), number);
        }
        line(text, &format!("{name}_bucket{{le=\"+Inf\"}}"), counts.count);
        line(text, &format!("{name}_sum"), counts.sum);
        line(text, &format!("{name}_count"), counts.count);
    }
}

/// Answers `/metrics`, `/healthz` and `/readyz` on `listener` for ever.
pub async fn serve(service: Arc<Service>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _slot = slot;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(LIMIT)
                .max_buf_size(MAX_HEADERS)
                .keep_alive(false)
                .serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |request| answer(Arc::clone(&service), request)),
                );
            // Whoever is slow is cut off.
            let _ = tokio::time::timeout(LIMIT, connection).await;
        });
    }
}

async fn answer(
    service: Arc<Service>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, core::convert::Infallible> {
    let path = if request.method() == Method::GET { request.uri().path().to_owned() } else { String::new() };
    // Both of these read the store.
    let answered = tokio::task::spawn_blocking(move || match path.as_str() {
        "/metrics" => (StatusCode::OK, METRICS, metrics(&service)),
        "/healthz" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => match service.unready() {
            reasons if reasons.is_empty() => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            reasons => (StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons.join("\n") + "\n"),
        },
        _ => (StatusCode::NOT_FOUND, TEXT, "/metrics, /healthz, /readyz\n".to_owned()),
    });
    let (status, kind, body) =
        answered.await.unwrap_or((StatusCode::SERVICE_UNAVAILABLE, TEXT, "an operation did not end\n".to_owned()));
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

fn metrics(service: &Service) -> String {
    let mut text = String::new();
    let gauges = service.gauges();
    let name = "chrysalis_attestation_outcomes_total";
    head(&mut text, name, "counter", "Outcomes since the start, by code; `released` is a key");
    for (code, count) in service.counters() {
        line(&mut text, &format!("{name}{{code=\"{code}\"}}"), count);
    }
    let name = "chrysalis_attestation_key_release_seconds";
    gauges.releases.write(&mut text, name, "Time of key releases, refused ones included");
    let name = "chrysalis_attestation_appraisal_seconds";
    gauges.appraisals.write(&mut text, name, "Time of appraisals, from the redeemed challenge to the verdict");
    let name = "chrysalis_attestation_audit_append_seconds";
    gauges.entries.write(&mut text, name, "Time until the audit entry of a key was on disk and proven");
    let name = "chrysalis_attestation_build_info";
    head(&mut text, name, "gauge", "1; the version, and the hardware that is believed");
    let labels = format!("version=\"{}\",hardware=\"{}\"", env!("CARGO_PKG_VERSION"), service.hardware());
    line(&mut text, &format!("{name}{{{labels}}}"), 1);
    for (name, help, value) in [
        ("chrysalis_attestation_connections", "Open connections", gauges.connections.load(Ordering::Relaxed)),
        (
            "chrysalis_attestation_open_challenges",
            "Challenges not expired, for which no key was released",
            service.open_challenges(),
        ),
        ("chrysalis_attestation_ready", "1 where /readyz says so", u64::from(service.unready().is_empty())),
    ] {
        head(&mut text, name, "gauge", help);
        line(&mut text, name, value);
    }
    let name = "chrysalis_attestation_requests_total";
    head(&mut text, name, "counter", "Requests that were answered, however");
    line(&mut text, name, gauges.requests.load(Ordering::Relaxed));
    let name = "chrysalis_attestation_work_asked_total";
    head(&mut text, name, "counter", "Challenges that asked for work");
    line(&mut text, name, gauges.work_asked.load(Ordering::Relaxed));
    if let Some(entries) = service.audit_entries() {
        let name = "chrysalis_attestation_audit_entries";
        head(&mut text, name, "counter", "Entries of the audit log");
        line(&mut text, name, entries);
    }
    let name = "chrysalis_attestation_collateral_expires_seconds";
    head(&mut text, name, "gauge", "Last second (since 1970) of the collateral's validity; 0 where it is not valid");
    for (fmspc, expires) in service.collateral_expires() {
        line(&mut text, &format!("{name}{{fmspc=\"{fmspc}\"}}"), expires);
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, value: impl core::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
}

const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const CONNECTIONS: usize = 16;
const LIMIT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for milliseconds in [1, 2, 30, 9000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "help");
        for expected in [
            "x_bucket{le=\"0.001\"} 1",
            "x_bucket{le=\"0.0025\"} 2",
            "x_bucket{le=\"0.05\"} 3",
            "x_bucket{le=\"5\"} 3",
            "x_bucket{le=\"+Inf\"} 4",
            "x_sum 9.033",
            "x_count 4",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}: {text}");
        }
    }
}
