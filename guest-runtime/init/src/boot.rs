// SPDX-License-Identifier: Apache-2.0
//! What a boot carries from phase to phase, and how a phase is run, measured and reported.

use std::time::{Duration, Instant};

use attested_channel::BootFacts;
use linux_sys::{process::poll_any, usage};
use types::{EventName, GpuEvidence, ModelId, NoteCode, RuntimeEvent, Sha384Digest, TimeState};

use crate::{
    attester::Attester,
    console::{Allowances, Console},
    service::Service,
    status::{Line, StatusLink},
};

pub(crate) use types::HaltCode as Code;

/// A phase failed. The detail is for the console of development images alone.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) detail: String,
}

/// Makes failures of codes.
pub(crate) trait Fails {
    /// For `map_err`.
    fn because<E: std::fmt::Display>(self) -> impl FnOnce(E) -> Failure;

    /// Without a detail.
    fn alone(self) -> Failure;
}

impl Fails for Code {
    fn because<E: std::fmt::Display>(self) -> impl FnOnce(E) -> Failure {
        move |error| Failure { code: self, detail: error.to_string() }
    }

    fn alone(self) -> Failure {
        Failure { code: self, detail: String::new() }
    }
}

/// The guest must end.
#[derive(Debug)]
pub(crate) struct Halt {
    pub(crate) phase: EventName,
    pub(crate) failure: Failure,
}

/// State of the boot.
pub(crate) struct Boot {
    started: Instant,
    status: StatusLink,
    pub(crate) console: Console,
    pub(crate) allowances: Allowances,
    pub(crate) attester: Option<Attester>,
    pub(crate) facts: Option<Facts>,
    /// The connection to the attestation service, from the phase `time` to the phase `keys`.
    pub(crate) service: Option<Service>,
    /// Events of phases that ended before the attester was there to extend them.
    pending: Vec<EventName>,
    pub(crate) children: Children,
}

/// What events and evidence say.
pub(crate) struct Facts {
    /// The configuration's bytes.
    pub(crate) config: Vec<u8>,
    pub(crate) config_digest: Sha384Digest,
    pub(crate) model: ModelId,
    pub(crate) time: TimeState,
    pub(crate) gpu: GpuEvidence,
}

/// What runs, by process id, and the code for its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Vec<(i32, Code)>);

impl Children {
    /// From now on the end of this process is the end of the guest, with this code.
    pub(crate) fn watch(&mut self, pid: i32, code: Code) {
        self.0.push((pid, code));
    }

    /// The code for the end of a process; `None` for an orphan that PID 1 only reaps.
    pub(crate) fn ended(&self, pid: i32) -> Option<Code> {
        self.0.iter().find(|(child, _)| *child == pid).map(|(_, code)| *code)
    }
}

impl Boot {
    pub(crate) fn begin() -> Self {
        Self {
            started: Instant::now(),
            status: StatusLink::default(),
            console: Console::default(),
            allowances: Allowances::default(),
            attester: None,
            facts: None,
            service: None,
            pending: Vec::new(),
            children: Children::default(),
        }
    }

    /// Runs a phase, extends its event, reports it.
    pub(crate) fn phase<T>(
        &mut self,
        phase: EventName,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Halt> {
        let before = usage::processor_time();
        let value = work(self).map_err(|failure| Halt { phase, failure })?;
        self.all_run().map_err(|failure| Halt { phase, failure })?;
        self.measure(phase)?;
        self.report(phase, before);
        Ok(value)
    }

    /// The end of a watched process ends the guest with the phase that is on. Without children there is nothing to say.
    fn all_run(&self) -> Result<(), Failure> {
        while let Ok(Some(pid)) = poll_any() {
            if let Some(code) = self.children.ended(pid) {
                return Err(code.alone());
            }
        }
        Ok(())
    }

    /// Runs a phase whose event has been extended before it, and reports it.
    pub(crate) fn phase_after_event<T>(
        &mut self,
        phase: EventName,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Halt> {
        let before = usage::processor_time();
        let value = work(self).map_err(|failure| Halt { phase, failure })?;
        self.report(phase, before);
        Ok(value)
    }

    /// Extends RTMR3 with a phase's event, and before it with those that waited for the attester.
    pub(crate) fn measure(&mut self, phase: EventName) -> Result<(), Halt> {
        self.pending.push(phase);
        self.extend_pending().map_err(|failure| Halt { phase, failure })
    }

    /// The attester that has been started.
    pub(crate) fn attester(&mut self) -> Result<&mut Attester, Failure> {
        self.attester.as_mut().ok_or(Code::AttesterNotStarted.alone())
    }

    /// Tells the host, once, why the guest ends.
    pub(crate) fn halt(&mut self, halt: &Halt) {
        let Halt { phase, failure: Failure { code, detail } } = halt;
        self.console.say(format_args!("halt in {phase}: {} {detail}", code.name()));
        self.status.send(Line::Halted(*phase, *code));
        self.status.finish();
    }

    pub(crate) fn report_resident(&mut self) {
        self.status.send(Line::Resident(usage::resident_kib()));
    }

    /// Tells the host something of a boot that goes on.
    pub(crate) fn note(&mut self, phase: EventName, note: NoteCode) {
        self.console.say(format_args!("{phase}: {}", note.name()));
        self.status.send(Line::Note(phase, note));
    }

    fn report(&mut self, phase: EventName, before: Duration) {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let spent = usage::processor_time().saturating_sub(before).as_micros();
        self.console.say(format_args!("{phase} ended at {milliseconds} ms"));
        self.status.send(Line::Ended(phase, milliseconds));
        self.status.send(Line::Processor(phase, u64::try_from(spent).unwrap_or(u64::MAX)));
    }

    fn extend_pending(&mut self) -> Result<(), Failure> {
        let Some(attester) = self.attester.as_mut() else { return Ok(()) };
        for name in std::mem::take(&mut self.pending) {
            let event = event(name, self.facts.as_ref(), attester)?;
            attester.extend(event)?;
        }
        Ok(())
    }
}

/// Before the configuration is known there are only events without payload.
fn event(name: EventName, facts: Option<&Facts>, attester: &Attester) -> Result<RuntimeEvent, Failure> {
    let Some(Facts { config: _, config_digest, model, time, gpu }) = facts else {
        return RuntimeEvent::new(name, &[]).ok_or(Code::AttesterRefused.alone());
    };
    let facts = BootFacts {
        config: *config_digest,
        time,
        gpu,
        model,
        spki_sha256: attester.spki_sha256,
        instance_key: attester.instance_key,
    };
    facts.event(name).map_err(Code::AttesterRefused.because())
}

/// GPU evidence of a guest without a GPU.
pub(crate) fn no_gpu() -> GpuEvidence {
    GpuEvidence::NONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_child_has_its_code_and_orphans_have_none() {
        let mut children = Children::default();
        for (pid, code) in [(10, Code::AttesterEnded), (11, Code::EngineEnded), (12, Code::ServeEnded)] {
            children.watch(pid, code);
        }
        assert_eq!(children.ended(10), Some(Code::AttesterEnded));
        assert_eq!(children.ended(11), Some(Code::EngineEnded));
        assert_eq!(children.ended(12), Some(Code::ServeEnded));
        assert_eq!(children.ended(13), None);
    }
}
