// SPDX-License-Identifier: Apache-2.0
//! What is timed, and how times become figures.

use std::hint::black_box;

use anyhow::Context as _;
use calculator::{ImageMeasurements, registers};
use ed25519_dalek::Signer as _;
use event_log::{EventLog, Indexing, replay};
use release::{Hardware, ReferenceValues, ReleaseKey, ReleasePublicKey, TrustPolicy, VerifiedRelease};
use sha2::{Digest as _, Sha384};
use types::{Device, MachineShape, QemuVersion, shape::ShapeFacts};

use crate::{Figure, image::Image};

/// Inputs of all works.
pub(crate) struct Works {
    pub(crate) image: Image,
    hashed_bytes: usize,
    buffer: Vec<u8>,
    values: ReferenceValues,
    shapes: Vec<MachineShape>,
    log: Vec<u8>,
    bundle: Vec<u8>,
    trust: TrustPolicy,
    signatures: Signatures,
}

/// The signatures that a bundle has at least: the release key's, and those of log and witness.
struct Signatures {
    release: ReleasePublicKey,
    ecdsa: Vec<u8>,
    log: ed25519_dalek::VerifyingKey,
    eddsa: ed25519_dalek::Signature,
}

/// One thing to time.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Works) -> anyhow::Result<()>,
}

impl Works {
    pub(crate) fn new(image: Image) -> anyhow::Result<Self> {
        let shapes: Vec<MachineShape> = (0..SHAPES).map(shape).collect::<anyhow::Result<_>>()?;
        let listed = (0..LISTED).map(shape).collect::<anyhow::Result<Vec<_>>>()?;
        let statement = sample_release::statement(Hardware::Tdx, &listed, NOW);
        let (bundle, trust) = sample_release::publish(&statement, NOW);
        let mut values = statement.predicate;
        values.set_acpi(shapes.iter().map(sample_release::acpi).collect());
        values.image = ImageMeasurements::of(&image.bytes(), &[]).context("image")?;
        Ok(Self {
            hashed_bytes: image.hashed_bytes()?,
            image,
            buffer: vec![0x5a; BUFFER],
            values,
            shapes,
            log: event_log(),
            bundle,
            trust,
            signatures: Signatures::new()?,
        })
    }

    /// Everything that is timed, in the order of the turns.
    pub(crate) fn list(&self) -> [Work; WORKS] {
        [
            Work { name: "SHA-384", run: Self::sha384 },
            Work { name: "SHA-384 of aws-lc", run: Self::sha384_of_aws_lc },
            Work { name: "registers from the files", run: Self::measure_files },
            Work { name: "registers from component digests", run: Self::compute_shapes },
            Work { name: "replay", run: Self::replay },
            Work { name: "hashes of the replay", run: Self::hashes_of_the_replay },
            Work { name: "bundle", run: Self::bundle },
            Work { name: "signatures of the bundle", run: Self::signatures },
        ]
    }

    /// The medians of [`Works::list`], in seconds, as figures.
    pub(crate) fn figures(&self, medians: &[f64]) -> anyhow::Result<Vec<Figure>> {
        let [sha384, aws_lc, files, digests, replay, hashes, bundle, signatures] =
            <[f64; WORKS]>::try_from(medians).map_err(|_| anyhow::anyhow!("one median for each work"))?;
        let megabytes = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e6;
        let hashing = sha384 * self.hashed_bytes as f64 / BUFFER as f64;
        let rate = megabytes(self.log.len(), replay);
        let plain = |name, value, unit| Figure { name, value, unit, against: String::new(), ratio: None, goal: None };
        let goal = |name, value: f64, unit, goal: f64| Figure {
            name,
            value,
            unit,
            against: format!("goal of {goal} {unit}"),
            ratio: Some(value / goal),
            goal: Some(1.0),
        };
        let against = |name, seconds: f64, limit: f64, what: String, goal| Figure {
            name,
            value: seconds * 1e3,
            unit: "ms",
            against: what,
            ratio: Some(seconds / limit),
            goal,
        };
        Ok(vec![
            plain("SHA-384 of this program", megabytes(BUFFER, sha384), "MB/s"),
            plain("SHA-384 of aws-lc, not used here", megabytes(BUFFER, aws_lc), "MB/s"),
            goal("registers of one shape, from files", files * 1e3, "ms", 20.0),
            against(
                "the same, against its hashing",
                files,
                hashing,
                format!("SHA-384 of {} MB", self.hashed_bytes / 1_000_000),
                Some(1.1),
            ),
            goal("registers of 1,000 shapes, from digests", digests * 1e3, "ms", 2000.0),
            Figure {
                name: "replay",
                value: rate,
                unit: "MB/s",
                against: "goal of 200 MB/s".to_owned(),
                ratio: Some(200.0 / rate),
                goal: Some(1.0),
            },
            against("replay, against its hashing", replay, hashes, format!("{EVENTS} SHA-384 extends"), None),
            goal("bundle verification", bundle * 1e3, "ms", 1.5),
            against("the same, against its signatures", bundle, signatures, "its three signatures".to_owned(), None),
        ])
    }

    fn sha384(&self) -> anyhow::Result<()> {
        black_box(Sha384::digest(black_box(&self.buffer)));
        Ok(())
    }

    fn sha384_of_aws_lc(&self) -> anyhow::Result<()> {
        black_box(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, black_box(&self.buffer)));
        Ok(())
    }

    fn measure_files(&self) -> anyhow::Result<()> {
        let image = ImageMeasurements::of(&black_box(self.image.bytes()), &[])?;
        let shape = self.shapes.first().context("no shape")?;
        let acpi = sample_release::acpi(shape).digests(shape).map_err(|_| anyhow::anyhow!("no ACPI digests"))?;
        black_box(registers(&image, shape, &acpi)?);
        Ok(())
    }

    fn compute_shapes(&self) -> anyhow::Result<()> {
        for shape in &self.shapes {
            black_box(self.values.registers_for(black_box(shape))?);
        }
        Ok(())
    }

    fn replay(&self) -> anyhow::Result<()> {
        black_box(replay(&EventLog::parse(black_box(&self.log))?, Indexing::MeasurementRegister)?);
        Ok(())
    }

    fn hashes_of_the_replay(&self) -> anyhow::Result<()> {
        let mut value = [0_u8; 48];
        for _ in 0..EVENTS {
            value = Sha384::new().chain_update(value).chain_update(black_box([7_u8; 48])).finalize().into();
        }
        black_box(value);
        Ok(())
    }

    fn bundle(&self) -> anyhow::Result<()> {
        black_box(VerifiedRelease::verify(black_box(&self.bundle), &self.trust, NOW)?);
        Ok(())
    }

    fn signatures(&self) -> anyhow::Result<()> {
        let Signatures { release, ecdsa, log, eddsa } = &self.signatures;
        anyhow::ensure!(release.verifies(black_box(MESSAGE), ecdsa), "the ECDSA signature");
        for _ in 0..2 {
            log.verify_strict(black_box(MESSAGE), eddsa).context("the Ed25519 signature")?;
        }
        Ok(())
    }
}

impl Signatures {
    fn new() -> anyhow::Result<Self> {
        let (release, log) = (ReleaseKey::from_random(&[1; 32])?, ed25519_dalek::SigningKey::from_bytes(&[2; 32]));
        let (ecdsa, eddsa) = (release.sign(MESSAGE), log.sign(MESSAGE));
        Ok(Self { release: release.public(), ecdsa, log: log.verifying_key(), eddsa })
    }
}

/// Machine number `number`: every one differs from the others in vCPUs or memory.
fn shape(number: u32) -> anyhow::Result<MachineShape> {
    let vcpus = u16::try_from(number % 64 + 1)?;
    let memory_mib = 1024 * (number / 64 + 1);
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 10, minor: 1 };
    Ok(MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits: 46, qemu, devices })?)
}

/// A CCEL with events of the size that they have in a real one: 43 of 420 bytes on average on one cloud's machine.
fn event_log() -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let header = [b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".as_slice(), &number(1), &[0x0c, 0, 48, 0, 0]].concat();
    let mut log = [[0, 0, 0, 0, 3, 0, 0, 0].as_slice(), &[0; 20], &number(header.len()), &header].concat();
    for event in 0..EVENTS {
        log.extend([number(event % 3 + 1), number(6), number(1)].concat());
        log.extend([0x0c, 0]);
        log.extend([0xa5; 48]);
        log.extend(number(DATA));
        log.extend([0x3c; DATA]);
    }
    log
}

const NOW: u64 = 1_750_000_000;
const WORKS: usize = 8;
const BUFFER: usize = 16 << 20;
const SHAPES: u32 = 1000;
/// Shapes that the statement in the bundle lists, each of which is computed again when it is verified.
const LISTED: u32 = 4;
const EVENTS: usize = 512;
const DATA: usize = 354;
const MESSAGE: &[u8] = b"what is signed";
