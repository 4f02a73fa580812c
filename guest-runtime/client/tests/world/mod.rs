// SPDX-License-Identifier: Apache-2.0
//! A guest without a machine: the real attester over a simulated TD, the real API, an engine that plays its part, and
//! a published release. Between API and attester stands a front that can lie for either.
#![allow(dead_code, reason = "each test binary uses its part")]

#[path = "../../../serve/tests/support/engine.rs"]
mod engine;
pub(crate) mod liar;
#[path = "../../../serve/tests/support/raw_client.rs"]
pub(crate) mod raw_client;
mod release_files;

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use appraise::Policy;
use attested_channel::{BootFacts, ReportDataInputs, as_committed, ed25519_spki_sha256};
use attester::{Keys, Renewal, Renewer};
use attester_protocol::{
    Configuration, ControlAnswer, ControlRequest, Request, Response, ServingAnswer, ServingRequest, call, frame,
};
use client::{ClientError, ClientPolicy, PolicyFile, Upstream, Verifier};
use ed25519_dalek::{Signer as _, SigningKey};
use release::{TrustPolicy, VerifiedRelease};
use serve::{DrainLink, Limits, Options, Server, TenantsDocument};
use tdx_sim::{SimulatedPlatform, SimulatedTd};
use tdx_verify::{Collateral, TrustAnchors};
use tee::{DeviceError, QuoteDevice};
use types::{
    Base64, Blake3Digest, ConnectionProof, Device, Document as _, EventName, Evidence, GpuEvidence, GuestConfig, Hex32,
    MachineShape, ModelId, Registers, Role, Sha256Digest, Sha384Digest, Tenants, TimeState,
    config::{self, EngineSettings, Fixed, Free, Network, ServiceLink},
    evidence::AttestedTime,
    shape::ShapeFacts,
    tenants::Tenant,
};

pub(crate) use engine::FakeEngine;

/// Changes something on its way.
pub(crate) type Lie<T> = Box<dyn FnMut(&mut T) + Send>;

/// Changes what serve asks, and what the attester answers.
#[derive(Default)]
pub(crate) struct Lies {
    pub(crate) request: Option<Lie<ServingRequest>>,
    pub(crate) answer: Option<Lie<ServingAnswer>>,
}

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) upstream: Upstream,
    pub(crate) lies: Arc<Mutex<Lies>>,
    pub(crate) engine: FakeEngine,
    pub(crate) pin: Sha256Digest,
    pub(crate) instance_key: Hex32,
    /// Has the guest's TLS key renewed.
    pub(crate) renewer: Renewer,
    platform: Arc<SimulatedPlatform>,
    td: Arc<SimulatedTd>,
    bundle: Vec<u8>,
    trust: TrustPolicy,
    collateral: String,
    /// Init's end: the attester lives as long as it is open.
    _control: UnixStream,
    _process: Option<EngineProcess>,
}

/// An engine that ends with its world.
struct EngineProcess(Child);

impl Drop for EngineProcess {
    fn drop(&mut self) {
        // It may have ended by itself, when its client went.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// A guest that was launched as published.
    pub(crate) async fn start() -> Self {
        Self::launched(|_| ()).await
    }

    /// A guest with other registers than published.
    pub(crate) async fn launched(change: impl FnOnce(&mut Registers)) -> Self {
        Self::with_engine(change, |socket| (FakeEngine::start(socket), None)).await
    }

    /// A guest with an embedding model.
    pub(crate) async fn with_vectors() -> Self {
        Self::with_engine(|_| (), |socket| (FakeEngine::embedder(socket), None)).await
    }

    /// A guest whose model has tenants: their names, and how many requests each may make in a minute. The key of `a` is
    /// `key-of-a`.
    pub(crate) async fn with_tenants(tenants: &[(&str, Option<u32>)]) -> Self {
        let tenant = |(id, limit): &(&str, Option<u32>)| Tenant {
            id: (*id).to_owned(),
            keys: vec![Sha256Digest::of(format!("key-of-{id}").as_bytes())],
            max_tokens: None,
            requests_at_once: None,
            requests_per_minute: *limit,
            tokens_per_minute: None,
        };
        let tenants = tenants.iter().map(tenant).collect();
        let tenants = Tenants { schema: Tenants::SCHEMA.into(), model: model(), tenants };
        let document = TenantsDocument::new(tenants.to_canonical().unwrap().into());
        Self::begin(|_| (), |socket| (FakeEngine::start(socket), None), Some(document)).await
    }

    /// A guest with a real engine and model.
    pub(crate) async fn with_model(engine: &Path, weights: &Path) -> Self {
        let start = |socket: &Path| {
            let mut command = Command::new(engine);
            command.arg("--model").arg(weights).arg("--socket").arg(socket).args(["--context", "512"]);
            let process = EngineProcess(command.spawn().unwrap());
            while !socket.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
            (FakeEngine::absent(), Some(process))
        };
        Self::with_engine(|_| (), start).await
    }

    async fn with_engine(
        change: impl FnOnce(&mut Registers),
        start: impl FnOnce(&Path) -> (FakeEngine, Option<EngineProcess>),
    ) -> Self {
        Self::begin(change, start, None).await
    }

    async fn begin(
        change: impl FnOnce(&mut Registers),
        start: impl FnOnce(&Path) -> (FakeEngine, Option<EngineProcess>),
        tenants: Option<TenantsDocument>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let now = now();
        let platform = Arc::new(SimulatedPlatform::generate(now).unwrap());
        let service = SigningKey::from_bytes(&[8; 32]);
        let pin = ed25519_spki_sha256(&Hex32::new(service.verifying_key().to_bytes()));
        let config = guest_config(pin).to_canonical().unwrap();
        let mut registers = release_files::registers(GuestConfig::mr_config_id(&config));
        change(&mut registers);
        let td = Arc::new(SimulatedTd::new(Arc::clone(&platform), registers));
        let keys = Keys::generate().unwrap();
        let instance_key = keys.instance_key();
        let renewal = Renewal::default();
        let renewer = renewal.renewer();
        let control =
            boot(Arc::clone(&td), keys, renewal, &config, attested_time(&service, now), &path("attester.sock"));
        let lies = Arc::new(Mutex::new(Lies::default()));
        front(&path("front.sock"), path("attester.sock"), Arc::clone(&lies));
        let (engine, process) = start(&path("engine.sock"));
        let options = Options {
            attester: path("front.sock"),
            engine: path("engine.sock"),
            listen: "127.0.0.1:0".parse().unwrap(),
            proxy_protocol: false,
            limits: Limits::default(),
            tenants,
        };
        let host = UnixListener::bind(path("host.sock")).unwrap();
        host.set_nonblocking(true).unwrap();
        let server = Server::start(options).await.unwrap().heeding(DrainLink::new(host.into()).unwrap());
        let upstream = Upstream::new("127.0.0.1", server.address().port());
        tokio::spawn(server.run());
        let (bundle, trust) = release_files::published(now);
        let collateral = platform.collateral(now, None).unwrap().to_json();
        Self {
            directory,
            upstream,
            lies,
            engine,
            pin,
            instance_key,
            renewer,
            platform,
            td,
            bundle,
            trust,
            collateral,
            _control: control,
            _process: process,
        }
    }

    /// Tells the guest to finish, as its host does.
    pub(crate) fn drain(&self) {
        let mut host = UnixStream::connect(self.directory.path().join("host.sock")).unwrap();
        host.write_all(b"drain 1\n").unwrap();
        host.read_exact(&mut [0; 9]).unwrap();
    }

    /// The simulated root, DER.
    pub(crate) fn root(&self) -> &[u8] {
        self.platform.root_der()
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        TrustAnchors::custom(self.platform.root_der().to_vec())
    }

    /// A verifier whose policy names model and service, changed by `change`.
    pub(crate) fn verifier(&self, change: impl FnOnce(&mut ClientPolicy)) -> Arc<Verifier> {
        let mut policy = ClientPolicy {
            appraisal: Policy {
                models: Some(vec![model()]),
                service_pins: Some(vec![self.pin]),
                ..Policy::any_release()
            },
            releases: vec![VerifiedRelease::verify(&self.bundle, &self.trust, now()).unwrap()],
            collateral: vec![Collateral::from_json(self.collateral.as_bytes()).unwrap()],
            gpu_rims: Default::default(),
            gpu_ocsp: Vec::new(),
        };
        change(&mut policy);
        Arc::new(Verifier::new(policy, self.anchors()))
    }

    /// The same policy as files.
    pub(crate) fn write_policy(&self) -> PathBuf {
        let path = |name: &str| self.directory.path().join(name);
        std::fs::write(path("trust.json"), self.trust.to_canonical().unwrap()).unwrap();
        std::fs::write(path("release.json"), &self.bundle).unwrap();
        std::fs::write(path("collateral.json"), &self.collateral).unwrap();
        let file = PolicyFile {
            schema: PolicyFile::SCHEMA.into(),
            appraisal: Policy {
                models: Some(vec![model()]),
                service_pins: Some(vec![self.pin]),
                ..Policy::any_release()
            },
            release_trust: "trust.json".into(),
            release_bundles: vec!["release.json".into()],
            collateral: vec!["collateral.json".into()],
            gpu_rims: Vec::new(),
            gpu_ocsp: Vec::new(),
        };
        std::fs::write(path("policy.json"), serde_json::to_vec_pretty(&file).unwrap()).unwrap();
        path("policy.json")
    }

    pub(crate) fn lie_in_answers(&self, lie: impl FnMut(&mut ServingAnswer) + Send + 'static) {
        self.lies.lock().unwrap().answer = Some(Box::new(lie));
    }

    /// From now on each proof says what `lie` makes of it, under a quote that covers just that: as if the attester itself
    /// were dishonest.
    pub(crate) fn lie_in_proofs(&self, evidence: &Evidence, lie: impl Fn(&mut ConnectionProof) + Send + 'static) {
        let (td, evidence) = (Arc::clone(&self.td), evidence.clone());
        self.lie_in_answers(move |answer| {
            if let ServingAnswer::Proof { proof } = answer {
                lie(proof);
                let said = ReportDataInputs::of(&as_committed(evidence.clone(), proof)).unwrap();
                proof.quote = Base64::new(td.quote(said.report_data()).unwrap()).unwrap();
            }
        });
    }

    pub(crate) fn lie_in_requests(&self, lie: impl FnMut(&mut ServingRequest) + Send + 'static) {
        self.lies.lock().unwrap().request = Some(Box::new(lie));
    }
}

/// The codes of a refusal; empty when nothing was refused.
pub(crate) fn codes<T>(result: Result<T, ClientError>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(error) => error.reasons().into_iter().map(|reason| reason.code).collect(),
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn model() -> ModelId {
    ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap()
}

pub(crate) fn shape() -> MachineShape {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    MachineShape::new(ShapeFacts {
        vcpus: 2,
        memory_mib: 1024,
        physical_bits: 46,
        qemu: "10.1".parse().unwrap(),
        devices,
    })
    .unwrap()
}

fn guest_config(pin: Sha256Digest) -> GuestConfig {
    GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: config::Policy(shape()),
        model: config::Policy(model()),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: config::Policy(pin) },
        network: Network {
            address: Free([10, 0, 2, 15].into()),
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
    }
}

fn attested_time(service: &SigningKey, now: u64) -> TimeState {
    let (nonce, unix) = (Hex32::new([9; 32]), now - 5);
    let signature = service.sign(&AttestedTime::signed_bytes(&nonce, unix)).to_bytes().to_vec();
    let service_key = Hex32::new(service.verifying_key().to_bytes());
    let attested = AttestedTime { unix, nonce, service_key, signature: Base64::new(signature).unwrap() };
    TimeState { floor: now - 1000, attested: Some(attested) }
}

struct SimulatedDevice(Arc<SimulatedTd>);

impl QuoteDevice for SimulatedDevice {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        Ok(self.0.mr_config_id())
    }

    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError> {
        self.0.extend(3, digest).map_err(|_| DeviceError::Answer("extend"))
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        self.0.quote(*report_data).map_err(|_| DeviceError::Answer("quote"))
    }
}

/// Drives the attester through a whole boot, as init does.
fn boot(
    td: Arc<SimulatedTd>,
    keys: Keys,
    renewal: Renewal,
    config: &[u8],
    time: TimeState,
    socket: &Path,
) -> UnixStream {
    let (mut control, theirs) = UnixStream::pair().unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let (spki_sha256, instance_key) = (keys.spki_sha256(), keys.instance_key());
    std::thread::spawn(move || attester::serve_renewing(SimulatedDevice(td), keys, theirs, listener, renewal));
    let gpu = GpuEvidence::NONE;
    let mut ask = |request: ControlRequest| {
        call::<_, _, ControlAnswer>(&mut control, 1, &request).unwrap();
    };
    let guest_config = Base64::new(config.to_vec()).unwrap();
    ask(ControlRequest::Configure(Box::new(Configuration {
        guest_config,
        time: time.clone(),
        gpu: gpu.clone(),
        firmware_log: None,
    })));
    let model = model();
    let facts = BootFacts {
        config: GuestConfig::mr_config_id(config),
        time: &time,
        gpu: &gpu,
        model: &model,
        spki_sha256,
        instance_key,
    };
    for name in EventName::ALL {
        if name == EventName::KeysClosed {
            ask(ControlRequest::Seal {});
        }
        ask(ControlRequest::Extend { event: facts.event(name).unwrap() });
    }
    control
}

/// Listens for serve and passes its requests on, with lies where they are set.
fn front(path: &Path, attester: PathBuf, lies: Arc<Mutex<Lies>>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (attester, lies) = (attester.clone(), Arc::clone(&lies));
            std::thread::spawn(move || relay(stream, &attester, lies));
        }
    });
}

fn relay(mut serve: UnixStream, attester: &Path, lies: Arc<Mutex<Lies>>) {
    let mut attester = UnixStream::connect(attester).unwrap();
    let (mut answers, mut asker) = (attester.try_clone().unwrap(), serve.try_clone().unwrap());
    let told = Arc::clone(&lies);
    std::thread::spawn(move || {
        while let Ok(Some(mut response)) = frame::read::<Response<ServingAnswer>>(&mut answers) {
            if let (Some(lie), attester_protocol::Outcome::Done(answer)) =
                (&mut told.lock().unwrap().answer, &mut response.outcome)
            {
                lie(answer);
            }
            if frame::write(&mut asker, &response).is_err() {
                break;
            }
        }
        let _ = asker.shutdown(Shutdown::Both);
    });
    while let Ok(Some(mut request)) = frame::read::<Request<ServingRequest>>(&mut serve) {
        if let Some(lie) = &mut lies.lock().unwrap().request {
            lie(&mut request.body);
        }
        if frame::write(&mut attester, &request).is_err() {
            break;
        }
    }
    let _ = attester.shutdown(Shutdown::Both);
}
