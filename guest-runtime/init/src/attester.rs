// SPDX-License-Identifier: Apache-2.0
//! The attester's process and its control socket.

use std::{
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use attester_protocol::{CallError, Configuration, ControlAnswer, ControlRequest, SERVING_PATH, call};
use linux_sys::{mounts, process::start};
use types::{Hex32, RuntimeEvent, Sha256Digest, Sha384Digest};

use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Children, Failure},
    programs, users,
};

/// The attester, asked over its control socket.
pub(crate) struct Attester {
    control: UnixStream,
    requests: u64,
    pub(crate) mr_config_id: Sha384Digest,
    pub(crate) spki_sha256: Sha256Digest,
    pub(crate) instance_key: Hex32,
}

impl Attester {
    /// Starts the process with its two sockets and asks who it is.
    pub(crate) fn start(children: &mut Children, inherits_stderr: bool) -> Result<Self, Failure> {
        tee::tdx::hand_over(users::ATTESTER, users::ATTESTER).map_err(Code::AttesterNotStarted.because())?;
        let (control, theirs) = UnixStream::pair().map_err(Code::AttesterNotStarted.because())?;
        let listener = UnixListener::bind(SERVING_PATH).map_err(Code::AttesterNotStarted.because())?;
        mounts::give(Path::new(SERVING_PATH), 0, users::SERVE, 0o660).map_err(Code::AttesterNotStarted.because())?;
        let program = programs::attester(vec![OwnedFd::from(theirs), OwnedFd::from(listener)], inherits_stderr);
        let attester = start(program).map_err(Code::AttesterNotStarted.because())?;
        children.watch(attester, Code::AttesterEnded);
        Self::meet(control)
    }

    fn meet(control: UnixStream) -> Result<Self, Failure> {
        control.set_read_timeout(Some(PATIENCE)).map_err(Code::AttesterFailed.because())?;
        control.set_write_timeout(Some(PATIENCE)).map_err(Code::AttesterFailed.because())?;
        let mut control = control;
        match ask(&mut control, 0, &ControlRequest::Report {})? {
            ControlAnswer::Report { mr_config_id, spki_sha256, instance_key } => {
                Ok(Self { control, requests: 0, mr_config_id, spki_sha256, instance_key })
            }
            _ => Err(Code::AttesterFailed.alone()),
        }
    }

    pub(crate) fn extend(&mut self, event: RuntimeEvent) -> Result<(), Failure> {
        self.expect(&ControlRequest::Extend { event }, &ControlAnswer::Extended {})
    }

    pub(crate) fn configure(&mut self, configuration: Configuration) -> Result<(), Failure> {
        self.expect(&ControlRequest::Configure(Box::new(configuration)), &ControlAnswer::Configured {})
    }

    /// From now on the attester makes no key-release evidence.
    pub(crate) fn seal(&mut self) -> Result<(), Failure> {
        self.expect(&ControlRequest::Seal {}, &ControlAnswer::Sealed {})
    }

    /// The canonical evidence for one key release.
    pub(crate) fn key_release_evidence(
        &mut self,
        challenge: Hex32,
        binding: Hex32,
        hpke_key: Hex32,
    ) -> Result<Vec<u8>, Failure> {
        match self.ask(&ControlRequest::KeyReleaseEvidence { challenge, binding, hpke_key })? {
            ControlAnswer::KeyReleaseEvidence { evidence } => Ok(evidence.into_vec()),
            _ => Err(Code::AttesterFailed.alone()),
        }
    }

    fn expect(&mut self, request: &ControlRequest, expected: &ControlAnswer) -> Result<(), Failure> {
        if self.ask(request)? == *expected { Ok(()) } else { Err(Code::AttesterFailed.alone()) }
    }

    fn ask(&mut self, request: &ControlRequest) -> Result<ControlAnswer, Failure> {
        self.requests = self.requests.wrapping_add(1);
        ask(&mut self.control, self.requests, request)
    }
}

fn ask(control: &mut UnixStream, id: u64, request: &ControlRequest) -> Result<ControlAnswer, Failure> {
    call(control, id, request).map_err(|error: CallError| {
        let code = if matches!(error, CallError::Refused(_)) { Code::AttesterRefused } else { Code::AttesterFailed };
        code.because()(error)
    })
}

/// A quote takes 40 ms, and seconds where many guests ask at once.
const PATIENCE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::thread;

    use attester_protocol::{Failure as Refused, Outcome, Request, Response, frame};
    use types::EventName;

    use super::*;

    fn play(outcomes: Vec<Outcome<ControlAnswer>>) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            for outcome in outcomes {
                let Request { id, .. } = frame::read::<Request<ControlRequest>>(&mut theirs).unwrap().unwrap();
                frame::write(&mut theirs, &Response { id, outcome }).unwrap();
            }
        });
        ours
    }

    fn report() -> Outcome<ControlAnswer> {
        Outcome::Done(ControlAnswer::Report {
            mr_config_id: Sha384Digest::of(b"c"),
            spki_sha256: Sha256Digest::of(b"k"),
            instance_key: Hex32::new([1; 32]),
        })
    }

    #[test]
    fn refusals_and_failures_have_their_codes() {
        let event = || RuntimeEvent::new(EventName::Mounts, &[]).unwrap();
        let mut attester = Attester::meet(play(vec![
            report(),
            Outcome::Done(ControlAnswer::Extended {}),
            Outcome::Failed(Refused::EventOrder),
            Outcome::Done(ControlAnswer::Sealed {}),
        ]))
        .unwrap();
        assert_eq!(attester.mr_config_id, Sha384Digest::of(b"c"));
        attester.extend(event()).unwrap();
        assert_eq!(attester.extend(event()).unwrap_err().code, Code::AttesterRefused);
        // An answer to another question, and then none.
        assert_eq!(attester.extend(event()).unwrap_err().code, Code::AttesterFailed);
        assert_eq!(attester.seal().unwrap_err().code, Code::AttesterFailed);
    }
}
