// SPDX-License-Identifier: Apache-2.0
//! A service with a store, a published release and a simulated platform, and guests that ask it for keys.
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use attestation_service::{Identity, Limits, Service, listen};
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, expected_events};
use key_release::{ModelKey, ReleaseKeyPair, UnwrapErr};
use release::{Statement, TrustPolicy, Validity, VerifiedRelease};
use release_client::{Challenge, ClientError, Released, ServiceConnection};
use store::{InitOptions, OpenError, Store};
use tdx_sim::{SimulatedPlatform, SimulatedTd};
use tdx_verify::{Collateral, TrustAnchors};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use types::{
    Base64, Blake3Digest, Device, Document as _, EventName, Evidence, Freshness, FreshnessKind, GpuEvidence,
    GuestConfig, Hex32, MachineShape, ModelId, QemuVersion, Registers, Role, RuntimeEvent, Sha256Digest, Sha384Digest,
    TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    shape::ShapeFacts,
};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const KEY: [u8; 32] = [0x42; 32];

/// Everything beside the guests.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) platform: Arc<SimulatedPlatform>,
    pub(crate) pin: Sha256Digest,
    pub(crate) release: Sha256Digest,
    pub(crate) service: Option<Running>,
    pub(crate) limits: Limits,
}

/// A service that listens on loopback.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) service: Arc<Service>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A guest at the moment of key release.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) td: SimulatedTd,
    pub(crate) config: Vec<u8>,
    pub(crate) events: Vec<RuntimeEvent>,
    pub(crate) time: TimeState,
}

impl World {
    /// Makes the store and starts the service.
    pub(crate) async fn start() -> Self {
        let mut world = Self::stopped(release::Hardware::Simulated);
        world.launch().await;
        world
    }

    pub(crate) fn stopped(hardware: release::Hardware) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        Store::init(&path, &InitOptions { audit_origin: "test.invalid/audit".into(), kek: None }).unwrap();
        let store = Store::open(&path).unwrap();
        let identity = Identity::generate().unwrap();
        identity.save(&store).unwrap();
        store.import_key(&model(), 7, &ModelKey::new(KEY)).unwrap();
        let (bundle, trust) = published(hardware);
        let verified = VerifiedRelease::verify(&bundle, &trust, NOW).unwrap();
        store.set_policy(&format!("release-trust:{}", verified.digest()), &trust.to_canonical().unwrap()).unwrap();
        store.import_release(&bundle, &verified).unwrap();
        Self {
            dir,
            clock: Arc::new(AtomicU64::new(NOW)),
            platform: Arc::new(SimulatedPlatform::generate(NOW).unwrap()),
            pin: identity.spki_sha256(),
            release: *verified.digest(),
            service: None,
            limits: Limits::default(),
        }
    }

    /// Starts (or starts again) the service over the store.
    pub(crate) async fn launch(&mut self) {
        if let Some(running) = self.service.take() {
            running.end().await;
        }
        let collateral = self.platform.collateral(NOW, None).unwrap().to_json();
        let collateral = vec![Collateral::from_json(collateral.as_bytes()).unwrap()];
        let anchors = TrustAnchors::custom(self.platform.root_der().to_vec());
        let clock = Arc::clone(&self.clock);
        let clock = Arc::new(move || clock.load(Ordering::SeqCst));
        let store = self.open_store().await;
        let ticks = Arc::clone(&self.clock);
        let service = Service::new(store, anchors, collateral, clock).unwrap().with_limits(self.limits);
        // No rate depends on how fast the machine is.
        let service = Arc::new(service.with_stopwatch(Arc::new(move || ticks.load(Ordering::SeqCst) * 1000)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&service);
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            listen(shared, listener, stopped).await.unwrap();
        });
        self.service = Some(Running { address, service, stop, task });
    }

    /// Connections of the run before, which hold the store, end after its listener.
    async fn open_store(&self) -> Store {
        for _ in 0..600 {
            match Store::open(&self.store_dir()) {
                Err(OpenError::Audit(_)) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                opened => return opened.unwrap(),
            }
        }
        Store::open(&self.store_dir()).unwrap()
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) async fn connect(&self) -> ServiceConnection {
        let address = self.service.as_ref().unwrap().address;
        ServiceConnection::connect(TcpStream::connect(address).await.unwrap(), self.pin).await.unwrap()
    }

    /// A connection from another address of this machine.
    pub(crate) async fn connect_from(&self, address: std::net::Ipv4Addr) -> ServiceConnection {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let stream = socket.connect(self.service.as_ref().unwrap().address).await.unwrap();
        ServiceConnection::connect(stream, self.pin).await.unwrap()
    }

    pub(crate) fn count(&self, code: &str) -> u64 {
        self.service.as_ref().unwrap().service.counters().get(code).copied().unwrap_or_default()
    }

    /// A guest that booted as published, up to the moment of key release.
    pub(crate) async fn guest(&self) -> Guest {
        self.guest_with(|_| (), |_| ()).await
    }

    /// A guest with another configuration or other registers.
    pub(crate) async fn guest_with(
        &self,
        configure: impl FnOnce(&mut GuestConfig),
        launch: impl FnOnce(&mut Registers),
    ) -> Guest {
        self.boot(NOW - 100, configure, launch).await
    }

    /// A guest whose init was built at another date.
    pub(crate) async fn guest_at(&self, floor: u64) -> Guest {
        self.boot(floor, |_| (), |_| ()).await
    }

    async fn boot(
        &self,
        floor: u64,
        configure: impl FnOnce(&mut GuestConfig),
        launch: impl FnOnce(&mut Registers),
    ) -> Guest {
        let nonce = Hex32::new([9; 32]);
        let attested = self.connect().await.time(nonce, floor).await.unwrap();
        let time = TimeState { floor, attested: Some(attested) };
        let mut config = config(self.pin);
        configure(&mut config);
        let model = config.model.0.clone();
        let config = config.to_canonical().unwrap();
        let mut registers = registers_of(&shape(), GuestConfig::mr_config_id(&config));
        launch(&mut registers);
        let td = SimulatedTd::new(Arc::clone(&self.platform), registers);
        let gpu = no_gpu();
        let facts = BootFacts {
            config: GuestConfig::mr_config_id(&config),
            time: &time,
            gpu: &gpu,
            model: &model,
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: Hex32::new([5; 32]),
        };
        let events = expected_events(&facts, Moment::KeyRelease).unwrap();
        events.iter().for_each(|event| td.extend_event(event));
        Guest { td, config, events, time }
    }

    /// The whole protocol for one guest.
    pub(crate) async fn ask(&self, guest: &Guest) -> Result<Released, ClientError> {
        let mut connection = self.connect().await;
        let challenge = connection.challenge().await.unwrap();
        let key = key_pair();
        let evidence = guest.evidence(&challenge, key.public());
        connection.release(challenge, &model(), evidence.to_canonical().unwrap(), key).await
    }

    /// The codes and fields with which a guest is refused.
    pub(crate) async fn refusal(&self, guest: &Guest) -> Vec<(String, String)> {
        reasons(self.ask(guest).await)
    }
}

impl Running {
    pub(crate) async fn end(self) {
        let Self { service, stop, task, .. } = self;
        drop(service);
        let _ = stop.send(());
        task.await.unwrap();
    }
}

impl Guest {
    /// Evidence for a challenge of a connection.
    pub(crate) fn evidence(&self, challenge: &Challenge, hpke_key: &Hex32) -> Evidence {
        self.evidence_for(challenge.challenge(), challenge.binding(), hpke_key)
    }

    pub(crate) fn evidence_for(&self, challenge: &[u8; 32], binding: &[u8; 32], hpke_key: &Hex32) -> Evidence {
        let kind = FreshnessKind::KeyRelease;
        let leaf = Leaf { kind, role: Role::Inference, challenge: *challenge, binding: *binding };
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: Base64::default(),
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: Hex32::new([5; 32]),
            hpke_key: *hpke_key,
            gpu: no_gpu(),
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness { kind, tree_size: 1, root: leaf.hash() },
            events: self.events.clone(),
            firmware_log: None,
            guest_config: Base64::new(self.config.clone()).unwrap(),
            time: self.time.clone(),
        };
        self.quote(&mut evidence);
        evidence
    }

    /// Makes the quote that fits the evidence's other fields.
    pub(crate) fn quote(&self, evidence: &mut Evidence) {
        let report_data = ReportDataInputs::of(evidence).unwrap().report_data();
        evidence.quote = Base64::new(self.td.quote(report_data).unwrap()).unwrap();
    }

    /// Extends an event as init would.
    pub(crate) fn extend(&mut self, name: EventName, payload: &[u8]) {
        let event = RuntimeEvent::new(name, payload).unwrap();
        self.td.extend_event(&event);
        self.events.push(event);
    }
}

pub(crate) fn key_pair() -> ReleaseKeyPair {
    ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng))
}

pub(crate) fn reasons(result: Result<Released, ClientError>) -> Vec<(String, String)> {
    match result {
        Err(ClientError::Refused(reasons)) => reasons.into_iter().map(|r| (r.code, r.field)).collect(),
        Err(other) => panic!("{other}"),
        Ok(_) => Vec::new(),
    }
}

pub(crate) fn model() -> ModelId {
    ModelId::new("model", "1", Blake3Digest::of(b"manifest")).unwrap()
}

pub(crate) fn shape() -> MachineShape {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 10, minor: 1 };
    MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: 1024, physical_bits: 46, qemu, devices }).unwrap()
}

/// The other shape of the release; only RTMR0 tells the two apart.
pub(crate) fn larger_shape() -> MachineShape {
    let facts = shape().facts();
    MachineShape::new(ShapeFacts { vcpus: 4, ..facts }).unwrap()
}

fn config(pin: Sha256Digest) -> GuestConfig {
    GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: Policy(shape()),
        model: Policy(model()),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(pin) },
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

const fn no_gpu() -> GpuEvidence {
    GpuEvidence::NONE
}

/// A release for both shapes that is signed, logged as the only entry of a log, and witnessed.
fn published(hardware: release::Hardware) -> (Vec<u8>, TrustPolicy) {
    sample_release::publish(&statement(hardware), NOW)
}

/// Writes bundle and trust policy of the release for commands that read files.
pub(crate) fn write_release(dir: &Path) -> (PathBuf, PathBuf) {
    let (bundle, trust) = published(release::Hardware::Simulated);
    let paths = (dir.join("bundle.json"), dir.join("trust.json"));
    std::fs::write(&paths.0, bundle).unwrap();
    std::fs::write(&paths.1, trust.to_canonical().unwrap()).unwrap();
    paths
}

pub(crate) fn statement(hardware: release::Hardware) -> Statement {
    let mut statement = sample_release::statement(hardware, &[shape(), larger_shape()], NOW);
    let values = &mut statement.predicate;
    values.source_date_epoch = NOW - 100;
    values.validity = Validity { not_before: NOW - 1000, not_after: 2 * NOW };
    // ACPI tables that do not change up to 2000 MiB: the release can compute machines that its table does not list.
    values.acpi[0].memory.to_mib = 2000;
    assert_eq!(values.acpi[0].vcpus, 2);
    statement
}

/// What a guest of this shape measures when it was launched as published.
pub(crate) fn registers_of(shape: &MachineShape, mr_config_id: Sha384Digest) -> Registers {
    sample_release::registers(&statement(release::Hardware::Simulated).predicate, shape, mr_config_id)
}
