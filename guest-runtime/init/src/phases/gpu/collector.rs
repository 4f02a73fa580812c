// SPDX-License-Identifier: Apache-2.0
//! The processes that ask the driver's libraries: one for evidence, and after the verdict one that lets the GPUs work. The driver
//! wants an administrator for that; the first, which reads what devices say, is none.

use std::{
    ffi::OsString,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use attested_channel::gpu_nonce;
use gpu_protocol::{CallError, FailureKind, SET_READY, collect, set_ready};
use linux_sys::{
    SysError,
    landlock::Reach,
    process::{End, Program, start, start_administrator, wait_for},
};
use types::{GpuEvidence, Hex32, Role};

use super::judge::Expected;
use crate::boot::{Code, Fails as _};
use crate::{boot::Failure, gpus, users};

/// Evidence of all devices for a nonce of this boot's key.
pub(super) fn evidence(
    expected: Expected,
    instance_key: &Hex32,
    inherits_stderr: bool,
) -> Result<GpuEvidence, Failure> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(Code::NoRandomness.because())?;
    let mut process = Process::start(start, &[], inherits_stderr)?;
    let evidence = ask(&mut process.socket, expected, instance_key, Hex32::new(random))?;
    process.end()?;
    Ok(evidence)
}

/// Lets the GPUs work.
pub(super) fn let_work(inherits_stderr: bool) -> Result<(), Failure> {
    let mut process = Process::start(start_administrator, &[SET_READY], inherits_stderr)?;
    set_ready(&mut process.socket).map_err(failure)?;
    process.end()
}

/// A running process, and the socket to it.
struct Process {
    socket: UnixStream,
    pid: i32,
}

impl Process {
    fn start(
        start: fn(Program<'_>) -> Result<i32, SysError>,
        arguments: &[&str],
        inherits_stderr: bool,
    ) -> Result<Self, Failure> {
        let (socket, theirs) = UnixStream::pair().map_err(Code::GpuDriverFailed.because())?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(Code::GpuDriverFailed.because())?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(Code::GpuDriverFailed.because())?;
        let program = Program {
            path: PROGRAM,
            arguments: arguments.iter().map(OsString::from).collect(),
            uid: users::GPU,
            gid: users::GPU,
            groups: Vec::new(),
            descriptors: vec![OwnedFd::from(theirs)],
            without_network: true,
            locks_memory: false,
            reach: Reach { paths: gpus::reach(), tcp_listen: None },
            // It confines itself once its libraries are loaded.
            filter: None,
            inherits_stderr,
        };
        let pid = start(program).map_err(Code::GpuDriverFailed.because())?;
        Ok(Self { socket, pid })
    }

    /// It ends when its socket is closed.
    fn end(self) -> Result<(), Failure> {
        let Self { socket, pid } = self;
        drop(socket);
        match wait_for(pid, PATIENCE).map_err(Code::GpuDriverFailed.because())? {
            Some(End::Exit(0)) => Ok(()),
            ended => Err(Code::GpuDriverFailed.because()(format_args!("the collector: {ended:?}"))),
        }
    }
}

fn ask(
    socket: &mut UnixStream,
    expected: Expected,
    instance_key: &Hex32,
    random: Hex32,
) -> Result<GpuEvidence, Failure> {
    let Expected { gpus, switches } = expected;
    // Evidence is collected once, before there is any HPKE key.
    let nonce = gpu_nonce(Role::Inference, instance_key, &Hex32::default(), EPOCH, &random);
    let collected = collect(socket, Hex32::new(*nonce.as_bytes()), gpus, switches).map_err(failure)?;
    collected.into_evidence(EPOCH, random, gpus, switches).map_err(Code::GpuEvidenceFailed.because())
}

fn failure(error: CallError) -> Failure {
    let code = match &error {
        CallError::Failed(failed) => match failed.kind {
            FailureKind::Driver | FailureKind::Order => Code::GpuDriverFailed,
            FailureKind::Count => Code::GpuCountMismatch,
            FailureKind::Evidence => Code::GpuEvidenceFailed,
            FailureKind::Fabric => Code::GpuFabricMissing,
        },
        CallError::Frame(_) | CallError::Unexpected => Code::GpuDriverFailed,
    };
    code.because()(error)
}

const PROGRAM: &str = "/gpu/usr/bin/gpu-collector";
/// A boot collects once.
const EPOCH: u64 = 1;
/// A report takes about a second, and there may be sixteen GPUs; the first call starts their firmware.
const PATIENCE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::thread;

    use attester_protocol::frame;
    use gpu_protocol::{Collected, GpuAnswer, GpuFailure, GpuRequest};
    use gpu_verify::bound_nonce;
    use types::{Base64, GpuDriver, GpuReport};

    use super::*;

    const KEY: Hex32 = Hex32::new([5; 32]);

    /// Asks a collector that answers by `answer` for two GPUs.
    fn asked(answer: impl FnOnce(GpuRequest) -> GpuAnswer + Send + 'static) -> Result<GpuEvidence, Code> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let request = frame::read(&mut theirs).unwrap().unwrap();
            frame::write(&mut theirs, &answer(request)).unwrap();
        });
        let expected = Expected { gpus: 2, switches: 0 };
        ask(&mut ours, expected, &KEY, Hex32::new([1; 32])).map_err(|failure| failure.code)
    }

    fn answer(nonce: Hex32, uuids: &[&str]) -> GpuAnswer {
        let report = |uuid: &&str| GpuReport {
            uuid: (*uuid).to_owned(),
            report: Base64::new(nonce.as_bytes().to_vec()).unwrap(),
            chain: Base64::new(vec![1]).unwrap(),
        };
        let driver = GpuDriver { version: "550".into(), confidential: true, dev_tools: false, protected_pcie: false };
        let gpus = uuids.iter().map(report).collect();
        GpuAnswer::Collected(Box::new(Collected { gpus, switches: Vec::new(), driver }))
    }

    #[test]
    fn devices_are_asked_with_the_nonce_that_verifiers_expect() {
        let evidence = asked(|request| {
            let GpuRequest::Collect { nonce, gpus: 2, switches: 0 } = request else { panic!("{request:?}") };
            answer(nonce, &["GPU-b", "GPU-a"])
        });
        let evidence = evidence.unwrap();
        let nonce = bound_nonce(Role::Inference, &KEY, &evidence).unwrap();
        assert_eq!(evidence.reports[0].report.as_slice(), nonce);
        assert_eq!(evidence.reports[0].uuid, "GPU-a");
    }

    #[test]
    fn every_failure_has_its_code() {
        for (kind, code) in [
            (FailureKind::Driver, Code::GpuDriverFailed),
            (FailureKind::Order, Code::GpuDriverFailed),
            (FailureKind::Count, Code::GpuCountMismatch),
            (FailureKind::Evidence, Code::GpuEvidenceFailed),
            (FailureKind::Fabric, Code::GpuFabricMissing),
        ] {
            assert_eq!(asked(move |_| GpuAnswer::Failed(GpuFailure::new(kind, "x"))), Err(code));
        }
        assert_eq!(asked(|_| GpuAnswer::Ready {}), Err(Code::GpuDriverFailed));
        assert_eq!(asked(|_| answer(Hex32::default(), &["GPU-a"])), Err(Code::GpuEvidenceFailed));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let ended = ask(&mut ours, Expected { gpus: 1, switches: 0 }, &KEY, Hex32::default());
        assert_eq!(ended.unwrap_err().code, Code::GpuDriverFailed);
    }
}
