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
    fn shape(self, qemu: &str) -> String {
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
        let scene = Unserved { programs, directory: directory.path(), image: &image, machines };
        let what = format!("{}: fetch, pack, encrypt", purpose.model().0);
        let (pack, model, weights) = report.step("model", &what, || scene.pack_model(&root, purpose))?;
        let pki = directory.path().join("pki");
        report.model_kib = weights / 1024;
        report.step("simulator", "keys of the simulated hardware", || {
            process::json("tdx-sim init", programs.command("tdx-sim").arg("init").arg("--pki").arg(&pki)).map(drop)
        })?;
        report.step("release", "expected registers, statement, signature, log, witness", || scene.release())?;
        let (service, service_address, service_spki) =
            report.step("service", "attestation service on loopback", || scene.serve(&model, &pki))?;
        let wire = Recorder::start(service_address.parse().context("the service's address")?)?;
        let service_address = wire.address().to_string();
        scene.write_client_policy(&model, &service_spki, &pki)?;
        Ok(Self {
            image,
            pack,
            model,
            pki,
            vsock_tool,
            source_date_epoch,
            service_spki,
            wire,
            service_address,
            _service: service,
            directory: directory.path().to_owned(),
            cleanup: Cell::new(Some(directory)),
        })
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
        let mut command = programs.command("attestation-service-sim");
        command
            .arg("--sim-root")
            .arg(self.root_certificate())
            .arg("--json")
            .args(["audit", "list", "--store"])
            .arg(self.store());
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

    fn store(&self) -> PathBuf {
        self.directory().join("store")
    }
}

/// The scene before its service runs.
struct Unserved<'a> {
    programs: &'a Programs,
    directory: &'a Path,
    image: &'a Path,
    machines: &'a [Machine],
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

    /// The publisher's part: registers for the shapes, statement, signature, log with a witness.
    fn release(&self) -> anyhow::Result<()> {
        let file = |name: &str| self.directory.join(name);
        for (kind, name) in [
            ("release", None),
            ("log", Some("demo.chrysalis.invalid/log")),
            ("witness", Some("demo.chrysalis.invalid/witness")),
        ] {
            let mut keygen = self.measure(&["keygen", "--kind", kind, "--out"], &file(&format!("{kind}.key")));
            keygen.args(name.map(|name| ["--name", name]).into_iter().flatten());
            process::json("measure release keygen", &mut keygen)?;
        }
        let mut create = self.measure(&["create", "--out"], &file("statement.json"));
        create.arg("--image").arg(self.image);
        let qemu = qemu_version()?;
        for machine in self.machines {
            let shape = file(&format!("shape-{}-{}.toml", machine.vcpus, machine.memory_mib));
            std::fs::write(&shape, machine.shape(&qemu)).context("shape")?;
            create.arg("--shape").arg(shape);
        }
        create.args(["--qemu", "qemu-system-x86_64"]);
        create.args([
            "--source-commit",
            &source_commit()?,
            "--rebuild",
            "cargo run -p image -- build --profile sim --out out",
        ]);
        process::json("measure release create", &mut create)?;
        let mut sign = self.measure(&["sign", "--statement"], &file("statement.json"));
        sign.arg("--key").arg(file("release.key")).arg("--out").arg(file("signed.json"));
        process::json("measure release sign", &mut sign)?;
        let mut publish = self.measure(&["publish", "--create", "--log"], &file("log"));
        publish.arg("--bundle").arg(file("signed.json")).arg("--key").arg(file("release.key.pub"));
        publish.arg("--log-key").arg(file("log.key")).arg("--witness-key").arg(file("witness.key"));
        publish.arg("--out").arg(file("release.sigstore.json"));
        process::json("measure release publish", &mut publish)?;
        let mut trust = self.measure(&["trust", "--threshold", "1", "--out"], &file("trust.json"));
        trust.arg("--key").arg(file("release.key.pub")).arg("--log-key").arg(file("log.key.pub"));
        trust.arg("--witness").arg(file("witness.key.pub"));
        process::json("measure release trust", &mut trust).map(drop)
    }

    fn measure(&self, arguments: &[&str], path: &Path) -> Command {
        let mut command = self.programs.command("measure");
        command.args(["release", "--json"]).args(arguments).arg(path);
        command
    }

    /// The model owner's part: a store with key, release and policy; then the service.
    fn serve(&self, model: &str, pki: &Path) -> anyhow::Result<(process::Background, String, String)> {
        let file = |name: &str| self.directory.join(name);
        let service = |arguments: &[&str]| {
            let mut command = self.programs.command("attestation-service-sim");
            command.arg("--sim-root").arg(pki.join("root.der")).arg("--json").args(arguments);
            command.arg("--store").arg(file("store"));
            command
        };
        let made = process::json("attestation-service init", &mut service(&["init"]))?;
        let spki = made.get("spki_sha256").and_then(Value::as_str).context("init: no spki_sha256")?.to_owned();
        let mut key = service(&["keys", "import", "--model", model, "--version", "1"]);
        process::json("attestation-service keys import", key.arg("--key").arg(file("model.key")))?;
        let mut release = service(&["releases", "import"]);
        release.arg("--bundle").arg(file("release.sigstore.json")).arg("--trust").arg(file("trust.json"));
        process::json("attestation-service releases import", &mut release)?;
        let mut serve = service(&["serve", "--listen", "127.0.0.1:0"]);
        serve.arg("--collateral").arg(pki.join("collateral.json")).arg("--ready-file").arg(file("service.addr"));
        let mut running = process::Background::start("attestation-service", &mut serve, &file("service.log"))?;
        let address = wait_for_address(&mut running, &file("service.addr"))?;
        Ok((running, address, spki))
    }

    fn write_client_policy(&self, model: &str, spki: &str, pki: &Path) -> anyhow::Result<()> {
        let (name, rest) = model.split_once('@').context("model name")?;
        let (revision, identity) = rest.split_once(':').context("model name")?;
        let policy = json!({
            "schema": "chrysalis/client-policy/v1",
            "appraisal": {
                "schema": "chrysalis/appraisal-policy/v1",
                "models": [{ "name": name, "revision": revision, "identity": identity }],
                "service_pins": [spki],
            },
            "release_trust": self.directory.join("trust.json"),
            "release_bundles": [self.directory.join("release.sigstore.json")],
            "collateral": [pki.join("collateral.json")],
        });
        std::fs::write(self.directory.join("client-policy.json"), policy.to_string()).context("client-policy.json")
    }
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

/// Commit of this tree; a tree without one is said to have none.
fn source_commit() -> anyhow::Result<String> {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace::root()?).output();
    let commit =
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    Ok(commit.unwrap_or_else(|| "0".repeat(40)))
}

fn qemu_version() -> anyhow::Result<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().context("qemu-system-x86_64")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.strip_prefix("QEMU emulator version ").context("QEMU does not say its version")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next().context("QEMU's version")?, numbers.next().context("QEMU's version")?);
    Ok(format!("{major}.{minor}"))
}
