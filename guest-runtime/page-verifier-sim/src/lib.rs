// SPDX-License-Identifier: Apache-2.0
//! [`page_verifier`] with a root that the input names: for tests with simulated hardware, never for a page. Everything that it accepts
//! says `hardware: simulated`.

#![allow(
    unsafe_code,
    reason = "a function has its own name outside only by an attribute that is unsafe; nothing else is"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use gpu_verify::GpuAnchors;
use page_verifier::{Anchors, Exchange};
use serde::{Deserialize, Serialize};
use tdx_verify::TrustAnchors;
use types::Base64;

/// A request, and the root of the simulated processors.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simulated {
    /// The root certificate, DER.
    pub root: Base64<8192>,
    /// The request, as text.
    pub request: String,
}

/// Decides a [`Simulated`] in JSON. What is none is decided as an empty request.
#[must_use]
pub fn verify(input: &[u8]) -> Vec<u8> {
    let (root, request) = match serde_json::from_slice(input) {
        Ok(Simulated { root, request }) => (root.into_vec(), request),
        Err(_) => (Vec::new(), String::new()),
    };
    let anchors = Anchors { quotes: TrustAnchors::custom(root), gpus: GpuAnchors::nvidia() };
    page_verifier::verify(&anchors, request.as_bytes())
}

/// [`Exchange::begin`].
#[unsafe(no_mangle)]
pub extern "C" fn chrysalis_begin() {
    exchange().begin();
}

/// [`Exchange::give`].
#[unsafe(no_mangle)]
pub extern "C" fn chrysalis_give(word: u32, count: u32) {
    exchange().give(word, count);
}

/// [`Exchange::decide`].
#[unsafe(no_mangle)]
pub extern "C" fn chrysalis_decide() -> u32 {
    exchange().decide(verify)
}

/// [`Exchange::answer`].
#[unsafe(no_mangle)]
pub extern "C" fn chrysalis_answer(at: u32) -> u32 {
    exchange().answer(at)
}

fn exchange() -> MutexGuard<'static, Exchange> {
    static EXCHANGE: Mutex<Exchange> = Mutex::new(Exchange::new());
    EXCHANGE.lock().unwrap_or_else(PoisonError::into_inner)
}
