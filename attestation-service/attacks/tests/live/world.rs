// SPDX-License-Identifier: Apache-2.0
//! What a case starts with: a simulated platform, a store that the program made, a published release.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use attacks::program::Program;
use attacks::wire::{Running, Store};
use release::{Hardware, Statement, Validity};
use tdx_sim::{Collateral, Fault, SimulatedPlatform};
use types::{Device, Document as _, MachineShape, QemuVersion, shape::ShapeFacts};

use crate::fake::{Mode, Pccs};
use crate::step::Issue;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) platform: Arc<SimulatedPlatform>,
    pub(crate) statement: Statement,
    /// Digest of the published release.
    pub(crate) release: Option<String>,
    pub(crate) service: Option<Running>,
    pub(crate) pccs: Option<Pccs>,
    made: u64,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        Self::of(None)
    }

    /// A world whose programs believe a maker of GPUs.
    pub(crate) fn with_gpu_roots(file: &Path) -> Result<Self> {
        Self::of(Some(file))
    }

    fn of(gpu_roots: Option<&Path>) -> Result<Self> {
        let made = now();
        let platform = Arc::new(SimulatedPlatform::generate(made)?);
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root.der");
        std::fs::write(&root, platform.root_der())?;
        let mut program = Program::new(env!("CARGO_BIN_EXE_attacks-service")).under(&root);
        if let Some(file) = gpu_roots {
            program = program.with_gpu_roots(file)?;
        }
        let store = Store::init_in(dir, &program)?;
        let statement = statement(made, Hardware::Simulated, None)?;
        let world = Self { store, platform, statement, release: None, service: None, pccs: None, made };
        world.issue(&Issue::default())?;
        Ok(world)
    }

    /// Publishes a release and imports it.
    pub(crate) fn publish(&mut self, hardware: Hardware, tcb: Option<&str>) -> Result<()> {
        self.statement = statement(self.made, hardware, tcb)?;
        let (bundle, trust) = sample_release::publish(&self.statement, self.made);
        let files = [self.file("bundle.json"), self.file("trust.json")];
        std::fs::write(&files[0], bundle)?;
        std::fs::write(&files[1], trust.to_canonical()?)?;
        let store = self.store.path();
        let arguments: Vec<std::ffi::OsString> = vec![
            "releases".into(),
            "import".into(),
            "--store".into(),
            store.into(),
            "--bundle".into(),
            files[0].clone().into(),
            "--trust".into(),
            files[1].clone().into(),
        ];
        let answer = self.store.program().call(arguments)?;
        ensure!(answer.code == 0, "releases import: {answer:?}");
        let digest = answer.document.get("digest").and_then(|digest| digest.as_str());
        self.release = Some(digest.context("releases import names no digest")?.to_owned());
        Ok(())
    }

    pub(crate) fn collateral(&self, issue: &Issue) -> Result<Collateral> {
        let fault = match &issue.fault {
            None => None,
            Some(name) => Some(fault(name)?),
        };
        let life = issue.seconds.unwrap_or(30 * 86_400);
        Ok(self.platform.collateral_lasting(now(), life, issue.number.unwrap_or(17), fault)?)
    }

    /// Writes the file of `serve --collateral`.
    pub(crate) fn issue(&self, issue: &Issue) -> Result<()> {
        Ok(std::fs::write(self.file("collateral.json"), self.collateral(issue)?.to_json())?)
    }

    pub(crate) fn set_pccs(&mut self, down: bool, issue: &Issue) -> Result<()> {
        let collateral = self.collateral(issue)?;
        match &self.pccs {
            None => self.pccs = Some(Pccs::start(collateral)),
            Some(pccs) => pccs.serve(collateral),
        }
        if let Some(pccs) = &self.pccs {
            pccs.set(if down { Mode::Down } else { Mode::Good });
        }
        Ok(())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.store.dir().join(name)
    }

    pub(crate) fn running(&self) -> Result<&Running> {
        self.service.as_ref().context("the service does not run")
    }
}

pub(crate) fn fault(name: &str) -> Result<Fault> {
    Fault::ALL.into_iter().find(|fault| fault.name() == name).with_context(|| format!("no fault is called {name}"))
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

pub(crate) fn shape(vcpus: u8, memory_mib: u32) -> Result<MachineShape> {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 10, minor: 1 };
    Ok(MachineShape::new(ShapeFacts { vcpus: vcpus.into(), memory_mib, physical_bits: 46, qemu, devices })?)
}

/// For two shapes, so that one may be claimed for the other.
fn statement(made: u64, hardware: Hardware, tcb: Option<&str>) -> Result<Statement> {
    let mut statement = sample_release::statement(hardware, &[shape(2, 1024)?, shape(4, 1024)?], made);
    statement.predicate.source_date_epoch = made.saturating_sub(10_000);
    let (not_before, not_after) = (made.saturating_sub(1000), made.saturating_add(30 * 86_400));
    statement.predicate.validity = Validity { not_before, not_after };
    if let Some(tcb) = tcb {
        statement.predicate.tcb_statuses.push(serde_json::from_value(tcb.into())?);
    }
    Ok(statement)
}
