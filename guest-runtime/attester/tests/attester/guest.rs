// SPDX-License-Identifier: Apache-2.0
//! A guest without a guest: the attester in a thread, its peers played by the test.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use attested_channel::BootFacts;
use attester::{AttesterError, Keys, Renewal, Renewer};
use attester_protocol::{
    CallError, Configuration, ControlAnswer, ControlRequest, Failure, Outcome, Request, Response, ServingAnswer,
    ServingRequest, call, frame,
};
use tee::{DeviceError, QuoteDevice};
use types::{
    Base64, Blake3Digest, Device, Document as _, EventName, GpuEvidence, GuestConfig, Hex32, MachineShape, ModelId,
    Role, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    shape::ShapeFacts,
};

/// What the device saw, and a gate that holds quotes back.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) rtmr3: Vec<Sha384Digest>,
    gate: Option<(Sender<()>, Receiver<()>)>,
}

struct FakeDevice(Arc<Mutex<Record>>);

impl QuoteDevice for FakeDevice {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        Ok(GuestConfig::mr_config_id(&config_bytes()))
    }

    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError> {
        self.0.lock().unwrap().rtmr3.push(*digest);
        Ok(())
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        let gate = self.0.lock().unwrap().gate.take();
        if let Some((started, go)) = gate {
            started.send(()).unwrap();
            go.recv().unwrap();
        }
        Ok(quote(report_data))
    }
}

/// A quote of version 4 over this REPORTDATA, with registers of one byte and no signature.
pub(crate) fn quote(report_data: &[u8; 64]) -> Vec<u8> {
    let mut bytes = vec![6; 48 + 584 - 64];
    bytes[..8].copy_from_slice(&[4, 0, 2, 0, 0x81, 0, 0, 0]);
    bytes.extend_from_slice(report_data);
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes
}

pub(crate) struct Guest {
    control: UnixStream,
    socket: tempfile::TempDir,
    pub(crate) record: Arc<Mutex<Record>>,
    pub(crate) spki_sha256: Sha256Digest,
    pub(crate) instance_key: Hex32,
    pub(crate) tls_key: Hex32,
    pub(crate) renewer: Renewer,
    thread: JoinHandle<Result<(), AttesterError>>,
}

impl Guest {
    pub(crate) fn start() -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        let socket = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket.path().join("s")).unwrap();
        let record = Arc::new(Mutex::new(Record::default()));
        let device = FakeDevice(Arc::clone(&record));
        let keys = Keys::generate().unwrap();
        let renewal = Renewal::default();
        let renewer = renewal.renewer();
        let (spki_sha256, instance_key, tls_key) = (keys.spki_sha256(), keys.instance_key(), keys.tls_key());
        let thread = thread::spawn(move || attester::serve_renewing(device, keys, theirs, listener, renewal));
        Self { control, socket, record, spki_sha256, instance_key, tls_key, renewer, thread }
    }

    /// A guest whose boot went through to the event `serve`.
    pub(crate) fn serving() -> Self {
        let mut guest = Self::start();
        guest.boot_until(EventName::Serve);
        guest
    }

    pub(crate) fn boot_until(&mut self, last: EventName) {
        self.configure().unwrap();
        for name in EventName::ALL.into_iter().take_while(|name| name.number() <= last.number()) {
            if name == EventName::KeysClosed {
                self.ask(ControlRequest::Seal {}).unwrap();
            }
            self.extend(name).unwrap();
        }
    }

    pub(crate) fn ask(&mut self, request: ControlRequest) -> Result<ControlAnswer, Failure> {
        refused(call(&mut self.control, 1, &request))
    }

    pub(crate) fn configure(&mut self) -> Result<ControlAnswer, Failure> {
        self.ask(ControlRequest::Configure(Box::new(configuration())))
    }

    pub(crate) fn extend(&mut self, name: EventName) -> Result<ControlAnswer, Failure> {
        let event = self.event(name);
        self.ask(ControlRequest::Extend { event })
    }

    pub(crate) fn event(&self, name: EventName) -> RuntimeEvent {
        self.facts(&time(), &gpu(), &model()).event(name).unwrap()
    }

    pub(crate) fn facts<'a>(&self, time: &'a TimeState, gpu: &'a GpuEvidence, model: &'a ModelId) -> BootFacts<'a> {
        BootFacts {
            config: GuestConfig::mr_config_id(&config_bytes()),
            time,
            gpu,
            model,
            spki_sha256: self.spki_sha256,
            instance_key: self.instance_key,
        }
    }

    /// The next quote says on the first channel that it was begun, and waits for the second.
    pub(crate) fn hold_next_quote(&self) -> (Receiver<()>, Sender<()>) {
        let (started, has_started) = channel();
        let (go, may_go) = channel();
        self.record.lock().unwrap().gate = Some((started, may_go));
        (has_started, go)
    }

    pub(crate) fn connect(&self) -> Serve {
        Serve(UnixStream::connect(self.socket.path().join("s")).unwrap())
    }

    /// Closes the control socket, as the end of init does.
    pub(crate) fn end(self) -> Result<(), AttesterError> {
        drop(self.control);
        self.thread.join().unwrap()
    }
}

/// Serve's end of one connection.
pub(crate) struct Serve(UnixStream);

impl Serve {
    pub(crate) fn ask(&mut self, request: &ServingRequest) -> Result<ServingAnswer, Failure> {
        refused(call(&mut self.0, 5, request))
    }

    pub(crate) fn send(&mut self, id: u64, body: &ServingRequest) {
        frame::write(&mut self.0, &Request { id, body }).unwrap();
    }

    pub(crate) fn receive(&mut self) -> (u64, Result<ServingAnswer, Failure>) {
        let Response { id, outcome } = frame::read(&mut self.0).unwrap().unwrap();
        match outcome {
            Outcome::Done(answer) => (id, Ok(answer)),
            Outcome::Failed(failure) => (id, Err(failure)),
        }
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(frame::read::<Response<ServingAnswer>>(&mut self.0), Ok(None) | Err(frame::FrameError::Io(_)))
    }
}

pub(crate) fn configuration() -> Configuration {
    Configuration { guest_config: Base64::new(config_bytes()).unwrap(), time: time(), gpu: gpu(), firmware_log: None }
}

pub(crate) fn time() -> TimeState {
    TimeState { floor: 1_767_225_600, attested: None }
}

pub(crate) fn gpu() -> GpuEvidence {
    GpuEvidence::NONE
}

pub(crate) fn model() -> ModelId {
    ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()
}

pub(crate) fn config_bytes() -> Vec<u8> {
    let shape = ShapeFacts {
        vcpus: 2,
        memory_mib: 1024,
        physical_bits: 40,
        qemu: "7.2".parse().unwrap(),
        devices: vec![Device::ConfigDisk, Device::Vsock],
    };
    let config = GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: Policy(MachineShape::new(shape).unwrap()),
        model: Policy(model()),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(Sha256Digest::of(b"k")) },
        network: Network {
            address: Free(Ipv4Addr::new(10, 0, 2, 15)),
            prefix: Free(24),
            port: Free(8443),
            client_address: Free::default(),
        },
        engine: EngineSettings {
            context_tokens: Free(512),
            threads_decode: Free(1),
            threads_prefill: Free(2),
            prompt_rows: None,
        },
        gpus: Free(0),
    };
    config.to_canonical().unwrap()
}

fn refused<A>(result: Result<A, CallError>) -> Result<A, Failure> {
    match result {
        Ok(answer) => Ok(answer),
        Err(CallError::Refused(failure)) => Err(failure),
        Err(other) => panic!("{other}"),
    }
}
