// SPDX-License-Identifier: Apache-2.0
//! Collects evidence of NVIDIA GPUs and NVSwitches through the driver's libraries, and lets the GPUs accept work when init says so.
//!
//! The only program of the guest that is linked dynamically: NVIDIA's libraries are loaded at run time from the verified root,
//! libnvidia-ml always, libnvidia-nscq where it exists. Afterwards the process confines itself: no program, no socket, no
//! executable memory. It holds no key and decides nothing: init appraises what the devices signed.

mod collect;
mod ffi;
mod sandbox;

use std::{os::unix::net::UnixStream, process::ExitCode};

use attester_protocol::{FrameError, frame};
use gpu_protocol::{COLLECTOR_FD, FailureKind, GpuAnswer, GpuFailure, GpuRequest};
use linux_sys::{SysError, seccomp::SeccompError};

use collect::Collector;
use ffi::Libraries;

/// The whole process: takes the inherited socket, loads the libraries, confines itself and answers until init closes the socket.
#[must_use]
pub fn run() -> ExitCode {
    match run_inherited() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Seen in development images only: elsewhere standard error is /dev/null.
            eprintln!("gpu-collector: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CollectorError {
    #[error(transparent)]
    Sys(#[from] SysError),
    #[error(transparent)]
    Confine(#[from] SeccompError),
    #[error("socket: {0}")]
    Socket(#[from] FrameError),
}

fn run_inherited() -> Result<(), CollectorError> {
    let mut socket = UnixStream::from(linux_sys::descriptors::inherited(COLLECTOR_FD)?);
    // A library that cannot be loaded is an answer, not an end: init names it.
    let libraries = Libraries::load();
    sandbox::confine()?;
    let mut collector = libraries.map(Collector::new);
    while let Some(request) = frame::read::<GpuRequest>(&mut socket)? {
        let answer = collector.as_mut().map_err(|error| error.clone()).and_then(|collector| match request {
            GpuRequest::Collect { nonce, gpus, switches } => {
                collector.collect(&nonce, gpus, switches).map(|found| GpuAnswer::Collected(Box::new(found)))
            }
            GpuRequest::SetReady {} => collector.set_ready().map(|()| GpuAnswer::Ready {}),
        });
        frame::write(&mut socket, &answer.unwrap_or_else(GpuAnswer::Failed))?;
    }
    Ok(())
}

impl From<&ffi::LibraryError> for GpuFailure {
    fn from(error: &ffi::LibraryError) -> Self {
        Self::new(FailureKind::Driver, &error.to_string())
    }
}
