// SPDX-License-Identifier: Apache-2.0
//! The description of an image: `image.json`.

use serde::{Deserialize, Serialize};
use types::{Sha256Digest, Sha384Digest};

/// `image.json`: what an image consists of and where each part comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// The profile.
    pub profile: String,
    /// The kernel's command line, as in `cmdline`.
    pub command_line: String,
    /// The one date that the build knows, seconds since 1970; the guest's floor for the time.
    pub source_date_epoch: u64,
    /// The image's files.
    pub files: Vec<ManifestFile>,
    /// Everything inside the initial RAM disk.
    pub initrd: Vec<RootEntry>,
    /// The verified disk `rootfs`, where the profile has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDisk>,
    /// The locked inputs that entered.
    pub inputs: Vec<ManifestInput>,
    /// What compiled it.
    pub toolchain: ToolVersions,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// File name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: Sha256Digest,
    /// SHA-384 of the bytes. A TDX event's digest of the same file can differ (Authenticode for the kernel).
    pub sha384: Sha384Digest,
    /// Where it comes from, in words.
    pub origin: String,
}

/// The verified disk: an erofs file system, and behind it, from block `data_blocks` on, its hash tree (dm-verity format 1,
/// SHA-256, blocks of 4096 bytes, no superblock).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootDisk {
    /// Digest of the hash tree's root; the command line names it.
    pub root_hash: Sha256Digest,
    /// What each hash begins with.
    pub salt: Sha256Digest,
    /// Blocks of the file system.
    pub data_blocks: u64,
    /// Everything in it.
    pub entries: Vec<RootEntry>,
}

/// A path inside the initial RAM disk or the verified disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootEntry {
    /// Absolute path.
    pub path: String,
    /// Permissions, octal.
    pub mode: String,
    /// What stands there.
    pub node: RootNode,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RootNode {
    /// An empty directory.
    Directory,
    /// A character device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: String,
    },
    /// A file of a locked package, unchanged.
    Packaged {
        /// The package.
        package: String,
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes.
        sha256: Sha256Digest,
    },
    /// A module of the kernel, compiled from a locked package.
    Module {
        /// The package.
        package: String,
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes.
        sha256: Sha256Digest,
    },
    /// A file that the build writes.
    Generated {
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes.
        sha256: Sha256Digest,
    },
    /// A program of this repository.
    Program {
        /// Its package.
        package: String,
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes.
        sha256: Sha256Digest,
    },
}

/// A locked input of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestInput {
    /// Lock name.
    pub name: String,
    /// Package.
    pub package: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the fetched file.
    pub sha256: Sha256Digest,
    /// SHA-256 of the lock file.
    pub lock_sha256: Sha256Digest,
}

/// What compiled the image, for people: it is pinned by the inputs `build-root` and `rust`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolVersions {
    /// Of the kernel.
    pub kernel: String,
    /// Of the programs.
    pub programs: String,
    /// Digest over the sources of the programs.
    pub sources: Sha256Digest,
}

/// The format of `image.json`.
pub const SCHEMA: &str = "chrysalis/image/v1";
