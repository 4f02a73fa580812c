// SPDX-License-Identifier: Apache-2.0
//! A guest at the moment of key release, without the minutes of booting one.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, expected_events};
use key_release::{ReleaseKeyPair, UnwrapErr};
use release_client::{Challenge, ClientError, Released, ServiceConnection};
use tdx_sim::SimulatedTd;
use tokio::net::TcpStream;
use types::{
    Base64, Document as _, Evidence, Freshness, FreshnessKind, GpuEvidence, GuestConfig, Hex32, ModelId, Role,
    RuntimeEvent, Sha256Digest, TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
};

use crate::{Scene, model, now, scene};

/// A guest that booted as published.
#[derive(Clone)]
pub struct Guest {
    td: SimulatedTd,
    config: Vec<u8>,
    events: Vec<RuntimeEvent>,
    time: TimeState,
    gpu: GpuEvidence,
    model: ModelId,
}

impl Guest {
    /// Boots one. Its quotes take no time.
    ///
    /// # Errors
    /// Never for a scene as [`Scene::new_in`] makes it.
    pub fn boot(scene: &Scene) -> anyhow::Result<Self> {
        let attested = scene.identity.sign_time(Hex32::new([9; 32]), now());
        let time = TimeState { floor: scene.statement.predicate.source_date_epoch, attested: Some(attested) };
        let model = model()?;
        let config = config(scene.pin(), &model)?.to_canonical()?;
        let mr_config_id = GuestConfig::mr_config_id(&config);
        let registers = sample_release::registers(&scene.statement.predicate, &scene::shape()?, mr_config_id);
        let td = SimulatedTd::new(Arc::clone(&scene.platform), registers);
        let gpu = GpuEvidence::NONE;
        let facts = BootFacts {
            config: mr_config_id,
            time: &time,
            gpu: &gpu,
            model: &model,
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: Hex32::new([5; 32]),
        };
        let events = expected_events(&facts, Moment::KeyRelease)?;
        events.iter().for_each(|event| td.extend_event(event));
        Ok(Self { td, config, events, time, gpu, model })
    }

    /// A connection to the service at `address`.
    ///
    /// # Errors
    /// [`ClientError`], or none at all.
    pub async fn connect(address: SocketAddr, pin: Sha256Digest) -> anyhow::Result<ServiceConnection> {
        Ok(ServiceConnection::connect(TcpStream::connect(address).await?, pin).await?)
    }

    /// The whole protocol on a connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask(&self, connection: &mut ServiceConnection) -> Result<Released, ClientError> {
        let challenge = connection.challenge().await?;
        self.answer(connection, challenge).await
    }

    /// The second half of the protocol.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn answer(
        &self,
        connection: &mut ServiceConnection,
        challenge: Challenge,
    ) -> Result<Released, ClientError> {
        let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
        let evidence = self.evidence(challenge.challenge(), challenge.binding(), key.public());
        let evidence = evidence.map_err(|e| ClientError::Answer { step: "evidence", rule: e.to_string() })?;
        connection.release(challenge, &self.model, evidence, key).await
    }

    /// The canonical evidence for a challenge.
    ///
    /// # Errors
    /// Never for a guest that booted.
    pub fn evidence(&self, challenge: &[u8; 32], binding: &[u8; 32], hpke_key: &Hex32) -> anyhow::Result<Vec<u8>> {
        let kind = FreshnessKind::KeyRelease;
        let leaf = Leaf { kind, role: Role::Inference, challenge: *challenge, binding: *binding };
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: Base64::default(),
            spki_sha256: Sha256Digest::of(b"spki"),
            instance_key: Hex32::new([5; 32]),
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
        let report_data = ReportDataInputs::of(&evidence)?.report_data();
        evidence.quote = Base64::new(self.td.quote(report_data)?).context("quote")?;
        Ok(evidence.to_canonical()?)
    }
}

fn config(pin: Sha256Digest, model: &ModelId) -> anyhow::Result<GuestConfig> {
    Ok(GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: Policy(scene::shape()?),
        model: Policy(model.clone()),
        gpus: Free(0),
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
    })
}
