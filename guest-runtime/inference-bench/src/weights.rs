// SPDX-License-Identifier: Apache-2.0
//! A model pack in memory: decrypted, verified, written to memory.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use model::disk::{Disk, compose};
use model::{Ciphertexts, Directory, Key, KeyName, Labels, Limits};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use types::ModelId;

/// Gigabytes (10⁹) of plaintext a second, on one core and on two: as the guest reads, without writing the files and with
/// it, and as an owner does, who has each ciphertext hashed as well. Beside them what AES-GCM and BLAKE3 give here by
/// themselves, each core with segments of its own that lie in memory: what a reader of packs can come near to.
pub(crate) fn measure(quick: bool) -> anyhow::Result<Value> {
    let bytes = if quick { 16 << 20 } else { 768 << 20 };
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let (input, pack) = (directory.path().join("weights.gguf"), directory.path().join("pack"));
    write_noise(&input, bytes)?;
    let key = Key::random()?;
    let labels = Labels { name: "m", revision: "1", key: KeyName { id: "sample".into(), version: 1 } };
    let created = model::create(&labels, &input, &key, &pack, Limits::default(), &|_| {})?;
    fs::remove_file(&input)?;
    let disk = directory.path().join("disk");
    compose(&Directory::open(&pack)?, &disk, &|_| {})?;
    fs::remove_dir_all(&pack)?;
    let source = Disk::open(fs::read(&disk)?)?;
    fs::remove_file(&disk)?;
    let rounds = if quick { 1 } else { 3 };
    let subject = Subject { source: &source, place: directory.path(), key: &key, model: &created.model, bytes, rounds };
    let mut rows = Vec::new();
    for cores in [1, 2] {
        // Threads inherit what their maker may run on.
        let row = std::thread::scope(|scope| scope.spawn(|| subject.measure_on(cores)).join());
        let row = row.map_err(|_| anyhow::anyhow!("the measuring thread stopped"))??;
        eprintln!("weights: {row}");
        rows.push(row);
    }
    Ok(json!({ "bytes": bytes, "cores": rows }))
}

struct Subject<'a> {
    source: &'a Disk<Vec<u8>>,
    place: &'a Path,
    key: &'a Key,
    model: &'a ModelId,
    bytes: u64,
    rounds: usize,
}

impl Subject<'_> {
    fn measure_on(&self, cores: usize) -> anyhow::Result<Value> {
        pin(cores)?;
        let (mut read, mut unpacked, mut verified, mut alone) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        for _ in 0..self.rounds {
            alone = alone.max(ciphers_alone(cores, self.bytes)?);
            let start = Instant::now();
            model::verify(self.source, self.key, self.model, Ciphertexts::NotHashed, &|_| {})?;
            read = read.max(self.rate(start));
            let target = tempfile::tempdir_in(self.place)?;
            let start = Instant::now();
            model::unpack(self.source, self.key, self.model, target.path(), self.bytes, &|_| {})?;
            unpacked = unpacked.max(self.rate(start));
            let start = Instant::now();
            model::verify(self.source, self.key, self.model, Ciphertexts::Hashed, &|_| {})?;
            verified = verified.max(self.rate(start));
        }
        Ok(json!({
            "cores": cores, "read_gb_s": read, "unpack_gb_s": unpacked, "verify_gb_s": verified, "alone_gb_s": alone,
        }))
    }

    fn rate(&self, start: Instant) -> f64 {
        rate(self.bytes, start)
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

/// Gigabytes a second that threads on `cores` cores decrypt and hash, in turns, in segments of 1 MiB.
fn ciphers_alone(cores: usize, bytes: u64) -> anyhow::Result<f64> {
    let segments = (bytes >> 20).div_ceil(u64::try_from(cores)?);
    let key = || anyhow::Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?));
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let work = || {
        let key = key()?;
        let mut segment = vec![1; 1 << 20];
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut segment)?;
        let sealed = vec![segment; usize::try_from(segments)?];
        anyhow::Ok((key, sealed))
    };
    let mut prepared = (0..cores).map(|_| work()).collect::<anyhow::Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = prepared
            .iter_mut()
            .map(|(key, sealed)| {
                scope.spawn(move || {
                    let mut hasher = blake3::Hasher::new();
                    for segment in sealed {
                        hasher.update(key.open_in_place(nonce(), Aad::empty(), segment)?);
                    }
                    anyhow::Ok(std::hint::black_box(hasher.finalize()))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done.map(drop),
            Err(_) => anyhow::bail!("the measuring thread stopped"),
        })
    })?;
    Ok(rate((segments << 20).saturating_mul(u64::try_from(cores)?), start))
}

/// Keeps this thread, and those it starts, on the first `cores` cores that it may use.
fn pin(cores: usize) -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut chosen = CpuSet::new();
    let all = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    for core in all.take(cores) {
        chosen.set(core)?;
    }
    sched_setaffinity(this, &chosen).context("pinning to cores")
}

/// Bytes that do not compress; their quality is of no importance.
fn write_noise(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    let (mut state, mut block) = (0x2545_f491_4f6c_dd1d_u64, Vec::with_capacity(1 << 20));
    for _ in 0..bytes >> 20 {
        block.clear();
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}
