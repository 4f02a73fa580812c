// SPDX-License-Identifier: Apache-2.0
//! Releases on this host: verified, and kept as copies that only the daemon writes to.
//!
//! A guest is launched from the copy: what an administrator does to the published files meanwhile changes nothing that
//! runs, and the release before an upgrade is still there to go back to. The copy is verified anew before every launch.
//! This protects the provider from launching what nobody will talk to; it is no part of what clients rely on.

use std::fs::{self, DirBuilder, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use release::{Hardware, TrustPolicy, VerifiedRelease};
use sha2::Digest as _;
use types::{Refusal, Sha256Digest};

use super::config::ReleaseSection;
use crate::files;

/// A release whose bundle and files were verified.
#[derive(Debug)]
pub(crate) struct CheckedRelease {
    verified: VerifiedRelease,
    bundle: Vec<u8>,
    trust: Vec<u8>,
    image: PathBuf,
}

impl CheckedRelease {
    /// Verifies bundle and files of `[releases.NAME]`.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn check(name: &str, section: &ReleaseSection, simulated: bool, now: u64) -> Result<Self, Vec<Refusal>> {
        let field = |part: &str| format!("releases.{name}.{part}");
        let read = |part: &str, path: &Path, most| read(&field(part), path, most).map_err(|reason| vec![reason]);
        let bundle = read("bundle", &section.bundle, MAX_BUNDLE)?;
        let trust = read("trust", &section.trust, MAX_TRUST)?;
        let verified = verify(&format!("releases.{name}"), &bundle, &trust, now)?;
        let needed = if simulated { Hardware::Simulated } else { Hardware::Tdx };
        let mut reasons = Vec::new();
        if verified.values().hardware != needed {
            reasons.push(Refusal::new(
                "release_hardware",
                &field("bundle"),
                format!("the release is for {:?}, this host launches for {needed:?}", verified.values().hardware),
                "take the release for this hardware; [simulate] is for rehearsals alone",
            ));
        }
        reasons.extend(check_image(&field("image"), &section.image, &verified));
        if reasons.is_empty() {
            Ok(Self { verified, bundle, trust, image: section.image.clone() })
        } else {
            Err(reasons)
        }
    }

    pub(crate) const fn digest(&self) -> &Sha256Digest {
        self.verified.digest()
    }

    /// Copies the release below `releases`, unless it is there. Gives the copy's directory.
    pub(crate) fn stage(&self, releases: &Path) -> Result<PathBuf, Vec<Refusal>> {
        let place = staged(releases, self.digest());
        // Several guests of one release are composed at the same time.
        let _alone = STAGING.lock().unwrap_or_else(PoisonError::into_inner);
        if !check_image("release", &place, &self.verified).is_empty() {
            self.copy(releases, &place).map_err(|error| vec![not_copied(&place, &error)])?;
            let reasons = check_image("release", &place, &self.verified);
            if !reasons.is_empty() {
                return Err(reasons);
            }
        }
        let write = |name: &str, bytes: &[u8]| files::write_atomically(&place.join(name), bytes);
        write(BUNDLE, &self.bundle)
            .and_then(|()| write(TRUST, &self.trust))
            .map_err(|error| vec![not_copied(&place, &std::io::Error::other(format!("{error:#}")))])?;
        Ok(place)
    }

    fn copy(&self, releases: &Path, place: &Path) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(releases)?;
        let new = releases.join(format!(".new-{}", self.digest()));
        let _ = fs::remove_dir_all(&new);
        DirBuilder::new().mode(0o700).create(&new)?;
        let copy = |name: &str| -> std::io::Result<()> {
            fs::copy(self.image.join(name), new.join(name))?;
            File::open(new.join(name))?.sync_all()
        };
        for (name, _) in boot_files(&self.verified) {
            copy(name)?;
        }
        fs::write(new.join(COMMAND_LINE), &self.verified.values().image.command_line)?;
        if self.image.join(LIST).is_file() {
            copy(LIST)?;
        }
        let _ = fs::remove_dir_all(place);
        fs::rename(&new, place)?;
        File::open(releases)?.sync_all()
    }
}

/// Where the copy of a release is.
pub(crate) fn staged(releases: &Path, digest: &Sha256Digest) -> PathBuf {
    releases.join(digest.to_string())
}

/// Verifies a copy: its bundle, and its files.
pub(crate) fn verify_staged(place: &Path, now: u64) -> Result<VerifiedRelease, Vec<Refusal>> {
    let bundle = read("release.bundle", &place.join(BUNDLE), MAX_BUNDLE).map_err(|reason| vec![reason])?;
    let trust = read("release.trust", &place.join(TRUST), MAX_TRUST).map_err(|reason| vec![reason])?;
    let verified = verify("release", &bundle, &trust, now)?;
    let reasons = check_image("release.image", place, &verified);
    if reasons.is_empty() { Ok(verified) } else { Err(reasons) }
}

fn verify(path: &str, bundle: &[u8], trust: &[u8], now: u64) -> Result<VerifiedRelease, Vec<Refusal>> {
    let policy = TrustPolicy::parse(trust).map_err(|error| {
        let fix = "write it with `measure release trust`";
        vec![Refusal::new("release_policy_malformed", &format!("{path}.trust"), error.to_string(), fix)]
    })?;
    VerifiedRelease::verify(bundle, &policy, now).map_err(|error| {
        let mut reason = error.refusal();
        reason.field = format!("{path}.bundle: {}", reason.field);
        vec![reason]
    })
}

/// Compares the files of a directory with those that the release names.
fn check_image(field: &str, image: &Path, release: &VerifiedRelease) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    let mut refuse = |detail: String| {
        let fix = "fetch all files of this release again";
        reasons.push(Refusal::new("release_image_mismatch", field, detail, fix));
    };
    for (name, expected) in boot_files(release) {
        let path = image.join(name);
        match digest(&path) {
            Ok(found) if found == *expected => {}
            Ok(found) => refuse(format!("{} has the digest {found}, the release says {expected}", path.display())),
            Err(error) => refuse(format!("{}: {error}", path.display())),
        }
    }
    let line = files::read_capped(&image.join(COMMAND_LINE), 4096).unwrap_or_default();
    if line != release.values().image.command_line.as_bytes() {
        refuse(format!("{} is not the release's command line", image.join(COMMAND_LINE).display()));
    }
    let names_root = boot_files(release).any(|(name, _)| name == ROOT);
    if !names_root && image.join(ROOT).exists() {
        refuse(format!("{} has a file {ROOT} that the release does not name", image.display()));
    }
    reasons
}

/// What is booted, by name and digest.
fn boot_files(release: &VerifiedRelease) -> impl Iterator<Item = (&str, &Sha256Digest)> {
    let components = &release.values().components;
    let three = [
        ("firmware.fd", &components.firmware.sha256),
        ("vmlinuz", &components.kernel.sha256),
        ("initrd", &components.initrd.sha256),
    ];
    let root = release.statement().subject.iter().filter(|subject| subject.name == ROOT);
    three.into_iter().chain(root.map(|subject| (ROOT, &subject.digest.sha256)))
}

fn digest(path: &Path) -> std::io::Result<Sha256Digest> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, sha2::Sha256::new(), vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(Sha256Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
}

fn read(field: &str, path: &Path, most: usize) -> Result<Vec<u8>, Refusal> {
    files::read_capped(path, most).map_err(|error| {
        Refusal::new("release_unreadable", field, format!("{error:#}"), "name a file that the agent can read")
    })
}

fn not_copied(place: &Path, error: &std::io::Error) -> Refusal {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let code = if full { "disk_full" } else { "release_not_copied" };
    let detail = format!("{}: {error}", place.display());
    Refusal::new(code, "agent.state_dir", detail, "make room and check the rights of this directory")
}

static STAGING: Mutex<()> = Mutex::new(());
const BUNDLE: &str = "bundle.json";
const TRUST: &str = "trust.json";
const COMMAND_LINE: &str = "cmdline";
const LIST: &str = "image.json";
const ROOT: &str = "rootfs";
const MAX_BUNDLE: usize = 4 << 20;
const MAX_TRUST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use types::{Document as _, MachineShape};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn shape() -> MachineShape {
        let shape = r#"{"vcpus":2,"memory_mib":1024,"physical_bits":40,"qemu":"10.1","devices":["config-disk","model-disk","network","vsock"]}"#;
        serde_json::from_str(shape).unwrap()
    }

    fn published(directory: &Path) -> ReleaseSection {
        let statement = sample_release::statement(Hardware::Simulated, &[shape()], NOW);
        let (bundle, trust) = sample_release::publish(&statement, NOW);
        let section = ReleaseSection {
            bundle: directory.join("bundle"),
            trust: directory.join("trust"),
            image: directory.join("image"),
        };
        fs::write(&section.bundle, bundle).unwrap();
        fs::write(&section.trust, trust.to_canonical().unwrap()).unwrap();
        fs::create_dir(&section.image).unwrap();
        for (name, bytes) in [
            ("firmware.fd", sample_release::files::firmware()),
            ("vmlinuz", sample_release::files::kernel()),
            ("initrd", sample_release::files::initrd()),
            ("cmdline", sample_release::COMMAND_LINE.as_bytes().to_vec()),
        ] {
            fs::write(section.image.join(name), bytes).unwrap();
        }
        section
    }

    fn codes(result: Result<CheckedRelease, Vec<Refusal>>) -> Vec<String> {
        result.unwrap_err().into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn what_is_not_the_release_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let section = published(directory.path());
        let check = |simulated, now| CheckedRelease::check("r", &section, simulated, now);
        check(true, NOW).unwrap();
        assert_eq!(codes(check(false, NOW)), ["release_hardware"]);
        assert_eq!(codes(check(true, NOW + 200_000)), ["release_not_valid_now"]);
        for name in ["firmware.fd", "vmlinuz", "initrd", "cmdline"] {
            let path = section.image.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.pop().unwrap();
            fs::write(&path, &bytes).unwrap();
            assert_eq!(codes(check(true, NOW)), ["release_image_mismatch"], "{name}");
            bytes.push(last);
            fs::write(&path, &bytes).unwrap();
        }
        fs::write(section.image.join("rootfs"), "x").unwrap();
        assert_eq!(codes(check(true, NOW)), ["release_image_mismatch"]);
        fs::remove_file(section.image.join("rootfs")).unwrap();
        let text = fs::read_to_string(&section.bundle).unwrap();
        let at = text.find("\"sig\":\"").unwrap() + 20;
        let other = if &text[at..=at] == "A" { "B" } else { "A" };
        fs::write(&section.bundle, format!("{}{other}{}", &text[..at], &text[at + 1..])).unwrap();
        let reasons = check(true, NOW).unwrap_err();
        assert_eq!(reasons[0].code, "release_signature");
        assert!(reasons[0].field.starts_with("releases.r.bundle"), "{}", reasons[0]);
    }

    #[test]
    fn the_copy_outlives_what_it_was_made_of_and_is_verified_itself() {
        let directory = tempfile::tempdir().unwrap();
        let section = published(directory.path());
        let releases = directory.path().join("releases");
        let checked = CheckedRelease::check("r", &section, true, NOW).unwrap();
        let place = checked.stage(&releases).unwrap();
        fs::write(section.image.join("initrd"), "another").unwrap();
        assert_eq!(verify_staged(&place, NOW).unwrap().digest(), checked.digest());
        assert_eq!(checked.stage(&releases).unwrap(), place, "a good copy stays");
        fs::write(place.join("vmlinuz"), "tampered").unwrap();
        assert_eq!(verify_staged(&place, NOW).unwrap_err()[0].code, "release_image_mismatch");
        // What was published is changed, too: it is not copied over.
        assert_eq!(checked.stage(&releases).unwrap_err()[0].code, "release_image_mismatch");
    }
}
