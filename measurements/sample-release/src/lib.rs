// SPDX-License-Identifier: Apache-2.0
//! Small images and published releases of them, for tests. Keys are fixed and known to everybody.
#![allow(
    clippy::unwrap_used,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "only tests use this, and they fail loudly"
)]

pub mod files;

use calculator::{AcpiDigests, AcpiReference, FirmwareGeneration, ImageBytes, ImageMeasurements};
pub use release::Hardware;
use release::log::{Checkpoint, EntryProof, LogSigner, WitnessSigner, cosign, leaf_hash};
use release::statement::SubjectDigest;
use release::{
    Bundle, Component, Components, ReferenceValues, ReleaseKey, ShapeRegisters, Statement, Subject, TcbStatus,
    TrustPolicy, Validity,
};
use types::{MachineShape, Registers, Role, Sha256Digest, Sha384Digest};

/// The image's command line.
pub const COMMAND_LINE: &str = "panic=-1 quiet";

/// Measurements of the image in [`files`], without patched kernels: for QEMU 10.0 and later.
#[must_use]
pub fn image() -> ImageMeasurements {
    let bytes = ImageBytes {
        firmware: &files::firmware(),
        generation: FirmwareGeneration::Edk2Stable202502,
        kernel: &files::kernel(),
        initrd: &files::initrd(),
        command_line: COMMAND_LINE,
    };
    ImageMeasurements::of(&bytes, &[]).unwrap()
}

/// A reference for one machine, with digests that no QEMU ever made but that differ from machine to machine.
#[must_use]
pub fn acpi(shape: &MachineShape) -> AcpiReference {
    let digest = |file: &str| Sha384Digest::of(format!("{file} of {shape:?}").as_bytes());
    AcpiReference::of(shape, AcpiDigests { loader: digest("loader"), rsdp: digest("rsdp"), tables: digest("tables") })
}

/// A statement about the image for these machines, valid from 1,000 seconds before `now` to 100,000 after.
#[must_use]
pub fn statement(hardware: Hardware, shapes: &[MachineShape], now: u64) -> Statement {
    let [firmware, kernel, initrd] = [files::firmware(), files::kernel(), files::initrd()];
    let component = |bytes: &[u8]| Component {
        sha256: Sha256Digest::of(bytes),
        sha384: Sha384Digest::of(bytes),
        size: u64::try_from(bytes.len()).unwrap(),
    };
    let subject = |name: &str, bytes: &[u8]| Subject {
        name: name.to_owned(),
        digest: SubjectDigest { sha256: Sha256Digest::of(bytes) },
    };
    let mut values = ReferenceValues {
        schema_version: 1,
        profile: "sample".to_owned(),
        role: Role::Inference,
        hardware,
        components: Components {
            firmware: component(&firmware),
            kernel: component(&kernel),
            initrd: component(&initrd),
        },
        image: image(),
        acpi: Vec::new(),
        source_date_epoch: now - 1000,
        registers: Vec::new(),
        locks: Vec::new(),
        source_commit: "0".repeat(40),
        rebuild_command: "image build --profile sample --out out".to_owned(),
        validity: Validity { not_before: now - 1000, not_after: now + 100_000 },
        predecessor: None,
        tcb_statuses: vec![TcbStatus::UpToDate, TcbStatus::SWHardeningNeeded],
    };
    values.set_acpi(shapes.iter().map(acpi).collect());
    values.registers =
        shapes.iter().map(|shape| ShapeRegisters::of(shape.clone(), &values.registers_for(shape).unwrap())).collect();
    let subjects = vec![subject("firmware.fd", &firmware), subject("initrd", &initrd), subject("vmlinuz", &kernel)];
    Statement::new(subjects, values).unwrap()
}

/// Signs the statement, logs it as the only entry of a log, and has one witness cosign: the bundle, and the policy that
/// accepts it.
#[must_use]
pub fn publish(statement: &Statement, now: u64) -> (Vec<u8>, TrustPolicy) {
    let key = ReleaseKey::from_random(&[1; 32]).unwrap();
    let log = LogSigner::new("example.invalid/releases", &[2; 32]).unwrap();
    let witness = WitnessSigner::new("witness", &[3; 32]).unwrap();
    let bundle = Bundle::sign(statement, &key).unwrap();
    let leaf = leaf_hash(&bundle.log_entry(&key.public()).unwrap());
    let note = Checkpoint::new(log.public().origin(), 1, leaf).sign(&log).unwrap();
    let (cosigned, _) = cosign(&witness, None, &note, log.public(), &[], now).unwrap();
    let proof = EntryProof { index: 0, leaf, tree_size: 1, path: vec![], checkpoint: cosigned.note().to_owned() };
    let bundle = bundle.with_proof(&key.public(), log.public(), &proof).unwrap().to_json().unwrap();
    let trust = TrustPolicy::new(vec![key.public()], log.public().clone(), vec![witness.public().clone()], 1).unwrap();
    (bundle, trust)
}

/// What a machine that was launched as published measures before its first run-time event.
#[must_use]
pub fn registers(values: &ReferenceValues, shape: &MachineShape, mr_config_id: Sha384Digest) -> Registers {
    let registers = ShapeRegisters::of(shape.clone(), &values.registers_for(shape).unwrap());
    let first = |values: &[Sha384Digest]| *values.first().unwrap();
    Registers {
        mr_td: first(&registers.mr_td),
        rtmr_0: first(&registers.rtmr_0),
        rtmr_1: first(&registers.rtmr_1),
        rtmr_2: first(&registers.rtmr_2),
        rtmr_3: Sha384Digest::ZERO,
        mr_config_id,
        mr_owner: Sha384Digest::ZERO,
        mr_owner_config: Sha384Digest::ZERO,
    }
}
