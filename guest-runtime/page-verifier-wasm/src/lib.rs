// SPDX-License-Identifier: Apache-2.0
//! [`page_verifier`] as a WebAssembly module. It imports nothing: the host can give it a request and take the answer, no more.
//! `verifier.mjs` beside this crate speaks its four functions for JavaScript.

#![allow(
    unsafe_code,
    reason = "a function has its own name outside only by an attribute that is unsafe; nothing else is"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use page_verifier::{Anchors, Exchange};

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

/// [`Exchange::decide`], by Intel's and NVIDIA's roots.
#[unsafe(no_mangle)]
pub extern "C" fn chrysalis_decide() -> u32 {
    exchange().decide(|request| page_verifier::verify(&const { Anchors::genuine() }, request))
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
