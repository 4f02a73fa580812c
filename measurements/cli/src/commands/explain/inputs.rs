// SPDX-License-Identifier: Apache-2.0
//! Reads releases and evidence for an explanation.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use attested_channel::{BootFacts, Moment, expected_events};
use calculator::AcpiReference;
use explain::Standing;
use release::{Bundle, ReferenceValues, Statement, TrustPolicy, VerifiedRelease};
use tdx_spec::quote::MAX_QUOTE_LEN;
use types::{
    Document as _, Evidence, GuestConfig, MachineShape, Refusal, Registers, RuntimeEvent, Sha256Digest, evidence,
};

use crate::{clock, commands::quoted, input, output::Failure};

/// A release and whether it was verified.
pub(crate) struct LoadedRelease {
    /// Its digest, short, for people.
    pub(crate) name: String,
    pub(crate) standing: Standing,
    pub(crate) values: ReferenceValues,
}

/// What is explained.
pub(crate) struct Subject {
    pub(crate) registers: Registers,
    pub(crate) log: Option<Vec<u8>>,
    /// Claimed and expected events of RTMR3.
    pub(crate) runtime: Option<(Vec<RuntimeEvent>, Vec<RuntimeEvent>)>,
    pub(crate) configuration: Option<Vec<u8>>,
    pub(crate) shape: Option<MachineShape>,
}

impl LoadedRelease {
    /// Reads a bundle or a statement; with a trust policy only a bundle that it accepts.
    pub(crate) fn read(path: &Path, trust: Option<&Path>) -> Result<Self, Failure> {
        let bytes = input::file(path, MAX_RELEASE)?;
        if let Some(trust) = trust {
            let policy = TrustPolicy::parse(&input::file(trust, MAX_POLICY)?)
                .with_context(|| format!("{} is not a trust policy", trust.display()))?;
            let verified = VerifiedRelease::verify(&bytes, &policy, clock::now()?).map_err(|error| error.refusal())?;
            let (name, values) = (verified.digest().to_string(), verified.values().clone());
            return Ok(Self { name, standing: Standing::Verified, values });
        }
        let statement = match Bundle::from_json(&bytes) {
            Ok(bundle) => bundle.payload().to_vec(),
            Err(_) => bytes,
        };
        let values = Statement::parse(&statement)
            .map_err(|error| {
                Refusal::new(
                    "release_statement_malformed",
                    "release",
                    format!("{} is neither a bundle nor a statement of a release: {error}", path.display()),
                    "give the file that measure release create, sign or publish wrote",
                )
            })?
            .predicate;
        Ok(Self { name: Sha256Digest::of(&statement).to_string(), standing: Standing::Unverified, values })
    }
}

impl Subject {
    /// Evidence: everything that it holds is used, nothing in it is believed.
    pub(crate) fn of_evidence(path: &Path) -> Result<Self, Failure> {
        let malformed = |detail: String| {
            Refusal::new("evidence_malformed", "evidence", detail, "give the evidence as the guest sent it")
        };
        let bytes = input::file(path, Evidence::MAX_BYTES as u64)?;
        let evidence =
            Evidence::from_canonical(bytes.trim_ascii_end()).map_err(|error| malformed(error.to_string()))?;
        let configuration = evidence.guest_config.as_slice();
        let config = GuestConfig::parse(configuration).ok();
        let expected = config.as_ref().and_then(|config| {
            let facts = BootFacts {
                config: GuestConfig::mr_config_id(configuration),
                time: &evidence.time,
                gpu: &evidence.gpu,
                model: &config.model.0,
                spki_sha256: evidence.spki_sha256,
                instance_key: evidence.instance_key,
            };
            expected_events(&facts, Moment::Serving).ok()
        });
        Ok(Self {
            registers: quoted::registers(evidence.quote.as_slice())?,
            log: evidence.firmware_log.as_ref().map(|log| log.as_slice().to_vec()),
            runtime: Some((evidence.events.clone(), expected.unwrap_or_default())),
            configuration: Some(configuration.to_vec()),
            shape: config.map(|config| config.shape.0),
        })
    }

    /// A quote with what is given beside it.
    pub(crate) fn of_quote(quote: &Path, log: Option<&Path>, config: Option<&Path>) -> Result<Self, Failure> {
        let registers = quoted::registers(&input::binary(quote, MAX_QUOTE_LEN as u64)?)?;
        let log = log.map(|path| input::binary(path, event_log::MAX_LOG_LEN as u64)).transpose()?;
        let configuration = config.map(|path| input::file(path, evidence::MAX_CONFIG as u64)).transpose()?;
        let shape = match &configuration {
            Some(bytes) => {
                let config = GuestConfig::parse(bytes.trim_ascii_end()).map_err(|error| {
                    Refusal::new(
                        "config_malformed",
                        "config",
                        error.to_string(),
                        "give the configuration exactly as the guest got it",
                    )
                })?;
                Some(config.shape.0)
            }
            None => None,
        };
        Ok(Self { registers, log, runtime: None, configuration, shape })
    }
}

/// Configurations with their names.
pub(crate) fn configurations(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    paths.iter().map(|path| Ok((path.display().to_string(), input::file(path, evidence::MAX_CONFIG as u64)?))).collect()
}

/// The machines whose ACPI files were published with this program, with the expected machine's address width where
/// their files do not depend on it.
pub(crate) fn published(expected: Option<&MachineShape>) -> Vec<AcpiReference> {
    let bits = expected.map(|shape| shape.facts().physical_bits);
    let mut all = Vec::new();
    for document in published::documents() {
        for machine in &document.machines {
            all.extend(machine.tables.iter().map(|tables| AcpiReference {
                qemu: document.qemu,
                vcpus: machine.vcpus,
                physical_bits:
                    bits.filter(|bits| tables.physical_bits.contains(*bits)).unwrap_or(tables.physical_bits.from),
                devices: document.devices.clone(),
                memory: tables.memory,
                loader: machine.loader,
                rsdp: machine.rsdp,
                tables: tables.sha384,
            }));
        }
    }
    all
}

const MAX_RELEASE: u64 = 16 << 20;
const MAX_POLICY: u64 = 64 << 10;
