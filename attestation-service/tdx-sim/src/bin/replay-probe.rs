// SPDX-License-Identifier: Apache-2.0
//! Redeems one challenge of an attestation service twice, from a simulated TD that measures as a launched guest does.
//! Hardware simulated. The first redemption must release a key, the second must be refused: that is the service's
//! single-use rule, with nothing else wrong in the second request.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use attested_channel::{BootFacts, Leaf, Moment, ReportDataInputs, expected_events};
use clap::Parser;
use release_client::{
    Challenge, ClientError, ServiceConnection,
    key_release_protocol::{ReleaseKeyPair, UnwrapErr},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tdx_sim::{SIMULATED, SimulatedPlatform, SimulatedTd};
use tokio::net::TcpStream;
use types::{
    Base64, Document as _, Evidence, Freshness, FreshnessKind, GpuEvidence, GuestConfig, Hex32, ModelId, Registers,
    Role, RuntimeEvent, Sha256Digest, TimeState,
};

/// Redeems one challenge twice (hardware simulated).
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Directory that `tdx-sim init` made.
    #[arg(long)]
    pki: PathBuf,
    /// The service.
    #[arg(long)]
    service: SocketAddr,
    /// SHA-256 of its SPKI.
    #[arg(long)]
    service_spki: Sha256Digest,
    /// The model whose key is asked for.
    #[arg(long)]
    model: ModelId,
    /// The configuration disk of a launch.
    #[arg(long)]
    config_disk: PathBuf,
    /// What the simulator measured of that launch: its line of output.
    #[arg(long)]
    measured: PathBuf,
    /// Date of the image's build, which its init takes as the floor of the time: `source_date_epoch` of the release.
    #[arg(long, value_name = "SECONDS", default_value_t = SOURCE_DATE_EPOCH)]
    floor: u64,
}

/// The simulator's line.
#[derive(Deserialize)]
struct Measured {
    registers: Registers,
}

/// A stand-in for a guest at the moment of key release.
struct Guest {
    td: SimulatedTd,
    config: Vec<u8>,
    events: Vec<RuntimeEvent>,
    time: TimeState,
    model: ModelId,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no error. A closed stream leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("runtime").and_then(|runtime| runtime.block_on(run(&cli)));
    match result {
        Ok(document) => {
            println!("{document}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("replay-probe ({SIMULATED}): {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<Value> {
    let mut connection = ServiceConnection::connect(TcpStream::connect(cli.service).await?, cli.service_spki).await?;
    let guest = Guest::boot(cli, &mut connection).await?;
    let challenge = connection.challenge().await?;
    let first = redeem(&mut connection, &challenge, &guest).await;
    let second = redeem(&mut connection, &challenge, &guest).await;
    Ok(json!({ "note": SIMULATED, "first": outcome(first), "second": outcome(second) }))
}

/// One redemption. A key that comes is dropped unseen.
async fn redeem(connection: &mut ServiceConnection, challenge: &Challenge, guest: &Guest) -> Result<u64, ClientError> {
    let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
    let evidence = guest.evidence(challenge, key.public()).map_err(|e| ClientError::Audit(e.to_string()))?;
    let released = connection.release(challenge.clone(), &guest.model, evidence, key).await?;
    Ok(released.audit.index)
}

fn outcome(result: Result<u64, ClientError>) -> Value {
    match result {
        Ok(index) => json!({ "released": true, "audit_index": index }),
        Err(ClientError::Refused(reasons)) => json!({ "released": false, "reasons": reasons }),
        Err(other) => json!({ "released": false, "error": other.to_string() }),
    }
}

impl Guest {
    async fn boot(cli: &Cli, connection: &mut ServiceConnection) -> anyhow::Result<Self> {
        let platform = SimulatedPlatform::load(&cli.pki)?;
        let measured = std::fs::read(&cli.measured).with_context(|| cli.measured.display().to_string())?;
        let measured: Measured = serde_json::from_slice(&measured).context("what the simulator measured")?;
        let config = configuration(&cli.config_disk)?;
        let nonce = Hex32::new(random()?);
        let attested = connection.time(nonce, cli.floor).await?;
        let time = TimeState { floor: cli.floor, attested: Some(attested) };
        let gpu = no_gpu();
        let facts = BootFacts {
            config: GuestConfig::mr_config_id(&config),
            time: &time,
            gpu: &gpu,
            model: &cli.model,
            spki_sha256: Sha256Digest::ZERO,
            instance_key: Hex32::default(),
        };
        let events = expected_events(&facts, Moment::KeyRelease)?;
        let td = SimulatedTd::new(Arc::new(platform), measured.registers);
        events.iter().for_each(|event| td.extend_event(event));
        Ok(Self { td, config, events, time, model: cli.model.clone() })
    }

    /// Evidence for a challenge of a connection, canonical.
    fn evidence(&self, challenge: &Challenge, hpke_key: &Hex32) -> anyhow::Result<Vec<u8>> {
        let kind = FreshnessKind::KeyRelease;
        let (challenge, binding) = (*challenge.challenge(), *challenge.binding());
        let leaf = Leaf { kind, role: Role::Inference, challenge, binding };
        let mut evidence = Evidence {
            schema: Evidence::SCHEMA.to_owned(),
            role: Role::Inference,
            quote: Base64::default(),
            spki_sha256: Sha256Digest::ZERO,
            instance_key: Hex32::default(),
            hpke_key: *hpke_key,
            gpu: no_gpu(),
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness { kind, tree_size: 1, root: leaf.hash() },
            events: self.events.clone(),
            firmware_log: None,
            guest_config: Base64::new(self.config.clone()).context("the configuration is too large")?,
            time: self.time.clone(),
        };
        let report_data = ReportDataInputs::of(&evidence)?.report_data();
        evidence.quote = Base64::new(self.td.quote(report_data)?).context("the quote is too large")?;
        Ok(evidence.to_canonical()?)
    }
}

/// The configuration on a configuration disk: magic, length (u32, big-endian), bytes.
fn configuration(disk: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(disk).with_context(|| disk.display().to_string())?;
    let (header, rest) = bytes.split_at_checked(12).context("the configuration disk is too short")?;
    let length = header.get(8..).and_then(|l| l.try_into().ok()).map(u32::from_be_bytes).context("length")?;
    let config = rest.get(..usize::try_from(length)?).context("the configuration disk is too short")?;
    Ok(config.to_vec())
}

const fn no_gpu() -> GpuEvidence {
    GpuEvidence::NONE
}

fn random() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("randomness: {e}"))?;
    Ok(bytes)
}

/// The date that the image builder gives every build: the first second of 2026.
const SOURCE_DATE_EPOCH: u64 = 1_767_225_600;
