// SPDX-License-Identifier: Apache-2.0
//! What manifests and OCSP answers that the host has say against the devices. The host may have none, and any that it makes up
//! counts for nothing: then the guest goes on as if none were there, says so, and is as strict as without.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use blob_protocol::{ANSWER_HEAD, Answer, Kind, MAX_REQUESTS, Name, PORT, Request};
use gpu_verify::{GpuAnchors, MAX_ANSWERS, MAX_RIMS, Objections, Statements, devices, switches};
use types::{GpuEvidence, NoteCode};

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// Asks the host, and refuses devices that NVIDIA speaks against. What is left is for the host to know.
pub(super) fn check(
    gpu: &GpuEvidence,
    host: &mut Host,
    anchors: &GpuAnchors,
    now: u64,
) -> Result<[NoteCode; 2], Failure> {
    let (gpus, switches) = (devices(gpu), switches(gpu));
    let nothing = Statements { gpus: &gpus, switches: &switches, manifests: &[], ocsp: &[], anchors, now };
    let names = nothing.manifest_names().into_iter().take(MAX_RIMS);
    let manifests: Vec<_> = names.filter_map(|name| host.get(Kind::Rim, &name)).collect();
    let statements = Statements { manifests: &manifests, ..nothing };
    let certificates = statements.revocable().into_iter().take(MAX_ANSWERS);
    let ocsp: Vec<_> = certificates.filter_map(|digest| host.get(Kind::Ocsp, &digest.to_string())).collect();
    let Objections { mismatches, revocations, compared, revocation_checked } =
        Statements { ocsp: &ocsp, ..statements }.objections();
    for (reasons, code) in [(revocations, Code::GpuRevoked), (mismatches, Code::GpuMeasurements)] {
        if !reasons.is_empty() {
            let words: Vec<_> = reasons.iter().map(|reason| format!("{} {}", reason.code, reason.field)).collect();
            return Err(code.because()(words.join(", ")));
        }
    }
    Ok([
        if compared { NoteCode::GpuCompared } else { NoteCode::GpuNotCompared },
        if revocation_checked { NoteCode::GpuRevocationChecked } else { NoteCode::GpuRevocationNotChecked },
    ])
}

/// The host's end. Once it has failed it is not asked again.
pub(super) struct Host {
    stream: Option<UnixStream>,
    until: Instant,
    left: usize,
}

impl Host {
    /// By vsock; a host that has nothing to give does not listen.
    pub(super) fn connect() -> Self {
        Self::at(linux_sys::vsock::to_host(PORT, Some(PATIENCE)).ok())
    }

    fn at(stream: Option<UnixStream>) -> Self {
        let now = Instant::now();
        Self { stream, until: now.checked_add(PATIENCE).unwrap_or(now), left: MAX_REQUESTS }
    }

    /// A file, if the host gives one.
    fn get(&mut self, kind: Kind, name: &str) -> Option<Vec<u8>> {
        let request = Request { kind, name: Name::new(name)? };
        self.left = self.left.checked_sub(1)?;
        let stream = self.stream.as_mut()?;
        match exchange(stream, &request, self.until) {
            Ok(found) => found,
            Err(_) => {
                self.stream = None;
                None
            }
        }
    }
}

fn exchange(stream: &mut UnixStream, request: &Request, until: Instant) -> io::Result<Option<Vec<u8>>> {
    write_until(stream, &request.to_bytes(), until)?;
    let mut head = [0; ANSWER_HEAD];
    read_until(stream, &mut head, until)?;
    let answer = Answer::head(request.kind, head).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let Answer::Present(length) = answer else { return Ok(None) };
    let mut bytes = vec![0; length];
    read_until(stream, &mut bytes, until)?;
    Ok(Some(bytes))
}

/// Writes all, however slowly it is taken, until the time is over.
fn write_until(stream: &mut UnixStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        // Within one call the kernel may begin to wait anew for each part that it takes.
        match stream.write(bytes.get(..WRITTEN_AT_ONCE).unwrap_or(bytes)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `bytes`, however slowly they come, until the time is over.
fn read_until(stream: &mut UnixStream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes = bytes.get_mut(read..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Longer than any request.
const WRITTEN_AT_ONCE: usize = 4096;
/// For everything that the host is asked.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
