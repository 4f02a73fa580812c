// SPDX-License-Identifier: Apache-2.0
//! The publisher's part: keys, statements about images, a log with a witness, and whom to trust.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::programs::Programs;
use super::scene::Machine;
use crate::{process, workspace};

/// Publishes releases of images for some machines; its files are in one directory.
pub(crate) struct Publisher<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) directory: &'a Path,
    pub(crate) machines: &'a [Machine],
}

impl Publisher<'_> {
    /// Makes its keys, and the document that says whom to trust.
    pub(crate) fn begin(&self) -> anyhow::Result<()> {
        for (kind, name) in [
            ("release", None),
            ("log", Some("demo.chrysalis.invalid/log")),
            ("witness", Some("demo.chrysalis.invalid/witness")),
        ] {
            let mut keygen = self.measure(&["keygen", "--kind", kind, "--out"], &self.file(&format!("{kind}.key")));
            keygen.args(name.map(|name| ["--name", name]).into_iter().flatten());
            process::json("measure release keygen", &mut keygen)?;
        }
        let mut trust = self.measure(&["trust", "--threshold", "1", "--out"], &self.trust());
        trust.arg("--key").arg(self.file("release.key.pub")).arg("--log-key").arg(self.file("log.key.pub"));
        trust.arg("--witness").arg(self.file("witness.key.pub"));
        process::json("measure release trust", &mut trust).map(drop)
    }

    /// Computes the registers of an image for the machines, signs, logs; gives the bundle `NAME.sigstore.json`.
    pub(crate) fn publish(&self, name: &str, image: &Path) -> anyhow::Result<PathBuf> {
        let (statement, signed) =
            (self.file(&format!("{name}-statement.json")), self.file(&format!("{name}-signed.json")));
        let bundle = self.file(&format!("{name}.sigstore.json"));
        let mut create = self.measure(&["create", "--out"], &statement);
        create.arg("--image").arg(image);
        let qemu = qemu_version()?;
        for machine in self.machines {
            let shape = self.file(&format!("shape-{}-{}.toml", machine.vcpus, machine.memory_mib));
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
        let mut sign = self.measure(&["sign", "--statement"], &statement);
        sign.arg("--key").arg(self.file("release.key")).arg("--out").arg(&signed);
        process::json("measure release sign", &mut sign)?;
        let log = self.file("log");
        let mut publish = self.measure(&["publish", "--log"], &log);
        publish.args((!log.exists()).then_some("--create"));
        publish.arg("--bundle").arg(signed).arg("--key").arg(self.file("release.key.pub"));
        publish.arg("--log-key").arg(self.file("log.key")).arg("--witness-key").arg(self.file("witness.key"));
        process::json("measure release publish", publish.arg("--out").arg(&bundle))?;
        Ok(bundle)
    }

    /// Whom to trust.
    pub(crate) fn trust(&self) -> PathBuf {
        self.file("trust.json")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn measure(&self, arguments: &[&str], path: &Path) -> Command {
        let mut command = self.programs.command("measure");
        command.args(["release", "--json"]).args(arguments).arg(path);
        command
    }
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
