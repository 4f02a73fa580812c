// SPDX-License-Identifier: Apache-2.0
//! Vocabulary shared by all parts: digests, registers, machine shape, guest configuration, evidence.
//!
//! Nothing here verifies anything: a value of these types is well formed, not true.

pub mod audit;
pub mod bytes;
pub mod canonical;
pub mod config;
pub mod digest;
pub mod event;
pub mod evidence;
pub mod halt;
pub mod model;
pub mod note;
#[cfg(test)]
mod page;
pub mod refusal;
pub mod register;
pub mod role;
pub mod shape;
pub mod tenants;

pub use audit::KeyReleaseEntry;
pub use bytes::{Base64, Hex32};
pub use canonical::{CanonicalError, Document};
pub use config::GuestConfig;
pub use digest::{Blake3Digest, Sha256Digest, Sha384Digest};
pub use event::{EventName, RuntimeEvent};
pub use evidence::{ConnectionProof, Evidence, Freshness, FreshnessKind, GpuDriver, GpuEvidence, GpuReport, TimeState};
pub use halt::HaltCode;
pub use model::ModelId;
pub use note::NoteCode;
pub use refusal::{Refusal, Refusals};
pub use register::{RegisterName, Registers};
pub use role::Role;
pub use shape::{Device, MachineShape, QemuVersion};
pub use tenants::Tenants;
