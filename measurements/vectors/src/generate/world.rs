// SPDX-License-Identifier: Apache-2.0
//! What all cases share: a simulated platform, a release in a log with witnesses, and a guest that asks for its key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, ed25519_spki_sha256, expected_events};
use ed25519_dalek::{Signer as _, SigningKey};
use release::log::{Checkpoint, Edge, EntryProof, LogSigner, TileError, TilePath, Tiles, Tree, WitnessSigner, cosign};
use release::{Bundle, Hardware, ReleaseKey, Statement, TrustPolicy};
use tdx_sim::{QuoteVersion, SimulatedPlatform, SimulatedTd, TdParams, TdReport};
use types::{
    Base64, Blake3Digest, Device, Document as _, Evidence, Freshness, FreshnessKind, GpuEvidence, GuestConfig, Hex32,
    MachineShape, ModelId, QemuVersion, Registers, Role, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    event::replay,
    evidence::AttestedTime,
    shape::ShapeFacts,
};

/// Time of all cases.
pub(super) const AT: &str = "2027-01-15T08:00:00Z";
/// The same in seconds since 1970.
pub(super) const NOW: u64 = 1_800_000_000;
const ORIGIN: &str = "example.invalid/vectors";

/// The shared world of one run.
pub struct World {
    platform: Arc<SimulatedPlatform>,
    service: SigningKey,
    challenge: [u8; 32],
    exporter: [u8; 32],
    /// The release's statement.
    pub(super) statement: Statement,
    /// The release's signer.
    pub(super) key: ReleaseKey,
    /// The log.
    pub(super) log: Log,
    /// Witnesses of the log; two of the three must cosign.
    pub(super) witnesses: Vec<WitnessSigner>,
    /// Trusts the signer, the log and the witnesses.
    pub(super) trust: TrustPolicy,
    /// The published bundle.
    pub(super) bundle: Vec<u8>,
    /// The log's checkpoint when the bundle was published.
    pub(super) checkpoint: String,
}

/// A guest up to its question for a key: what it booted with, and what it claims.
#[derive(Clone)]
pub(super) struct Guest {
    /// Bytes on the configuration disk.
    pub(super) config: Vec<u8>,
    /// What the hardware measured.
    pub(super) registers: Registers,
    /// Events in the evidence.
    pub(super) claimed: Vec<RuntimeEvent>,
}

impl World {
    /// Makes everything with new keys.
    ///
    /// # Errors
    /// No randomness, or a key that can't be made.
    pub fn new() -> Result<Self> {
        let key = ReleaseKey::from_random(&random()?)?;
        let mut log = Log::new(&random()?)?;
        for number in 0..5 {
            log.append(format!("another entry {number}").as_bytes())?;
        }
        let witnesses = (1..=3).map(|n| Ok(WitnessSigner::new(&format!("witness-{n}"), &random()?)?));
        let witnesses = witnesses.collect::<Result<Vec<_>>>()?;
        let keys = witnesses.iter().map(|witness| witness.public().clone()).collect();
        let trust = TrustPolicy::new(vec![key.public()], log.signer.public().clone(), keys, 2)?;
        let shapes = [
            shape()?,
            with(|facts| facts.vcpus = 4)?,
            with(|facts| facts.memory_mib = 4096)?,
            with(|facts| {
                facts.qemu = QemuVersion { major: 11, minor: 1 };
            })?,
        ];
        let statement = sample_release::statement(Hardware::Simulated, &shapes, NOW);
        let mut world = Self {
            platform: Arc::new(SimulatedPlatform::generate(NOW)?),
            service: SigningKey::from_bytes(&random()?),
            challenge: random()?,
            exporter: random()?,
            statement,
            key,
            log,
            witnesses,
            trust,
            bundle: Vec::new(),
            checkpoint: String::new(),
        };
        world.bundle = world.publish(2)?;
        world.checkpoint = world.log.checkpoint()?;
        Ok(world)
    }

    /// The files of `common`.
    ///
    /// # Errors
    /// Something can't be signed or serialised.
    pub fn common(&self) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let guest = self.guest(&self.config()?)?;
        let collateral = self.platform.collateral(NOW, None)?.to_json();
        Ok(BTreeMap::from([
            (file_name("root"), self.platform.root_der().to_vec()),
            (file_name("collateral"), collateral.into_bytes()),
            (file_name("evidence"), self.evidence(&guest)?),
            (file_name("bundle"), self.bundle.clone()),
            (file_name("trust"), self.trust.to_canonical()?),
            (file_name("challenge"), self.challenge.to_vec()),
            (file_name("exporter"), self.exporter.to_vec()),
            (file_name("known"), self.checkpoint.clone().into_bytes()),
            (file_name("checkpoint"), self.checkpoint.clone().into_bytes()),
            (file_name("proof"), Vec::new()),
        ]))
    }

    /// The configuration of the guest as published.
    pub(super) fn config(&self) -> Result<GuestConfig> {
        Ok(GuestConfig {
            schema: GuestConfig::SCHEMA.into(),
            role: Fixed(Role::Inference),
            shape: Policy(shape()?),
            model: Policy(model()?),
            service: ServiceLink {
                vsock_port: Free(7000),
                spki_sha256: Policy(ed25519_spki_sha256(&self.service_key())),
            },
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
        })
    }

    /// A guest that was launched as published, on the shape of its configuration.
    pub(super) fn guest(&self, config: &GuestConfig) -> Result<Guest> {
        self.guest_with(config.to_canonical()?, &config.shape.0)
    }

    /// A guest with any bytes as its configuration, on a machine of this shape. MRCONFIGID is their digest.
    pub(super) fn guest_with(&self, config: Vec<u8>, shape: &MachineShape) -> Result<Guest> {
        let time = self.time();
        let facts = BootFacts {
            config: GuestConfig::mr_config_id(&config),
            time: &time,
            gpu: &NO_GPU,
            model: &model()?,
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: INSTANCE,
        };
        let claimed = expected_events(&facts, Moment::KeyRelease)?;
        let mr_config_id = GuestConfig::mr_config_id(&config);
        let mut registers = sample_release::registers(&self.statement.predicate, shape, mr_config_id);
        registers.rtmr_3 = replay(&claimed);
        Ok(Guest { config, registers, claimed })
    }

    /// What the guest sends; the quote fits whatever the guest says.
    pub(super) fn evidence(&self, guest: &Guest) -> Result<Vec<u8>> {
        let kind = FreshnessKind::KeyRelease;
        let leaf = Leaf { kind, role: Role::Inference, challenge: self.challenge, binding: self.exporter };
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: Base64::default(),
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: INSTANCE,
            hpke_key: Hex32::new([7; 32]),
            gpu: NO_GPU,
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness { kind, tree_size: 1, root: leaf.hash() },
            events: guest.claimed.clone(),
            firmware_log: None,
            guest_config: Base64::new(guest.config.clone()).context("configuration")?,
            time: self.time(),
        };
        let report_data = ReportDataInputs::of(&evidence)?.report_data();
        let TdParams { attributes, xfam, .. } = TdParams::with_config(guest.registers.mr_config_id);
        let report = TdReport { registers: guest.registers.clone(), attributes, xfam, report_data: [0; 64] };
        let td = SimulatedTd::with(Arc::clone(&self.platform), report, QuoteVersion::V4, None, Duration::ZERO);
        evidence.quote = Base64::new(td.quote(report_data)?).context("quote")?;
        Ok(evidence.to_canonical()?)
    }

    /// Signs the release's statement, logs it, has the first `cosigners` witnesses cosign: the bundle.
    pub(super) fn publish(&mut self, cosigners: usize) -> Result<Vec<u8>> {
        let bundle = Bundle::sign(&self.statement, &self.key)?;
        let index = self.log.append(&bundle.log_entry(&self.key.public())?)?;
        let mut note = self.log.checkpoint()?;
        for witness in self.witnesses.iter().take(cosigners) {
            note = cosign(witness, None, &note, self.log.signer.public(), &[], NOW)?.0.note().to_owned();
        }
        let proof = self.log.proof(index, &note)?;
        Ok(bundle.with_proof(&self.key.public(), self.log.signer.public(), &proof)?.to_json()?)
    }

    fn service_key(&self) -> Hex32 {
        Hex32::new(self.service.verifying_key().to_bytes())
    }

    /// The release's build date, and a time that the service signed a minute ago.
    fn time(&self) -> TimeState {
        let (nonce, unix) = (Hex32::new([9; 32]), NOW - 60);
        let signature = self.service.sign(&AttestedTime::signed_bytes(&nonce, unix)).to_bytes().to_vec();
        // 64 bytes fit.
        let signature = Base64::new(signature).unwrap_or_default();
        let attested = AttestedTime { unix, nonce, service_key: self.service_key(), signature };
        TimeState { floor: self.statement.predicate.source_date_epoch, attested: Some(attested) }
    }
}

/// A log in memory.
pub(super) struct Log {
    /// The log's signer.
    pub(super) signer: LogSigner,
    seed: [u8; 32],
    edge: Edge,
    tiles: Memory,
}

#[derive(Default)]
struct Memory(BTreeMap<TilePath, Vec<u8>>);

impl Tiles for Memory {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        self.0.get(path).cloned().ok_or(TileError::Missing(*path))
    }
}

impl Log {
    /// An empty log with this key.
    pub(super) fn new(seed: &[u8; 32]) -> Result<Self> {
        let (signer, tiles) = (LogSigner::new(ORIGIN, seed)?, Memory::default());
        Ok(Self { signer, seed: *seed, edge: Edge::empty(), tiles })
    }

    /// An empty log of the same signer.
    pub(super) fn fork(&self) -> Result<Self> {
        Self::new(&self.seed)
    }

    pub(super) fn append(&mut self, entry: &[u8]) -> Result<u64> {
        let (index, _) = self.edge.append(entry)?;
        self.tiles.0.extend(self.edge.take_files());
        Ok(index)
    }

    pub(super) fn checkpoint(&self) -> Result<String> {
        Ok(Checkpoint::new(ORIGIN, self.edge.size(), self.edge.root()).sign(&self.signer)?)
    }

    pub(super) fn tree(&self) -> Tree<'_, impl Tiles> {
        Tree::new(&self.tiles, self.edge.size())
    }

    pub(super) fn proof(&self, index: u64, checkpoint: &str) -> Result<EntryProof> {
        let tree = self.tree();
        let (leaf, path) = (tree.leaf(index)?, tree.inclusion_proof(index)?);
        Ok(EntryProof { index, leaf, tree_size: self.edge.size(), path, checkpoint: checkpoint.to_owned() })
    }
}

/// The machine of the guest.
pub(super) fn shape() -> Result<MachineShape> {
    with(|_| ())
}

/// That machine with other facts.
pub(super) fn with(change: impl FnOnce(&mut ShapeFacts)) -> Result<MachineShape> {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 10, minor: 1 };
    let mut facts = ShapeFacts { vcpus: 2, memory_mib: 2048, physical_bits: 46, qemu, devices };
    change(&mut facts);
    Ok(MachineShape::new(facts)?)
}

fn model() -> Result<ModelId> {
    Ok(ModelId::new("model", "1", Blake3Digest::of(b"manifest"))?)
}

pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(bytes)
}

/// One bit of a register changed.
pub(super) fn flip(register: &Sha384Digest) -> Sha384Digest {
    let mut bytes = *register.as_bytes();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    Sha384Digest::from_bytes(bytes)
}

/// Name of the file that carries an input.
pub(super) fn file_name(input: &str) -> &'static str {
    match input {
        "root" => "root.der",
        "collateral" => "collateral.json",
        "evidence" => "evidence.json",
        "bundle" => "bundle.json",
        "trust" => "trust.json",
        "challenge" => "challenge.bin",
        "exporter" => "exporter.bin",
        "known" => "known.note",
        "checkpoint" => "checkpoint.note",
        _ => "proof.txt",
    }
}

const INSTANCE: Hex32 = Hex32::new([5; 32]);
const NO_GPU: GpuEvidence = GpuEvidence::NONE;
