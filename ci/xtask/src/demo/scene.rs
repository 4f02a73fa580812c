// SPDX-License-Identifier: Apache-2.0
//! Everything before the first boot: image, model, keys, release, service. Keys of the demo are thrown away.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{process, workspace};

use super::programs::Programs;
use super::publisher::Publisher;
use super::recorder::Recorder;
use super::report::Report;

/// Most bytes of kernel and initrd.
const MAX_IMAGE: u64 = 40 << 20;
/// What the simulator measured of the first launch.
pub(crate) const MEASURED: &str = "measured.json";

/// What the guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Answers in words.
    Answers,
    /// Vectors of texts.
    Vectors,
}

impl Purpose {
    /// Name and revision of its model.
    const fn model(self) -> (&'static str, &'static str) {
        match self {
            Self::Answers => ("smollm2-135m-instruct", "q4_1"),
            Self::Vectors => ("all-minilm-l6-v2", "f32"),
        }
    }

    /// Tokens of its context. An emulated processor is slow with vectors, and computes one of a text this long when it loads
    /// the model: with 512 tokens that takes two minutes.
    const fn context_tokens(self) -> u32 {
        match self {
            Self::Answers => 512,
            Self::Vectors => 64,
        }
    }

    /// The model as it is published: one file, or a directory of files.
    fn files(self, programs: &Programs, root: &Path) -> anyhow::Result<PathBuf> {
        let (subcommand, field) = match self {
            Self::Answers => ("model", "weights"),
            Self::Vectors => ("embedding-model", "directory"),
        };
        let paths = process::json_with_progress("model", programs.image(root).arg(subcommand))?;
        path_in(&paths, field)
    }
}

/// A guest's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) vcpus: u16,
    pub(crate) memory_mib: u32,
}

impl Machine {
    /// That of the demo: small, since it is emulated.
    pub(crate) const DEMO: Self = Self { vcpus: 2, memory_mib: 1024 };

    /// For the host agent.
    pub(crate) fn arguments(self) -> [String; 6] {
        let Self { vcpus, memory_mib } = self;
        ["--vcpus", &vcpus.to_string(), "--memory-mib", &memory_mib.to_string(), "--physical-bits", "40"]
            .map(str::to_owned)
    }

    /// For a release.
    pub(super) fn shape(self, qemu: &str) -> String {
        let Self { vcpus, memory_mib } = self;
        format!(
            "vcpus = {vcpus}\nmemory_mib = {memory_mib}\nphysical_bits = 40\nqemu = \"{qemu}\"\n\
             devices = [\"config-disk\", \"model-disk\", \"network\", \"vsock\"]\n"
        )
    }
}

/// What a launch needs.
pub(crate) struct Scene {
    directory: PathBuf,
    /// Removes the directory at the end, unless it is kept.
    cleanup: Cell<Option<TempDir>>,
    pub(crate) image: PathBuf,
    pub(crate) pack: PathBuf,
    pub(crate) model: String,
    pub(crate) context_tokens: u32,
    pub(crate) pki: PathBuf,
    pub(crate) vsock_tool: PathBuf,
    /// `SOURCE_DATE_EPOCH` of the image.
    source_date_epoch: u64,
    pub(crate) service_spki: String,
    /// Passes on what guests and the service say to each other.
    wire: Recorder,
    service_address: String,
    _service: process::Background,
}

impl Scene {
    /// Builds and starts all of it.
    ///
    /// The release is good for `machines`.
    pub(crate) fn prepare(
        programs: &Programs,
        report: &mut Report,
        machines: &[Machine],
        purpose: Purpose,
    ) -> anyhow::Result<Self> {
        let root = workspace::root()?;
        let directory = tempfile::Builder::new().prefix("chrysalis-").tempdir().context("temporary directory")?;
        // An image of this run's own: another run may build another one at the same time.
        let image = directory.path().join("image");
        let built = report.step("image", "kernel, guest programs, firmware (cold: about 20 minutes)", || {
            process::json_with_progress(
                "image",
                programs.image(&root).args(["build", "--profile", "sim", "--out"]).arg(&image),
            )
        })?;
        note_image(&built, report)?;
        let source_date_epoch =
            built.pointer("/image/source_date_epoch").and_then(Value::as_u64).context("image: no source_date_epoch")?;
        let vsock_tool = report.step("host tool", "vhost-device-vsock", || {
            let paths = process::json_with_progress("host tool", programs.image(&root).arg("host-tool"))?;
            path_in(&paths, "vhost_device_vsock")
        })?;
        let scene = Unserved { programs, directory: directory.path() };
        let what = format!("{}: fetch, pack, encrypt", purpose.model().0);
        let (pack, model, weights) = report.step("model", &what, || scene.pack_model(&root, purpose))?;
        let pki = directory.path().join("pki");
        report.model_kib = weights / 1024;
        report.step("simulator", "keys of the simulated hardware", || {
            process::json("tdx-sim init", programs.command("tdx-sim").arg("init").arg("--pki").arg(&pki)).map(drop)
        })?;
        let publisher = Publisher { programs, directory: directory.path(), machines };
        let bundle = report.step("release", "expected registers, statement, signature, log, witness", || {
            publisher.begin().and_then(|()| publisher.publish("release", &image))
        })?;
        let (service, service_address, service_spki) =
            report.step("service", "attestation service on loopback", || scene.serve(&model, &pki, &bundle))?;
        let wire = Recorder::start(service_address.parse().context("the service's address")?)?;
        let service_address = wire.address().to_string();
        let scene = Self {
            image,
            pack,
            model,
            context_tokens: purpose.context_tokens(),
            pki,
            vsock_tool,
            source_date_epoch,
            service_spki,
            wire,
            service_address,
            _service: service,
            directory: directory.path().to_owned(),
            cleanup: Cell::new(Some(directory)),
        };
        scene.write_client_policy(&[bundle])?;
        Ok(scene)
    }

    /// Where this run keeps its files; removed with it.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves the run's files where they are, without the model's key.
    pub(crate) fn keep(&self) -> &Path {
        let _ = std::fs::remove_file(self.directory.join("model.key"));
        if let Some(directory) = self.cleanup.take() {
            let _ = directory.keep();
        }
        &self.directory
    }

    /// What guests and the service said to each other, as the host sees it.
    pub(crate) fn wire(&self) -> Vec<Vec<u8>> {
        self.wire.taken()
    }

    /// Where the service is reached.
    pub(crate) fn service_address(&self) -> &str {
        &self.service_address
    }

    /// The model's label for requests.
    pub(crate) fn model_name(&self) -> &str {
        &self.model
    }

    /// The simulator's root certificate.
    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.pki.join("root.der")
    }

    /// Keeps what the simulator measured of the first launch, for the replay.
    pub(crate) fn keep_measured(&self, measured: &Value) -> anyhow::Result<()> {
        std::fs::write(self.directory().join(MEASURED), measured.to_string()).context(MEASURED)
    }

    /// What the client demands of a guest.
    pub(crate) fn client_policy(&self) -> PathBuf {
        self.directory().join("client-policy.json")
    }

    /// Entries of the service's audit log so far.
    pub(crate) fn audit_entries(&self, programs: &Programs) -> anyhow::Result<Vec<Value>> {
        let mut command = administer(programs, &self.directory, &self.pki, &["audit", "list"]);
        let list = process::json("audit list", &mut command)?;
        list.get("entries").and_then(Value::as_array).cloned().context("audit list: no entries")
    }

    /// Shows the audit entry that released the key.
    pub(crate) fn show_release_decision(&self, programs: &Programs, report: &mut Report) -> anyhow::Result<()> {
        report.title("release decision (hardware simulated)");
        let entries = self.audit_entries(programs)?;
        let authorised =
            |entry: &&Value| entry.pointer("/entry/decision").and_then(Value::as_str) == Some("authorised");
        let decision = entries.iter().find(authorised).context("the audit log has no release")?;
        let index = decision.get("index").and_then(Value::as_u64).context("an audit entry without index")?;
        report.line(&format!("✓ authorised, audit log index {index}"));
        for name in ["release", "evidence"] {
            let value = decision.pointer(&format!("/entry/{name}")).and_then(Value::as_str).unwrap_or_default();
            report.line(&format!("  {name:<9} {value}"));
        }
        report.decision = Some(decision.clone());
        Ok(())
    }

    /// A command that redeems one challenge twice, as a stand-in for a guest.
    pub(crate) fn replay_probe(&self, programs: &Programs) -> anyhow::Result<Command> {
        let mut command = programs.command("replay-probe");
        command
            .arg("--pki")
            .arg(&self.pki)
            .args(["--service", &self.service_address, "--service-spki", &self.service_spki])
            .args(["--model", &self.model, "--floor", &self.source_date_epoch.to_string()])
            .arg("--config-disk")
            .arg(self.directory().join("guest/config.disk"))
            .arg("--measured")
            .arg(self.directory().join(MEASURED));
        Ok(command)
    }

    /// Has the service release keys to guests of one more release.
    pub(crate) fn import_release(&self, programs: &Programs, bundle: &Path) -> anyhow::Result<()> {
        let mut command = administer(programs, &self.directory, &self.pki, &["releases", "import"]);
        command.arg("--bundle").arg(bundle).arg("--trust").arg(self.directory.join("trust.json"));
        process::json("attestation-service releases import", &mut command).map(drop)
    }

    /// Has clients that start from now on accept guests of these releases.
    pub(crate) fn write_client_policy(&self, bundles: &[PathBuf]) -> anyhow::Result<()> {
        let (name, rest) = self.model.split_once('@').context("model name")?;
        let (revision, identity) = rest.split_once(':').context("model name")?;
        let policy = json!({
            "schema": "chrysalis/client-policy/v1",
            "appraisal": {
                "schema": "chrysalis/appraisal-policy/v1",
                "models": [{ "name": name, "revision": revision, "identity": identity }],
                "service_pins": [self.service_spki],
            },
            "release_trust": self.directory.join("trust.json"),
            "release_bundles": bundles,
            "collateral": [self.pki.join("collateral.json")],
        });
        std::fs::write(self.client_policy(), policy.to_string()).context("client-policy.json")
    }
}

/// The scene before its service runs.
struct Unserved<'a> {
    programs: &'a Programs,
    directory: &'a Path,
}

impl Unserved<'_> {
    /// The pack, the model's name, and the bytes of its weights.
    fn pack_model(&self, root: &Path, purpose: Purpose) -> anyhow::Result<(PathBuf, String, u64)> {
        let (files, pack, (name, revision)) =
            (purpose.files(self.programs, root)?, self.directory.join("pack"), purpose.model());
        let mut command = self.programs.command("model");
        command
            .args(["--json", "pack", "--name", name, "--revision", revision, "--in"])
            .arg(&files)
            .arg("--new-key")
            .arg(self.directory.join("model.key"))
            .arg("--out")
            .arg(&pack);
        let packed = process::json_with_progress("model pack", &mut command)?;
        let model = packed.get("model").and_then(Value::as_str).context("model pack: no name")?.to_owned();
        Ok((pack, model, size(&files)?))
    }

    /// The model owner's part: a store with key, release and policy; then the service.
    fn serve(&self, model: &str, pki: &Path, bundle: &Path) -> anyhow::Result<(process::Background, String, String)> {
        let file = |name: &str| self.directory.join(name);
        let service = |arguments: &[&str]| administer(self.programs, self.directory, pki, arguments);
        let made = process::json("attestation-service init", &mut service(&["init"]))?;
        let spki = made.get("spki_sha256").and_then(Value::as_str).context("init: no spki_sha256")?.to_owned();
        let mut key = service(&["keys", "import", "--model", model, "--version", "1"]);
        process::json("attestation-service keys import", key.arg("--key").arg(file("model.key")))?;
        let mut release = service(&["releases", "import"]);
        release.arg("--bundle").arg(bundle).arg("--trust").arg(file("trust.json"));
        process::json("attestation-service releases import", &mut release)?;
        let mut serve = service(&["serve", "--listen", "127.0.0.1:0"]);
        serve.arg("--collateral").arg(pki.join("collateral.json")).arg("--ready-file").arg(file("service.addr"));
        let mut running = process::Background::start("attestation-service", &mut serve, &file("service.log"))?;
        let address = wait_for_address(&mut running, &file("service.addr"))?;
        Ok((running, address, spki))
    }
}

/// A command of the attestation service's operator on the scene's store.
fn administer(programs: &Programs, directory: &Path, pki: &Path, arguments: &[&str]) -> Command {
    let mut command = programs.command("attestation-service-sim");
    command.arg("--sim-root").arg(pki.join("root.der")).arg("--json").args(arguments);
    command.arg("--store").arg(directory.join("store"));
    command
}

fn wait_for_address(service: &mut process::Background, path: &Path) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        process::check_interrupt()?;
        if let Ok(text) = std::fs::read_to_string(path)
            && !text.trim().is_empty()
        {
            return Ok(text.trim().to_owned());
        }
        anyhow::ensure!(
            service.alive() && start.elapsed() < Duration::from_secs(30),
            "the service did not start: see service.log"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn note_image(built: &Value, report: &mut Report) -> anyhow::Result<()> {
    let files = built.pointer("/image/files").and_then(Value::as_array).context("image: no files")?;
    let size = |name: &str| {
        let file = files.iter().find(|f| f.get("name").and_then(Value::as_str) == Some(name));
        file.and_then(|f| f.get("size")).and_then(Value::as_u64).unwrap_or_default()
    };
    let bytes = size("vmlinuz") + size("initrd");
    report.line(&format!("kernel {} KiB, initrd {} KiB", size("vmlinuz") / 1024, size("initrd") / 1024));
    anyhow::ensure!(bytes <= MAX_IMAGE, "kernel and initrd have {bytes} bytes, more than {MAX_IMAGE}");
    report.image = Some(json!({ "kernel_and_initrd_bytes": bytes, "files": files }));
    Ok(())
}

/// Bytes of a file, or of all files below a directory.
fn size(path: &Path) -> anyhow::Result<u64> {
    let metadata = std::fs::metadata(path).context("the model's files")?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path).context("the model's files")? {
        sum += size(&entry?.path())?;
    }
    Ok(sum)
}

fn path_in(document: &Value, name: &str) -> anyhow::Result<PathBuf> {
    document.get(name).and_then(Value::as_str).map(PathBuf::from).with_context(|| format!("no path {name}"))
}
