// SPDX-License-Identifier: Apache-2.0
//! The image's bill of materials, as SPDX 2.3 and CycloneDX 1.6, both JSON. It depends on locks, sources and the image
//! alone, so equal images have equal bills.
//!
//! What this does **not** establish: what stands inside a prebuilt package (the firmware), or which licence a package's
//! authors forgot to state.

mod cyclonedx;
mod spdx;

use std::collections::BTreeMap;

use types::Sha256Digest;

use crate::crates::LockedCrate;
use crate::image::{ImageManifest, ManifestFile};
use crate::locks::{Lock, NamedSet};
use crate::rust::RustLock;

pub(crate) use self::cyclonedx::to_json as to_cyclonedx;
pub(crate) use self::spdx::to_json as to_spdx;

/// Why a bill could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// A line of cargo's list of dependencies is not of the expected form.
    #[error("cargo's list of dependencies has the line {0:?}")]
    Line(String),
    /// A package that cargo names is in `Cargo.lock` under no such version.
    #[error("cargo names {0}, which Cargo.lock does not")]
    NotLocked(String),
}

/// Something that the image consists of, or that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Name.
    pub(crate) name: String,
    /// Version.
    pub(crate) version: String,
    /// SPDX licence expression, or `NOASSERTION`.
    pub(crate) licence: String,
    /// SHA-256: of the program for programs, else of the package's file.
    pub(crate) sha256: Option<Sha256Digest>,
    /// Package URL.
    pub(crate) purl: Option<String>,
    /// What it is to the image.
    pub(crate) relation: Relation,
}

/// What a part is to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Relation {
    /// It stands in the image, whole or linked into a program.
    Contained,
    /// It made the image and nothing of it is in it.
    BuildTool,
}

/// A bill: the image and its parts, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bill {
    /// The image's name, with the profile.
    pub(crate) name: String,
    /// Version of this repository.
    pub(crate) version: String,
    /// A digest over the image's files: names this image and no other.
    pub(crate) identity: Sha256Digest,
    /// The one date of the build, RFC 3339.
    pub(crate) created: &'static str,
    /// Its parts.
    pub(crate) parts: Vec<Part>,
}

/// What a bill is made from.
pub(crate) struct Origins<'a> {
    pub(crate) manifest: &'a ImageManifest,
    pub(crate) firmware: &'a Lock,
    pub(crate) kernel: &'a Lock,
    /// What compiled it: sets of packages.
    pub(crate) tools: &'a [NamedSet],
    /// The sets that files of the verified disk come from.
    pub(crate) disk: &'a [NamedSet],
    pub(crate) rust: &'a RustLock,
    pub(crate) crates: &'a [LockedCrate],
    /// What [`crate::runtime::Runtime`] keeps of `cargo tree`.
    pub(crate) dependencies: &'a str,
}

/// Lists everything.
///
/// # Errors
/// [`SbomError`].
pub(crate) fn bill(origins: &Origins<'_>) -> Result<Bill, SbomError> {
    let Origins { manifest, firmware, kernel, tools, disk, rust, crates, dependencies } = *origins;
    let mut parts = vec![debian(firmware, Relation::Contained), debian(kernel, Relation::Contained)];
    parts.extend(disk.iter().flat_map(NamedSet::locks).map(|lock| debian(&lock.lock, Relation::Contained)));
    parts.extend(programs(manifest));
    parts.extend(rust_packages(dependencies, crates)?);
    parts.push(Part {
        name: "rust-std".to_owned(),
        version: rust.channel.clone(),
        licence: rust.licence.clone(),
        sha256: None,
        purl: None,
        relation: Relation::Contained,
    });
    parts.push(Part {
        name: "rust".to_owned(),
        version: rust.channel.clone(),
        licence: rust.licence.clone(),
        sha256: Some(rust.sha256),
        purl: None,
        relation: Relation::BuildTool,
    });
    for set in tools {
        for lock in set.locks() {
            let linked = set.set.linked.iter().any(|l| l.package == lock.lock.package);
            parts.push(debian(&lock.lock, if linked { Relation::Contained } else { Relation::BuildTool }));
        }
    }
    let line = |file: &ManifestFile| format!("{} {}\n", file.name, file.sha256);
    Ok(Bill {
        name: format!("chrysalis-image-{}", manifest.profile),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: Sha256Digest::of(manifest.files.iter().map(line).collect::<String>().as_bytes()),
        created: CREATED,
        parts,
    })
}

fn debian(lock: &Lock, relation: Relation) -> Part {
    Part {
        name: lock.package.clone(),
        version: lock.version.clone(),
        licence: lock.licence.clone(),
        sha256: Some(lock.sha256),
        purl: Some(format!("pkg:deb/debian/{}@{}", lock.package, lock.version.replace('+', "%2B").replace('~', "%7E"))),
        relation,
    }
}

fn programs(manifest: &ImageManifest) -> impl Iterator<Item = Part> + '_ {
    let disk = manifest.root_disk.iter().flat_map(|disk| &disk.entries);
    manifest.initrd.iter().chain(disk).filter_map(|entry| match &entry.node {
        crate::image::RootNode::Program { package, sha256, .. } => Some(Part {
            name: package.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            licence: "Apache-2.0".to_owned(),
            sha256: Some(*sha256),
            purl: None,
            relation: Relation::Contained,
        }),
        _ => None,
    })
}

/// Reads lines `name vVERSION [(...)]|licence`, as `cargo tree --prefix none --format '{p}|{l}'` writes them. Packages of
/// this repository are left out; macros of the compiler's are build tools.
fn rust_packages(dependencies: &str, crates: &[LockedCrate]) -> Result<Vec<Part>, SbomError> {
    let mut found = BTreeMap::new();
    for line in dependencies.lines().filter(|line| !line.trim().is_empty()) {
        let bad = || SbomError::Line(line.to_owned());
        let (package, licence) = line.split_once('|').ok_or_else(bad)?;
        let mut words = package.split_whitespace();
        let (name, version) = (words.next().ok_or_else(bad)?, words.next().ok_or_else(bad)?);
        let version = version.strip_prefix('v').ok_or_else(bad)?;
        let rest: Vec<&str> = words.collect();
        if rest.iter().any(|word| word.starts_with("(/")) {
            continue;
        }
        let relation = if rest.contains(&"(proc-macro)") { Relation::BuildTool } else { Relation::Contained };
        let locked = crates.iter().find(|c| c.name == name && c.version == version);
        let locked = locked.ok_or_else(|| SbomError::NotLocked(format!("{name} {version}")))?;
        // `(*)` marks a package that was listed before.
        let licence = licence.trim_end_matches("(*)").trim();
        let part = Part {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: expression(licence),
            sha256: Some(locked.sha256),
            purl: Some(format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))),
            relation,
        };
        found.insert((name.to_owned(), version.to_owned()), part);
    }
    Ok(found.into_values().collect())
}

/// Old manifests write `MIT/Apache-2.0` for a choice.
fn expression(licence: &str) -> String {
    if licence.is_empty() { "NOASSERTION".to_owned() } else { licence.replace('/', " OR ") }
}

/// [`crate::SOURCE_DATE_EPOCH`] in RFC 3339.
const CREATED: &str = "2026-01-01T00:00:00Z";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Bill {
        let part = |name: &str, licence: &str, relation| Part {
            name: name.into(),
            version: "1.0+x".into(),
            licence: licence.into(),
            sha256: Some(Sha256Digest::of(name.as_bytes())),
            purl: Some(format!("pkg:cargo/{name}@1.0%2Bx")),
            relation,
        };
        Bill {
            name: "chrysalis-image-sim".into(),
            version: "0.1.0".into(),
            identity: Sha256Digest::of(b"image"),
            created: CREATED,
            parts: vec![
                part("a_b", "MIT OR Apache-2.0", Relation::Contained),
                part("gcc", "NOASSERTION", Relation::BuildTool),
            ],
        }
    }

    #[test]
    fn the_date_is_the_build_date() {
        assert_eq!(crate::image::SOURCE_DATE_EPOCH, 1_767_225_600);
    }

    #[test]
    fn dependencies_are_listed_once_with_digest_and_licence() {
        let locked = |name: &str| LockedCrate {
            name: name.into(),
            version: "1.0.0".into(),
            sha256: Sha256Digest::of(name.as_bytes()),
        };
        let crates = [locked("a"), locked("b")];
        let text = "engine v0.1.0 (/chrysalis/guest-runtime/engine)|Apache-2.0\na v1.0.0|MIT/Apache-2.0\nb v1.0.0 (proc-macro)|MIT\n\na v1.0.0|MIT/Apache-2.0 (*)\n";
        let parts = rust_packages(text, &crates).unwrap();
        assert_eq!(parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(parts[0].licence, "MIT OR Apache-2.0");
        assert_eq!(parts[0].sha256, Some(Sha256Digest::of(b"a")));
        assert_eq!((parts[0].relation, parts[1].relation), (Relation::Contained, Relation::BuildTool));
        assert!(matches!(rust_packages("c v1.0.0|MIT", &crates), Err(SbomError::NotLocked(_))));
        assert!(matches!(rust_packages("nonsense", &crates), Err(SbomError::Line(_))));
    }
}
