// SPDX-License-Identifier: Apache-2.0
//! The attester: the one process that holds the guest's keys and its quote device.
//!
//! It makes an instance key (signs receipts) and a TLS key when it starts, in memory that is never written anywhere; while
//! the guest serves it renews the TLS key, with certificate and evidence ([`Renewal`]). Init drives it through the boot over the control socket ([`boot`]); after the event `serve` it answers `serve`
//! on the serving socket. It speaks to nobody else, opens no file and prints nothing.
//!
//! What it establishes: a quote leaves it only with REPORTDATA of the documented form over its own keys; a key-release
//! quote only between the events `gpu` and `keys`. What it does not: that the payloads of events are true (init is
//! measured), and that a client's challenge was bound to that client's connection (`serve` is measured).

mod batch;
mod boot;
mod certificate;
mod connection;
mod facts;
mod generations;
mod keys;
mod renewal;
mod sandbox;
mod serving;

use std::{
    os::unix::net::{UnixListener, UnixStream},
    process::ExitCode,
    sync::Arc,
    thread,
};

use attester_protocol::{
    CONTROL_FD, ControlAnswer, ControlRequest, Failure, FrameError, Outcome, Request, Response, SERVING_FD, frame,
};
use linux_sys::{SysError, seccomp::SeccompError};
use tee::QuoteDevice;

pub use keys::Keys;
pub use renewal::{Renewal, Renewer};
pub use sandbox::confine;

use boot::Boot;

/// The whole process: locks memory, takes the two inherited sockets, makes the keys, confines itself and serves until init
/// closes the control socket.
#[must_use]
pub fn run<D: QuoteDevice + Send + 'static>(device: D) -> ExitCode {
    match run_inherited(device) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Seen in development images only: elsewhere standard error is /dev/null. Errors name rules, never data.
            eprintln!("attester: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves over the given sockets until the control socket is closed, with the usual [`Renewal`].
///
/// # Errors
/// [`AttesterError`]; the guest must halt then.
pub fn serve<D: QuoteDevice + Send + 'static>(
    device: D,
    keys: Keys,
    control: UnixStream,
    listener: UnixListener,
) -> Result<(), AttesterError> {
    serve_renewing(device, keys, control, listener, Renewal::default())
}

/// As [`serve`], with another [`Renewal`].
///
/// # Errors
/// As [`serve`].
pub fn serve_renewing<D: QuoteDevice + Send + 'static>(
    device: D,
    keys: Keys,
    mut control: UnixStream,
    listener: UnixListener,
    renewal: Renewal,
) -> Result<(), AttesterError> {
    let mut boot = Boot::new(device, keys);
    while !boot.is_complete() {
        let Some(Request { id, body }) = frame::read(&mut control)? else { return Ok(()) };
        let answer = boot.answer(body);
        if !boot.is_complete() {
            reply(&mut control, id, answer)?;
            continue;
        }
        // The event `serve` is in the register: identity and quote follow, and only then the answer.
        let serving = boot.into_serving(renewal);
        let failure = serving.as_ref().err().copied();
        reply(&mut control, id, failure.map_or(answer, Err))?;
        let (serving, batches) = serving.map_err(AttesterError::Identity)?;
        spawn("quotes", move || batches.run())?;
        let serving = Arc::new(serving);
        spawn("accept", move || connection::accept(&listener, &serving))?;
        break;
    }
    while let Some(Request { id, .. }) = frame::read::<Request<ControlRequest>>(&mut control)? {
        reply(&mut control, id, Err(Failure::Sealed))?;
    }
    Ok(())
}

/// Why the attester ended.
#[derive(Debug, thiserror::Error)]
pub enum AttesterError {
    /// Locking memory, taking a socket or starting a thread failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The kernel gave no randomness for a key.
    #[error("no randomness for keys")]
    Randomness,
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] SeccompError),
    /// The control socket broke.
    #[error("control socket: {0}")]
    Control(#[from] FrameError),
    /// The event `serve` was extended, but certificate or evidence could not be made.
    #[error("certificate and evidence could not be made: {0}")]
    Identity(Failure),
}

fn run_inherited<D: QuoteDevice + Send + 'static>(device: D) -> Result<(), AttesterError> {
    linux_sys::memory::lock()?;
    let control = UnixStream::from(linux_sys::descriptors::inherited(CONTROL_FD)?);
    let listener = UnixListener::from(linux_sys::descriptors::inherited(SERVING_FD)?);
    let keys = Keys::generate().map_err(|_| AttesterError::Randomness)?;
    confine()?;
    serve(device, keys, control, listener)
}

fn reply(control: &mut UnixStream, id: u64, answer: Result<ControlAnswer, Failure>) -> Result<(), FrameError> {
    let outcome = answer.map_or_else(Outcome::Failed, Outcome::Done);
    frame::write(control, &Response { id, outcome })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), SysError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).map_err(|source| SysError { what: "start a thread", source })
}
