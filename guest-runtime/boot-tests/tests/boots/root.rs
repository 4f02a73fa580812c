// SPDX-License-Identifier: Apache-2.0
//! Attack 30: the root disk of the image for GPUs, as a hostile host gives it. A block that is not the image's panics the kernel
//! when it is read, at boot and later; the guest says nothing any more.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use types::{EventName, HaltCode};

use crate::{
    hardening::probe,
    host::{Host, configuration, halted, root_disk_options},
    need,
};

/// The root disk's parts, and a copy that may be changed.
struct Disk {
    honest: PathBuf,
    copy: PathBuf,
    /// `ROOT_HASH:SALT:DATA_BLOCKS` of the measured command line.
    word: String,
    data_blocks: u64,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn of(host: &Host) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (honest, copy) = (host.root_disk.clone().unwrap(), directory.path().join("rootfs"));
        std::fs::copy(&honest, &copy).unwrap();
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let words = host.command_line.split_whitespace();
        let word = words.filter_map(|word| word.strip_prefix("chrysalis.root=")).next().unwrap().to_owned();
        let data_blocks: u64 = word.rsplit(':').next().unwrap().parse().unwrap();
        assert!(honest.metadata().unwrap().len() > data_blocks * BLOCK, "the hash tree follows the data");
        Self { honest, copy, word, data_blocks, _directory: directory }
    }

    /// The copy with one bit of one byte changed; the next call changes another byte of an honest copy.
    fn flipped(&self, at: u64) -> &Path {
        self.mended();
        let mut byte = [0];
        let file = OpenOptions::new().read(true).write(true).open(&self.copy).unwrap();
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        &self.copy
    }

    /// The copy without its last block, which is one of hashes.
    fn truncated(&self) -> &Path {
        self.mended();
        let file = OpenOptions::new().write(true).open(&self.copy).unwrap();
        file.set_len(file.metadata().unwrap().len() - BLOCK).unwrap();
        &self.copy
    }

    /// Copies the blocks that differ back.
    fn mended(&self) {
        let (honest, copy) =
            (File::open(&self.honest).unwrap(), OpenOptions::new().read(true).write(true).open(&self.copy).unwrap());
        let length = honest.metadata().unwrap().len();
        copy.set_len(length).unwrap();
        let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut at = 0;
        while at < length {
            let size = usize::try_from((length - at).min(u64::try_from(CHUNK).unwrap())).unwrap();
            honest.read_exact_at(&mut ours[..size], at).unwrap();
            copy.read_exact_at(&mut theirs[..size], at).unwrap();
            if ours[..size] != theirs[..size] {
                copy.write_all_at(&ours[..size], at).unwrap();
            }
            at += u64::try_from(size).unwrap();
        }
    }

    /// The word with another root hash: that of another image.
    fn other_word(&self) -> String {
        let (first, rest) = self.word.split_at(1);
        format!("{}{rest}", if first == "0" { "1" } else { "0" })
    }

    fn first_hash_block(&self) -> u64 {
        self.data_blocks * BLOCK
    }

    fn last_block(&self) -> u64 {
        self.honest.metadata().unwrap().len() - BLOCK
    }
}

/// With the honest disk the image's own init counts the GPUs, which emulation has none of; with any other it never comes so far.
#[test]
fn init_reads_no_byte_of_another_root() {
    let host = need!(Host::with_root(), "boots with a changed root disk");
    let disk = Disk::of(&host);
    let line = |words: &str, path: Option<&Path>| host.last_line_with(words, &configuration(1), path);
    let words = host.command_line.as_str();
    assert_eq!(line(words, Some(&disk.honest)), halted(EventName::Lockdown, HaltCode::GpuCountMismatch));

    // A panic says nothing: the last line is the one of the phase before.
    let silent = |line: &str| line.starts_with(&format!("4 {} ", EventName::Configuration.number()));
    for (at, what) in [(SUPERBLOCK, "data"), (disk.first_hash_block(), "tree")] {
        let last = line(words, Some(disk.flipped(at)));
        assert!(silent(&last), "{what}: {last}");
    }
    let last = line(&words.replace(&disk.word, &disk.other_word()), Some(&disk.honest));
    assert!(silent(&last), "another image's root: {last}");
    // A disk that is too short is no device at all, and none is none.
    let failed = halted(EventName::Lockdown, HaltCode::RootDiskFailed);
    assert_eq!(line(words, Some(disk.truncated())), failed);
    assert_eq!(line(words, None), failed);
    // Without its word the image does not boot either.
    let word = format!(" chrysalis.root={}", disk.word);
    let last = line(&words.replace(&word, ""), Some(&disk.honest));
    assert_eq!(last, halted(EventName::Mounts, HaltCode::CommandLineUnknown));
}

/// A configuration that names no GPU boots this image, too, to the network card that this machine lacks: with the kernel's
/// lockdown raised and PID 1 confined.
#[test]
fn the_image_for_gpus_boots_without_one() {
    let host = need!(Host::with_root(), "a boot of the image for GPUs without one");
    assert_eq!(host.last_line("", &configuration(0)), halted(EventName::Network, HaltCode::NetworkFailed));
}

/// What a program inside sees of the honest root: all of its files, modules that fit this kernel, and a door that closes.
#[test]
fn the_root_is_read_only_and_its_modules_load_until_loading_is_closed() {
    let host = need!(Host::with_root(), "the verified root from inside");
    let disk = Disk::of(&host);
    let report = probe(&host.image, &format!("root {}", disk.word), &root_disk_options(&disk.honest));
    assert_eq!(report.lines().last(), Some("end"), "{report}");
    let fact = |name: &str| report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("");
    assert!(fact("files").parse::<u64>().unwrap() > 10, "{report}");
    assert!(fact("bytes").parse::<u64>().unwrap() > 1 << 20, "{report}");
    assert!(fact("options").contains(" ro,nosuid,nodev,"), "{report}");
    assert_eq!(fact("write"), "refused");
    // The driver ran and found no device (ENODEV); a module of another kernel or with a missing symbol says something else.
    assert!(fact("modules").contains("nvidia.ko") && fact("modules").contains("os error 19"), "{report}");
    assert!(fact("closed").contains("os error 1)"), "{report}");
    assert!(fact("lockdown").contains("[confidentiality]"), "{report}");
    // The daemon ran until it looked for a device, within its filter and its reach.
    assert_eq!(fact("daemon"), "Some(Exit(1))", "{report}");
}

/// Blocks that are read later panic later: the guest runs until then, and no longer.
#[test]
fn a_changed_block_panics_when_it_is_read() {
    let host = need!(Host::with_root(), "a changed block of the root while the guest runs");
    let disk = Disk::of(&host);
    let said = |path: &Path| probe(&host.image, &format!("root {}", disk.word), &root_disk_options(path));
    assert_eq!(said(disk.flipped(SUPERBLOCK)), "opened\n");
    // In the middle of the data lies a file's contents.
    assert_eq!(said(disk.flipped(disk.data_blocks / 2 * BLOCK + 7)), "opened\nmounted\n");
    // The lowest level of the tree stands last; its last block is of the last data.
    assert_eq!(said(disk.flipped(disk.last_block())), "opened\nmounted\n");
}

const BLOCK: u64 = 4096;
const CHUNK: usize = 1 << 20;
/// erofs keeps its superblock at byte 1024.
const SUPERBLOCK: u64 = 1024;
