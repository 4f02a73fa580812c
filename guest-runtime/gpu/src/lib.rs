// SPDX-License-Identifier: Apache-2.0
//! Collects evidence of NVIDIA GPUs and NVSwitches through the driver's libraries, and lets the GPUs accept work when init says so.
//!
//! Linked dynamically, as of the guest's programs only the engine for GPUs is beside it: NVIDIA's libraries are loaded at run time from the verified root,
//! libnvidia-ml always, libnvidia-nscq where it exists. Afterwards the process confines itself: no program, no socket, no
//! executable memory. It holds no key and decides nothing: init appraises what the devices signed.

mod collect;
mod ffi;
mod sandbox;

use std::{ffi::OsString, os::unix::net::UnixStream, process::ExitCode};

use attester_protocol::{FrameError, frame};
use gpu_protocol::{COLLECTOR_FD, FailureKind, GpuAnswer, GpuFailure, GpuRequest, SET_READY};
use linux_sys::{SysError, seccomp::SeccompError};

use collect::{collect, set_ready};
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
    #[error("the only argument is --set-ready")]
    Usage,
}

/// What this process is for. The one that reads what devices say has no right to let them work: the driver asks an administrator's
/// for that (`CAP_SYS_ADMIN`), which the other one keeps and which reads nothing.
#[derive(Debug, Clone, Copy)]
enum Duty {
    Collect,
    SetReady,
}

impl Duty {
    fn of(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, CollectorError> {
        match (arguments.next(), arguments.next()) {
            (None, _) => Ok(Self::Collect),
            (Some(argument), None) if argument == SET_READY => Ok(Self::SetReady),
            _ => Err(CollectorError::Usage),
        }
    }
}

fn run_inherited() -> Result<(), CollectorError> {
    let duty = Duty::of(std::env::args_os().skip(1))?;
    let mut socket = UnixStream::from(linux_sys::descriptors::inherited(COLLECTOR_FD)?);
    // A library that cannot be loaded is an answer, not an end: init names it.
    let libraries = Libraries::load();
    sandbox::confine()?;
    while let Some(request) = frame::read::<GpuRequest>(&mut socket)? {
        let answer = libraries.as_ref().map_err(Clone::clone).and_then(|libraries| match (duty, request) {
            (Duty::Collect, GpuRequest::Collect { nonce, gpus, switches }) => {
                collect(libraries, &nonce, gpus, switches).map(|found| GpuAnswer::Collected(Box::new(found)))
            }
            (Duty::SetReady, GpuRequest::SetReady {}) => set_ready(libraries).map(|()| GpuAnswer::Ready {}),
            _ => Err(GpuFailure::new(FailureKind::Order, "this process has the other duty")),
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
