// SPDX-License-Identifier: Apache-2.0
//! What the guest was launched with, and what its clients expect: two sides that share these facts and no code.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use appraise::Policy;
use attested_channel::ed25519_spki_sha256;
use client::{ClientPolicy, Verifier};
use ed25519_dalek::{Signer as _, SigningKey};
use release::{Hardware, Statement, VerifiedRelease};
use tdx_verify::{Collateral, TrustAnchors};
use types::{
    Base64, Blake3Digest, Device, Document as _, GuestConfig, Hex32, MachineShape, ModelId, Role, Sha256Digest,
    TimeState,
    config::{self, EngineSettings, Fixed, Free, Network, ServiceLink},
    evidence::AttestedTime,
    shape::ShapeFacts,
};

/// Files that the attester's process leaves for clients.
pub(crate) const COLLATERAL: &str = "collateral.json";
pub(crate) const ROOT: &str = "root.der";
/// When the guest was launched: its release is from then.
pub(crate) const LAUNCHED: &str = "launched";

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn model() -> anyhow::Result<ModelId> {
    Ok(ModelId::new("m", "1", Blake3Digest::of(b"m"))?)
}

pub(crate) fn statement(now: u64) -> anyhow::Result<Statement> {
    Ok(sample_release::statement(Hardware::Simulated, &[shape()?], now))
}

pub(crate) fn shape() -> anyhow::Result<MachineShape> {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = "10.1".parse()?;
    Ok(MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: 1024, physical_bits: 46, qemu, devices })?)
}

/// The attestation service's key. No service runs here: its time is part of the evidence.
fn service() -> SigningKey {
    SigningKey::from_bytes(&[8; 32])
}

fn pin() -> Sha256Digest {
    ed25519_spki_sha256(&Hex32::new(service().verifying_key().to_bytes()))
}

pub(crate) fn guest_config() -> anyhow::Result<GuestConfig> {
    Ok(GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: config::Policy(shape()?),
        model: config::Policy(model()?),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: config::Policy(pin()) },
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

pub(crate) fn attested_time(now: u64) -> anyhow::Result<TimeState> {
    let (nonce, unix, service) = (Hex32::new([9; 32]), now.saturating_sub(5), service());
    let signature = service.sign(&AttestedTime::signed_bytes(&nonce, unix)).to_bytes().to_vec();
    let signature = Base64::new(signature).context("signature")?;
    let service_key = Hex32::new(service.verifying_key().to_bytes());
    let attested = AttestedTime { unix, nonce, service_key, signature };
    Ok(TimeState { floor: now.saturating_sub(1000), attested: Some(attested) })
}

/// A client's verifier, for the platform whose files are in `directory`.
pub(crate) fn verifier(directory: &Path) -> anyhow::Result<Arc<Verifier>> {
    let launched = std::fs::read_to_string(directory.join(LAUNCHED))?.parse()?;
    let (bundle, trust) = sample_release::publish(&statement(launched)?, launched);
    let policy = ClientPolicy {
        appraisal: Policy { models: Some(vec![model()?]), service_pins: Some(vec![pin()]), ..Policy::any_release() },
        releases: vec![VerifiedRelease::verify(&bundle, &trust, now())?],
        collateral: vec![Collateral::from_json(&std::fs::read(directory.join(COLLATERAL))?)?],
        gpu_rims: Default::default(),
        gpu_ocsp: Vec::new(),
    };
    let root = std::fs::read(directory.join(ROOT))?;
    Ok(Arc::new(Verifier::new(policy, TrustAnchors::custom(root))))
}
