// SPDX-License-Identifier: Apache-2.0
//! A guest on simulated hardware at the moment of key release, and its evidence.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use attacks::gpu::INSTANCE;
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, expected_events};
use ed25519_dalek::{Signer as _, SigningKey};
use release_client::Challenge;
use tdx_sim::{Fault, QuoteVersion, SimulatedTd, TdParams, TdReport};
use types::{
    Base64, Document as _, EventName, Evidence, Freshness, FreshnessKind, GpuEvidence, GuestConfig, Hex32, Registers,
    Role, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    evidence::AttestedTime,
};

use crate::step::{Change, Events, GuestTime};
use crate::world::{World, fault, now, shape};

#[derive(Clone)]
pub(crate) struct Guest {
    td: SimulatedTd,
    config: Vec<u8>,
    events: Vec<RuntimeEvent>,
    time: TimeState,
    gpu: GpuEvidence,
}

impl Guest {
    /// Boots it; `attested` is what the service signed for it.
    pub(crate) fn boot(world: &World, attested: AttestedTime, changes: &[Change]) -> Result<Self> {
        let mut launch = Launch::new(world, attested)?;
        for change in changes {
            launch.change(world, change)?;
        }
        launch.boot(world)
    }

    /// One with GPUs: `measured` by its boot, and `shown` in its evidence.
    pub(crate) fn boot_with_gpus(
        world: &World,
        attested: AttestedTime,
        configured: u8,
        measured: GpuEvidence,
        shown: GpuEvidence,
    ) -> Result<Self> {
        let mut launch = Launch::new(world, attested)?;
        launch.config.gpus = Free(configured);
        launch.gpu = measured;
        Ok(Self { gpu: shown, ..launch.boot(world)? })
    }

    /// Canonical evidence for a challenge and the exporter of a connection.
    pub(crate) fn evidence(
        &self,
        challenge: &Challenge,
        exporter: &[u8; 32],
        hpke_key: &Hex32,
        before: &[Change],
        after: &[Change],
    ) -> Result<Vec<u8>> {
        self.evidence_for(challenge.challenge(), exporter, hpke_key, before, after)
    }

    /// The same, for the challenge's bytes.
    pub(crate) fn evidence_for(
        &self,
        challenge: &[u8; 32],
        exporter: &[u8; 32],
        hpke_key: &Hex32,
        before: &[Change],
        after: &[Change],
    ) -> Result<Vec<u8>> {
        let (kind, role) = (FreshnessKind::KeyRelease, Role::Inference);
        let leaf = Leaf { kind, role, challenge: *challenge, binding: *exporter };
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role,
            quote: Base64::default(),
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: INSTANCE,
            hpke_key: *hpke_key,
            gpu: self.gpu.clone(),
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness { kind, tree_size: 1, root: leaf.hash() },
            events: self.events.clone(),
            firmware_log: None,
            guest_config: Base64::new(self.config.clone()).context("configuration")?,
            time: self.time.clone(),
        };
        for change in before {
            self.change(&mut evidence, challenge, change)?;
        }
        self.quote(&mut evidence)?;
        for change in after {
            self.change(&mut evidence, challenge, change)?;
        }
        Ok(evidence.to_canonical()?)
    }

    fn quote(&self, evidence: &mut Evidence) -> Result<()> {
        let report_data = ReportDataInputs::of(evidence)?.report_data();
        evidence.quote = Base64::new(self.td.quote(report_data)?).context("quote")?;
        Ok(())
    }

    fn change(&self, evidence: &mut Evidence, challenge: &[u8; 32], change: &Change) -> Result<()> {
        match change {
            Change::HpkeKey => evidence.hpke_key = Hex32::new([9; 32]),
            Change::NoHpkeKey => evidence.hpke_key = Hex32::default(),
            Change::Spki => evidence.spki_sha256 = Sha256Digest::of(b"another"),
            Change::InstanceKey => evidence.instance_key = Hex32::new([8; 32]),
            Change::Role => evidence.role = Role::KeyService,
            Change::KindTls => evidence.freshness.kind = FreshnessKind::Tls,
            Change::TreeSize(size) => evidence.freshness.tree_size = *size,
            Change::RootIsChallenge => evidence.freshness.root = Sha256Digest::from_bytes(*challenge),
            Change::RootOfTwo => {
                let own = evidence.freshness.root;
                evidence.freshness.root = Sha256Digest::of_parts(&[&[1], own.as_bytes(), own.as_bytes()]);
            }
            Change::OtherConfiguration => {
                let mut config = GuestConfig::parse(&self.config)?;
                config.network.port = Free(9443);
                evidence.guest_config = Base64::new(config.to_canonical()?).context("configuration")?;
            }
            Change::OtherGuestsQuote => {
                let (mut theirs, ours) = (evidence.clone(), evidence.instance_key);
                theirs.instance_key = Hex32::new([8; 32]);
                self.quote(&mut theirs)?;
                *evidence = Evidence { instance_key: ours, ..theirs };
            }
            other => bail!("{other:?} is no change of evidence"),
        }
        Ok(())
    }
}

/// A guest before it starts.
struct Launch {
    config: GuestConfig,
    registers: Registers,
    time: TimeState,
    events: Option<Events>,
    fault: Option<Fault>,
    version: QuoteVersion,
    flips: Vec<(String, bool)>,
    gpu: GpuEvidence,
}

impl Launch {
    fn new(world: &World, attested: AttestedTime) -> Result<Self> {
        let config = GuestConfig {
            schema: GuestConfig::SCHEMA.into(),
            role: Fixed(Role::Inference),
            shape: Policy(shape(2, 1024)?),
            model: Policy(attacks::wire::model()?),
            gpus: Free(0),
            service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(world.store.pin()) },
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
        };
        let values = &world.statement.predicate;
        let registers = sample_release::registers(values, &shape(2, 1024)?, Sha384Digest::ZERO);
        let time = TimeState { floor: values.source_date_epoch, attested: Some(attested) };
        let (events, fault, version, flips) = (None, None, QuoteVersion::V4, Vec::new());
        Ok(Self { config, registers, time, events, fault, version, flips, gpu: GpuEvidence::NONE })
    }

    fn change(&mut self, world: &World, change: &Change) -> Result<()> {
        let facts = self.config.shape.0.facts();
        match change {
            Change::Flip(register) => self.flips.push((register.clone(), false)),
            Change::Zero(register) => self.flips.push((register.clone(), true)),
            Change::Fault(name) => self.fault = Some(fault(name)?),
            Change::Version(5) => self.version = QuoteVersion::V5,
            Change::Vcpus(vcpus) => self.config.shape.0 = shape(*vcpus, facts.memory_mib)?,
            Change::MemoryMib(memory) => self.config.shape.0 = shape(2, *memory)?,
            Change::OtherModel => {
                self.config.model.0 = types::ModelId::new("model", "1", types::Blake3Digest::of(b"another"))?;
            }
            Change::OtherService => self.config.service.spki_sha256.0 = Sha256Digest::of(b"another"),
            Change::Time(kind) => self.time = guest_time(world, &self.time, *kind)?,
            Change::Events(kind) => self.events = Some(*kind),
            other => bail!("{other:?} is no change of a guest"),
        }
        Ok(())
    }

    fn boot(self, world: &World) -> Result<Guest> {
        let Self { config, mut registers, time, events: wrong, fault, version, flips, gpu } = self;
        let model = config.model.0.clone();
        let config = config.to_canonical()?;
        registers.mr_config_id = GuestConfig::mr_config_id(&config);
        let facts = BootFacts {
            config: registers.mr_config_id,
            time: &time,
            gpu: &gpu,
            model: &model,
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: INSTANCE,
        };
        let good = expected_events(&facts, Moment::KeyRelease)?;
        let (measured, events) = wrong.map_or_else(|| Ok((good.clone(), good.clone())), |kind| spoil(&good, kind))?;
        for (name, zero) in &flips {
            if name != "rtmr_3" {
                alter(register(&mut registers, name)?, *zero);
            }
        }
        for event in &measured {
            registers.rtmr_3 = registers.rtmr_3.extend(&event.digest());
        }
        if let Some((_, zero)) = flips.iter().find(|(name, _)| name == "rtmr_3") {
            alter(&mut registers.rtmr_3, *zero);
        }
        let TdParams { attributes, xfam, .. } = TdParams::with_config(registers.mr_config_id);
        let report = TdReport { registers, attributes, xfam, report_data: [0; 64] };
        let td = SimulatedTd::with(Arc::clone(&world.platform), report, version, fault, Duration::ZERO);
        Ok(Guest { td, config, events, time, gpu })
    }
}

fn alter(digest: &mut Sha384Digest, zero: bool) {
    let mut bytes = *digest.as_bytes();
    bytes[47] ^= 1;
    *digest = if zero { Sha384Digest::ZERO } else { Sha384Digest::from_bytes(bytes) };
}

fn register<'a>(registers: &'a mut Registers, name: &str) -> Result<&'a mut Sha384Digest> {
    Ok(match name {
        "mr_td" => &mut registers.mr_td,
        "rtmr_0" => &mut registers.rtmr_0,
        "rtmr_1" => &mut registers.rtmr_1,
        "rtmr_2" => &mut registers.rtmr_2,
        "mr_config_id" => &mut registers.mr_config_id,
        "mr_owner" => &mut registers.mr_owner,
        "mr_owner_config" => &mut registers.mr_owner_config,
        other => bail!("no register is called {other}"),
    })
}

/// What is measured, and what the evidence lists.
fn spoil(good: &[RuntimeEvent], kind: Events) -> Result<(Vec<RuntimeEvent>, Vec<RuntimeEvent>)> {
    let (mut bad, good) = (good.to_vec(), good.to_vec());
    let event = |name, payload: &[u8]| RuntimeEvent::new(name, payload).context("event");
    match kind {
        Events::Reordered | Events::ReorderedInRegister => bad.swap(2, 3),
        Events::Missing | Events::MissingInRegister => drop(bad.remove(4)),
        Events::Duplicated | Events::DuplicatedInRegister => bad.insert(1, bad[0].clone()),
        Events::Early => bad.push(event(EventName::Keys, &[1; 32])?),
        Events::Closed | Events::ClosedHidden => {
            bad.push(event(EventName::Keys, attacks::wire::model()?.identity().as_bytes())?);
            bad.push(event(EventName::KeysClosed, b"")?);
        }
    }
    Ok(match kind {
        Events::ReorderedInRegister
        | Events::MissingInRegister
        | Events::DuplicatedInRegister
        | Events::ClosedHidden => (bad, good),
        _ => (bad.clone(), bad),
    })
}

/// The service's clock is right: it is its own key that signs, at another moment than the host would like.
fn guest_time(world: &World, good: &TimeState, kind: GuestTime) -> Result<TimeState> {
    let nonce = Hex32::new([9; 32]);
    let by_service = |unix| -> Result<AttestedTime> {
        let store = store::Store::open_with(
            &world.store.path(),
            &store::OpenOptions { sequencer: false, ..store::OpenOptions::default() },
        )?;
        Ok(attestation_service::Identity::load(&store)?.sign_time(nonce, unix))
    };
    let year = 365 * 86_400;
    let mut time = good.clone();
    match kind {
        GuestTime::Missing => time.attested = None,
        GuestTime::OtherKey => {
            let (key, unix) = (SigningKey::from_bytes(&[8; 32]), now());
            let signature = key.sign(&AttestedTime::signed_bytes(&nonce, unix)).to_bytes().to_vec();
            let service_key = Hex32::new(key.verifying_key().to_bytes());
            let signature = Base64::new(signature).context("signature")?;
            time.attested = Some(AttestedTime { unix, nonce, service_key, signature });
        }
        GuestTime::Moved => {
            let attested = time.attested.as_mut().context("no time")?;
            attested.unix += year;
        }
        GuestTime::Stale => time.attested = Some(by_service(now() - 2 * 3600)?),
        GuestTime::BeforeFloor => time.attested = Some(by_service(now() - 2 * year)?),
        GuestTime::Ahead => time.attested = Some(by_service(now() + 2 * year)?),
        GuestTime::OldFloor => time.floor -= 2 * year,
    }
    Ok(time)
}
