// SPDX-License-Identifier: Apache-2.0
//! The service as a process, and requests for keys over TLS with a recorded quote in them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use attested_channel::Leaf;
use release_client::key_release_protocol::{ReleaseKeyPair, UnwrapErr};
use release_client::{Challenge, ClientError, ServiceConnection};
use tokio::net::TcpStream;
use types::{
    Base64, Blake3Digest, Document as _, Evidence, Freshness, FreshnessKind, GpuEvidence, Hex32, ModelId, Refusal,
    Role, Sha256Digest, TimeState,
};

use crate::program::Program;

/// A directory with a store that the program made, and a model's key in it.
pub struct Store {
    dir: tempfile::TempDir,
    program: Program,
    pin: Sha256Digest,
}

/// A service that listens on loopback. Killed when dropped.
pub struct Running {
    child: Child,
    address: SocketAddr,
    pin: Sha256Digest,
}

impl Store {
    /// `init` and `keys import`, by the program itself.
    ///
    /// # Errors
    /// Whatever it says.
    pub fn init(program: &Program) -> Result<Self> {
        Self::init_in(tempfile::tempdir()?, program)
    }

    /// [`Store::init`] in a directory that may have files already.
    ///
    /// # Errors
    /// Whatever the program says.
    pub fn init_in(dir: tempfile::TempDir, program: &Program) -> Result<Self> {
        let store = dir.path().join("store");
        let made = program.call([os("init"), os("--store"), store.clone().into()])?;
        let pin = made.document.get("spki_sha256").and_then(|pin| pin.as_str()).unwrap_or_default();
        let pin = pin.parse().ok().with_context(|| format!("init: {made:?}"))?;
        let key = dir.path().join("key");
        std::fs::write(&key, [7; 32])?;
        let this = Self { dir, program: program.clone(), pin };
        this.command(&["keys", "import", "--version", "1", "--model", &model()?.to_string()], &[("--key", &key)])?;
        Ok(this)
    }

    /// Where the store, the key and whatever a test adds are; it vanishes with this.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// SHA-256 of the service's key, which guests pin.
    #[must_use]
    pub const fn pin(&self) -> Sha256Digest {
        self.pin
    }

    /// The program that made it.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Calls a command beside the service; it must succeed.
    ///
    /// # Errors
    /// Another exit code than 0.
    pub fn command(&self, words: &[&str], files: &[(&str, &Path)]) -> Result<()> {
        let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments.extend([os("--store"), self.path().into()]);
        arguments.extend(files.iter().flat_map(|(flag, file)| [os(flag), file.into()]));
        let answer = self.program.call(arguments)?;
        ensure!(answer.code == 0, "{words:?}: {answer:?}");
        Ok(())
    }

    /// Puts the policy of a file in force, or the one that accepts any release.
    ///
    /// # Errors
    /// The program refuses it.
    pub fn set_policy(&self, file: Option<&Path>) -> Result<()> {
        let any = self.dir.path().join("any.json");
        std::fs::write(&any, ANY_POLICY)?;
        self.command(&["policy", "set"], &[("--file", file.unwrap_or(&any))])
    }

    /// Starts `serve` with these collateral files and more arguments, and waits until it listens.
    ///
    /// # Errors
    /// It ended before, or does not listen for a minute.
    pub fn serve(&self, collateral: &[PathBuf], more: &[OsString]) -> Result<Running> {
        let ready = self.dir.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let log = self.dir.path().join("log");
        let mut command = self.program.command();
        command.arg("serve").arg("--store").arg(self.path()).arg("--listen").arg("127.0.0.1:0");
        command.arg("--ready-file").arg(&ready).arg("--client-rate").arg("1000000").args(more);
        command.args(collateral.iter().flat_map(|file| [os("--collateral"), file.into()]));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let child = command.spawn().context("the service")?;
        let mut running = Running { child, address: ([127, 0, 0, 1], 0).into(), pin: self.pin };
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                running.address = text.parse().context("the ready file")?;
                return Ok(running);
            }
            if let Some(status) = running.child.try_wait()? {
                bail!("the service ended ({status}): {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            ensure!(started.elapsed() < Duration::from_secs(60), "the service does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The store's own directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }
}

impl Running {
    /// A connection whose service has the pinned key.
    ///
    /// # Errors
    /// No connection, or another key.
    pub async fn connect(&self) -> Result<ServiceConnection> {
        let stream = TcpStream::connect(self.address).await?;
        Ok(ServiceConnection::connect(stream, self.pin).await?)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ended by itself, asked before.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(mut self) -> Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// Asks for a key with this quote, in a document that is otherwise as it should be.
    ///
    /// # Errors
    /// Anything but a refusal with reasons: no answer, or even a key.
    pub fn refusals(&self, quote: &[u8]) -> Result<Vec<Refusal>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut connection = self.connect().await?;
            let challenge = connection.challenge().await?;
            let key = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
            let evidence = evidence(quote, &challenge, key.public())?;
            match connection.release(challenge, &model()?, evidence, key).await {
                Err(ClientError::Refused(reasons)) => Ok(reasons),
                Err(other) => Err(other.into()),
                Ok(_) => bail!("a key was released"),
            }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Evidence for this connection, but with a quote that was made for another.
fn evidence(quote: &[u8], challenge: &Challenge, hpke_key: &Hex32) -> Result<Vec<u8>> {
    let kind = FreshnessKind::KeyRelease;
    let (role, challenge, binding) = (Role::Inference, *challenge.challenge(), *challenge.binding());
    let leaf = Leaf { kind, role, challenge, binding };
    let evidence = Evidence {
        schema: Evidence::SCHEMA.to_owned(),
        role,
        quote: Base64::default(),
        spki_sha256: Sha256Digest::ZERO,
        instance_key: Hex32::default(),
        hpke_key: *hpke_key,
        gpu: GpuEvidence::NONE,
        receipt_head: Sha256Digest::ZERO,
        receipt_count: 0,
        freshness: Freshness { kind, tree_size: 1, root: leaf.hash() },
        events: Vec::new(),
        firmware_log: None,
        guest_config: Base64::default(),
        time: TimeState { floor: 0, attested: None },
    };
    // A quote may be larger than a document takes.
    let mut tree = serde_json::to_value(&evidence)?;
    let quote = serde_json::to_value(Base64::<{ 1 << 20 }>::new(quote.to_vec()).context("too large for a test")?)?;
    if let Some(fields) = tree.as_object_mut() {
        fields.insert("quote".to_owned(), quote);
    }
    Ok(types::canonical::to_bytes(&tree)?)
}

/// The model whose key the store has.
///
/// # Errors
/// Never with this name.
pub fn model() -> Result<ModelId> {
    Ok(ModelId::new("model", "1", Blake3Digest::of(b"manifest"))?)
}

fn os(text: &str) -> OsString {
    text.into()
}

const ANY_POLICY: &str = r#"{"schema":"chrysalis/appraisal-policy/v1"}"#;
