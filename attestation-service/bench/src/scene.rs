// SPDX-License-Identifier: Apache-2.0
//! Everything on disk that a service starts from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use attestation_service::Identity;
use key_release::ModelKey;
use release::{Hardware, Statement, Validity, VerifiedRelease};
use store::{InitOptions, Location, OpenOptions, PostgresSettings, Store};
use tdx_sim::SimulatedPlatform;
use types::{Blake3Digest, Device, Document as _, MachineShape, ModelId, QemuVersion, Sha256Digest, shape::ShapeFacts};

/// A store with a key and a release, and the platform whose guests may have the key.
pub struct Scene {
    dir: tempfile::TempDir,
    /// The address of the store's database server; a directory where there is none.
    database: Option<String>,
    /// Seconds since 1970 at which it was made.
    pub made: u64,
    /// The simulated hardware.
    pub platform: Arc<SimulatedPlatform>,
    /// The service's key; programs take it from the store.
    pub identity: Identity,
    /// The release that guests run.
    pub statement: Statement,
}

impl Scene {
    /// Makes it in a directory that vanishes with it, under `parent`.
    ///
    /// # Errors
    /// Whatever the parts say.
    pub fn new_in(parent: &Path) -> anyhow::Result<Self> {
        Self::new_on(parent, None)
    }

    /// The same with the store in the database server at this address.
    ///
    /// # Errors
    /// Whatever the parts say.
    pub fn new_on(parent: &Path, database: Option<String>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent)?;
        let made = now();
        let platform = Arc::new(SimulatedPlatform::generate(made)?);
        let identity = Identity::generate()?;
        let statement = statement(made)?;
        let scene = Self { dir, database, made, platform, identity, statement };
        let kek = scene.database.is_some().then(|| scene.kek().into());
        Store::init(scene.location()?, &InitOptions { audit_origin: "bench.invalid/audit".to_owned(), kek })?;
        let store = scene.beside()?;
        scene.identity.save(&store)?;
        store.import_key(&model()?, 1, &ModelKey::new(KEY))?;
        let (bundle, trust) = sample_release::publish(&scene.statement, made);
        let verified = VerifiedRelease::verify(&bundle, &trust, made)?;
        store.set_policy(&format!("release-trust:{}", verified.digest()), &trust.to_canonical()?)?;
        store.import_release(&bundle, &verified)?;
        std::fs::write(scene.root(), scene.platform.root_der())?;
        std::fs::write(scene.collateral(), scene.platform.collateral(made, None)?.to_json())?;
        Ok(scene)
    }

    /// The store, opened as administration beside a service does.
    ///
    /// # Errors
    /// [`store::OpenError`].
    pub fn beside(&self) -> anyhow::Result<Store> {
        let kek = self.database.is_some().then(|| self.kek().into());
        let options = OpenOptions { kek, sequencer: false, ..OpenOptions::default() };
        Store::open_with(self.location()?, &options).context("the store")
    }

    /// `--store` and `--kek`, as programs take them.
    #[must_use]
    pub fn store_arguments(&self) -> Vec<OsString> {
        match &self.database {
            None => vec!["--store".into(), self.store_dir().into()],
            Some(url) => {
                vec!["--store".into(), url.into(), "--kek".into(), format!("file:{}", self.kek().display()).into()]
            }
        }
    }

    fn location(&self) -> anyhow::Result<Location> {
        Ok(match &self.database {
            None => Location::Directory(self.store_dir()),
            Some(url) => PostgresSettings::parse(url, None)?.into(),
        })
    }

    /// The key-wrapping key of a store in a database server.
    fn kek(&self) -> PathBuf {
        self.dir().join("kek")
    }

    /// What guests pin.
    #[must_use]
    pub fn pin(&self) -> Sha256Digest {
        self.identity.spki_sha256()
    }

    /// Where everything is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store's directory.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.dir().join("store")
    }

    /// The simulated root's file.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir().join("root.der")
    }

    /// Good collateral for the platform.
    #[must_use]
    pub fn collateral(&self) -> PathBuf {
        self.dir().join("collateral.json")
    }
}

/// Seconds since 1970 by this machine's clock.
#[must_use]
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The model whose key the service holds.
///
/// # Errors
/// Never with this name.
pub fn model() -> anyhow::Result<ModelId> {
    Ok(ModelId::new("model", "1", Blake3Digest::of(b"manifest"))?)
}

pub(crate) fn shape() -> anyhow::Result<MachineShape> {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 10, minor: 1 };
    Ok(MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: 1024, physical_bits: 46, qemu, devices })?)
}

fn statement(made: u64) -> anyhow::Result<Statement> {
    let mut statement = sample_release::statement(Hardware::Simulated, &[shape()?], made);
    statement.predicate.source_date_epoch = made.saturating_sub(1000);
    statement.predicate.validity =
        Validity { not_before: made.saturating_sub(1000), not_after: made.saturating_mul(2) };
    Ok(statement)
}

/// The model's key.
pub const KEY: [u8; 32] = [0x42; 32];
