// SPDX-License-Identifier: Apache-2.0
//! The statement of a release: an in-toto Statement v1 whose predicate holds the reference values of one image.
//!
//! A statement is what its signer says. [`crate::VerifiedRelease`] is the type for "signed, logged and valid".

use calculator::{AcpiReference, ImageMeasurements};
use serde::{Deserialize, Serialize};
use types::{CanonicalError, MachineShape, RegisterName, Role, Sha256Digest, Sha384Digest, canonical};

/// `_type` of in-toto Statement v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of our predicate. The name is an identifier; `.invalid` never resolves (RFC 2606).
pub const PREDICATE_TYPE: &str = "https://chrysalis.invalid/tdx-reference-values/v1";
/// Most bytes of a statement.
pub const MAX_STATEMENT: usize = 1024 * 1024;

/// An in-toto Statement v1 with reference values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The image's files.
    pub subject: Vec<Subject>,
    /// [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// The reference values.
    pub predicate: ReferenceValues,
}

/// One file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Its file name, unique.
    pub name: String,
    /// Its digest.
    pub digest: SubjectDigest,
}

/// Digest of a [`Subject`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
}

/// The predicate: what a machine that runs this image must measure. Register names are trustee's claim names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValues {
    /// 1.
    pub schema_version: u32,
    /// The image's profile, as `sim` or `cpu`.
    pub profile: String,
    /// What guests of this image are for.
    pub role: Role,
    /// Which hardware signs their quotes.
    pub hardware: Hardware,
    /// What is booted.
    pub components: Components,
    /// Measurements of the components, from which the registers of any machine are computed.
    pub image: ImageMeasurements,
    /// ACPI digests by machine, sorted, without overlap. Which machines the release can be verified on.
    pub acpi: Vec<AcpiReference>,
    /// `SOURCE_DATE_EPOCH` of the build, unix seconds: also the floor of the guest's clock.
    pub source_date_epoch: u64,
    /// Registers of the standard shapes, each shape once, for readers that cannot compute. A statement whose table is
    /// not what its components give is refused.
    pub registers: Vec<ShapeRegisters>,
    /// Digests of the build's lock files by name, sorted by name.
    pub locks: Vec<Subject>,
    /// The source's commit: 40 or 64 hexadecimal digits.
    pub source_commit: String,
    /// The command that makes the same bytes from this commit.
    pub rebuild_command: String,
    /// When the release may be used.
    pub validity: Validity,
    /// Digest of the statement that this one follows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub predecessor: Option<Sha256Digest>,
    /// TCB statuses with which the image may run, as its publisher sees it; a verifier's policy may allow less, never more.
    pub tcb_statuses: Vec<TcbStatus>,
}

/// Hardware that a release is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// Intel TDX.
    Tdx,
    /// The simulator. Verifiers with Intel's root refuse its quotes; the mark keeps such a release from being
    /// taken for a real one.
    Simulated,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Components {
    /// The TDVF firmware volume.
    pub firmware: Component,
    /// The kernel (bzImage).
    pub kernel: Component,
    /// The initial file system.
    pub initrd: Component,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// SHA-256 of the file; a subject has it, too.
    pub sha256: Sha256Digest,
    /// SHA-384 of the file.
    pub sha384: Sha384Digest,
    /// Bytes.
    pub size: u64,
}

/// Expected registers of one shape. A register may have several allowed values (generations of firmware or QEMU).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeRegisters {
    /// The machine.
    pub shape: MachineShape,
    /// Firmware.
    pub mr_td: Vec<Sha384Digest>,
    /// Firmware configuration, ACPI, boot variables.
    pub rtmr_0: Vec<Sha384Digest>,
    /// Kernel.
    pub rtmr_1: Vec<Sha384Digest>,
    /// Command line and initrd.
    pub rtmr_2: Vec<Sha384Digest>,
}

/// A span of unix seconds, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validity {
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
}

/// TCB status as Intel's collateral names it (PCS API v4). `Revoked` can't be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "Intel's own names")]
pub enum TcbStatus {
    UpToDate,
    SWHardeningNeeded,
    ConfigurationNeeded,
    ConfigurationAndSWHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
}

/// Why a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not canonical, unknown field, too large, ….
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// A field breaks its rule.
    #[error("{field} must be {rule}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Statement {
    /// Makes a checked statement about `subject`.
    ///
    /// # Errors
    /// [`StatementError::Field`].
    pub fn new(subject: Vec<Subject>, predicate: ReferenceValues) -> Result<Self, StatementError> {
        let statement = Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate,
        };
        statement.check()?;
        Ok(statement)
    }

    /// Reads and checks a statement from exactly its canonical bytes.
    ///
    /// # Errors
    /// [`StatementError`] names the field and the rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = canonical::from_bytes(bytes, MAX_STATEMENT)?;
        statement.check()?;
        Ok(statement)
    }

    /// The canonical bytes: what is signed, and what a release's digest covers.
    ///
    /// # Errors
    /// [`StatementError`]; the statement is checked first.
    pub fn to_canonical(&self) -> Result<Vec<u8>, StatementError> {
        self.check()?;
        let bytes = canonical::to_bytes(self)?;
        if bytes.len() > MAX_STATEMENT {
            return Err(CanonicalError::TooLarge { max: MAX_STATEMENT, found: bytes.len() }.into());
        }
        Ok(bytes)
    }

    fn check(&self) -> Result<(), StatementError> {
        rule(self.statement_type == STATEMENT_TYPE, "_type", "https://in-toto.io/Statement/v1")?;
        rule(self.predicate_type == PREDICATE_TYPE, "predicateType", "that of TDX reference values, version 1")?;
        check_files(&self.subject, "subject", 1)?;
        self.predicate.check()?;
        let Components { firmware, kernel, initrd } = &self.predicate.components;
        let is_subject = |component: &Component| self.subject.iter().any(|s| s.digest.sha256 == component.sha256);
        rule(
            [firmware, kernel, initrd].into_iter().all(is_subject),
            "subject",
            "a list that has every component's sha256",
        )
    }
}

impl ReferenceValues {
    fn check(&self) -> Result<(), StatementError> {
        rule(self.schema_version == 1, "predicate.schema_version", "1")?;
        rule(is_label(&self.profile), "predicate.profile", "1 to 64 characters of a-z 0-9 -")?;
        rule(
            is_printable(&self.rebuild_command, 1024),
            "predicate.rebuild_command",
            "1 to 1024 printable ASCII characters",
        )?;
        let hex = self.source_commit.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        rule(hex && matches!(self.source_commit.len(), 40 | 64), "predicate.source_commit", "40 or 64 digits 0-9 a-f")?;
        let Validity { not_before, not_after } = self.validity;
        rule(not_before < not_after, "predicate.validity", "a span that ends after it begins")?;
        check_files(&self.locks, "predicate.locks", 0)?;
        let statuses = &self.tcb_statuses;
        let sorted = statuses.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        rule(!statuses.is_empty() && sorted, "predicate.tcb_statuses", "a list in Intel's order, each status once")?;
        rule((1..=MAX_SHAPES).contains(&self.registers.len()), "predicate.registers", "a list of 1 to 1024 shapes")?;
        for (number, registers) in self.registers.iter().enumerate() {
            let again = self.registers.iter().skip(number + 1).any(|other| other.shape == registers.shape);
            rule(!again, "predicate.registers.shape", "a shape that stands only once")?;
            registers.check()?;
        }
        self.check_references()
    }
}

impl ShapeRegisters {
    /// The allowed values of a register; `None` for registers that no release fixes.
    #[must_use]
    pub fn allowed(&self, name: RegisterName) -> Option<&[Sha384Digest]> {
        match name {
            RegisterName::MrTd => Some(&self.mr_td),
            RegisterName::Rtmr0 => Some(&self.rtmr_0),
            RegisterName::Rtmr1 => Some(&self.rtmr_1),
            RegisterName::Rtmr2 => Some(&self.rtmr_2),
            RegisterName::Rtmr3 | RegisterName::MrConfigId | RegisterName::MrOwner | RegisterName::MrOwnerConfig => {
                None
            }
        }
    }

    fn check(&self) -> Result<(), StatementError> {
        let Self { shape: _, mr_td, rtmr_0, rtmr_1, rtmr_2 } = self;
        let lists = [
            (mr_td, "predicate.registers.mr_td"),
            (rtmr_0, "predicate.registers.rtmr_0"),
            (rtmr_1, "predicate.registers.rtmr_1"),
            (rtmr_2, "predicate.registers.rtmr_2"),
        ];
        lists.into_iter().try_for_each(|(values, field)| {
            rule((1..=MAX_VALUES).contains(&values.len()), field, "a list of 1 to 16 values")?;
            rule(!values.contains(&Sha384Digest::ZERO), field, "a list without the zero value")
        })
    }
}

impl Validity {
    /// Whether `now` (unix seconds) lies inside.
    #[must_use]
    pub const fn contains(&self, now: u64) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

pub(crate) fn rule(holds: bool, field: &'static str, rule: &'static str) -> Result<(), StatementError> {
    if holds { Ok(()) } else { Err(StatementError::Field { field, rule }) }
}

fn check_files(files: &[Subject], field: &'static str, least: usize) -> Result<(), StatementError> {
    rule((least..=MAX_FILES).contains(&files.len()), field, "a list of at most 64 files, not empty for subjects")?;
    let sorted = files.windows(2).all(|pair| matches!(pair, [a, b] if a.name < b.name));
    rule(sorted, field, "sorted by name, each name once")?;
    let named = files.iter().all(|file| is_printable(&file.name, 128) && !file.name.contains(['/', '\\', ' ']));
    rule(named, field, "a list of plain file names")
}

fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_printable(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

const MAX_SHAPES: usize = 1024;
const MAX_VALUES: usize = 16;
const MAX_FILES: usize = 64;

#[cfg(test)]
pub(crate) mod tests {
    use types::{Device, QemuVersion, shape::ShapeFacts};

    use super::*;

    /// Made by another build of this crate, so it arrives as bytes.
    pub(crate) fn sample() -> Statement {
        let shape = |vcpus| {
            let devices = vec![Device::ConfigDisk, Device::Vsock];
            let qemu = QemuVersion { major: 10, minor: 1 };
            MachineShape::new(ShapeFacts { vcpus, memory_mib: 1024, physical_bits: 46, qemu, devices }).unwrap()
        };
        let made = sample_release::statement(sample_release::Hardware::Simulated, &[shape(2), shape(4)], 1_700_001_000);
        Statement::parse(&made.to_canonical().unwrap()).unwrap()
    }

    #[test]
    fn statements_round_trip() {
        let bytes = sample().to_canonical().unwrap();
        assert!(bytes.starts_with(b"{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicate\":{"));
        assert_eq!(Statement::parse(&bytes).unwrap(), sample());
    }

    #[test]
    fn each_broken_rule_names_its_field() {
        let broken = |change: fn(&mut Statement)| {
            let mut statement = sample();
            change(&mut statement);
            let parsed = Statement::parse(&canonical::to_bytes(&statement).unwrap());
            match parsed {
                Err(StatementError::Field { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(broken(|s| s.statement_type.push('x')), "_type");
        assert_eq!(broken(|s| s.predicate_type.push('x')), "predicateType");
        assert_eq!(broken(|s| s.subject.swap(0, 1)), "subject");
        assert_eq!(broken(|s| s.subject.clear()), "subject");
        assert_eq!(broken(|s| s.subject[0].name = "../a".into()), "subject");
        assert_eq!(broken(|s| s.predicate.components.kernel.sha256 = Sha256Digest::ZERO), "subject");
        assert_eq!(broken(|s| s.predicate.schema_version = 2), "predicate.schema_version");
        assert_eq!(broken(|s| s.predicate.profile = "a b".into()), "predicate.profile");
        assert_eq!(broken(|s| s.predicate.image.command_line.push('\n')), "predicate.image.command_line");
        assert_eq!(broken(|s| s.predicate.image.command_line.push_str(" vga=1")), "predicate.image.command_line");
        assert_eq!(broken(|s| s.predicate.source_commit = "HEAD".into()), "predicate.source_commit");
        assert_eq!(broken(|s| s.predicate.validity.not_after = 0), "predicate.validity");
        assert_eq!(broken(|s| s.predicate.tcb_statuses.clear()), "predicate.tcb_statuses");
        assert_eq!(broken(|s| s.predicate.tcb_statuses.swap(0, 1)), "predicate.tcb_statuses");
        assert_eq!(broken(|s| s.predicate.registers.clear()), "predicate.registers");
        assert_eq!(
            broken(|s| s.predicate.registers.push(s.predicate.registers[0].clone())),
            "predicate.registers.shape"
        );
        assert_eq!(broken(|s| s.predicate.registers[0].rtmr_0.clear()), "predicate.registers.rtmr_0");
        assert_eq!(broken(|s| s.predicate.registers[0].mr_td[0] = Sha384Digest::ZERO), "predicate.registers.mr_td");
    }

    #[test]
    fn unknown_fields_and_fractions_are_refused() {
        let text = String::from_utf8(sample().to_canonical().unwrap()).unwrap();
        for (from, to) in [
            ("\"profile\":", "\"other\":1,\"profile\":"),
            ("1700000000", "1700000000.5"),
            ("\"UpToDate\"", "\"Revoked\""),
            ("\"vcpus\":2", "\"smm\":1,\"vcpus\":2"),
            ("edk2-stable202502", "edk2-stable999999"),
            ("\"kernel\":{\"initrd", "\"kernel\":{\"a\":1,\"initrd"),
            ("\"simulated\"", "\"any\""),
        ] {
            assert!(Statement::parse(text.replace(from, to).as_bytes()).is_err(), "{to}");
            assert!(text.contains(from), "{from}");
        }
    }
}
