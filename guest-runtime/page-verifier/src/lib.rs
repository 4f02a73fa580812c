// SPDX-License-Identifier: Apache-2.0
//! The verifying core behind one function: a request in JSON, an answer in JSON.
//!
//! It decides what the attestation service and the client decide, by the same libraries: a quote under its collateral, GPUs under
//! their manifests, a release under its signers and log, a guest under all of these and a policy. It is for places where only
//! WebAssembly runs, such as a browser page, and reaches nothing by itself: no network, no file, no clock, no randomness. The time and every
//! document are in the request.
//!
//! Not established: that the time is right, and that the request's policies and trust are those that the user wants. Whoever calls it
//! answers for both. What it believes of hardware is [`Anchors`], which no request changes.

mod abi;
mod answer;
mod gpus;
mod guest;
mod quote;
mod release_bundle;
mod request;

use gpu_verify::GpuAnchors;
use tdx_verify::TrustAnchors;

pub use abi::Exchange;
pub use request::{
    BindingRequest, DeviceRequest, GpusRequest, GuestRequest, MomentRequest, QuoteRequest, ReleaseRequest, Request,
    Subject,
};

/// Whose hardware is believed. Fixed when a program is compiled: no request names a root.
#[derive(Debug, Clone)]
pub struct Anchors {
    /// Makers of processors.
    pub quotes: TrustAnchors,
    /// Makers of GPUs.
    pub gpus: GpuAnchors,
}

impl Anchors {
    /// Intel's and NVIDIA's roots.
    #[must_use]
    pub const fn genuine() -> Self {
        Self { quotes: TrustAnchors::intel(), gpus: GpuAnchors::nvidia() }
    }
}

/// Decides a [`Request`] in JSON; the answer is JSON, too:
/// `{"accepted": bool, "reasons": [{code, field, detail, fix}], "result": …, "schema": "chrysalis/verify-answer/v1"}`.
///
/// A request that cannot be read is refused like any other: `accepted` is false, and `reasons` says why. `result` is there where there
/// is something to show; without `accepted` nothing in it was established.
#[must_use]
pub fn verify(anchors: &Anchors, request: &[u8]) -> Vec<u8> {
    let answer = match Request::from_json(request) {
        Ok(Request { schema: _, at, subject }) => match subject {
            Subject::Quote(subject) => quote::decide(&subject, anchors, at),
            Subject::Gpus(subject) => gpus::decide(subject, anchors, at),
            Subject::Release(subject) => release_bundle::decide(&subject, at),
            Subject::Guest(subject) => guest::decide(subject, anchors, at),
        },
        Err(reason) => Err(vec![reason]),
    };
    answer::write(answer)
}

/// Most bytes of a request. Evidence of a guest with 16 GPUs and its manifests has about 3 MiB.
pub const MAX_REQUEST: usize = 16 << 20;

#[cfg(test)]
mod tests;
