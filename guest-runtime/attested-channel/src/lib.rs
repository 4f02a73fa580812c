// SPDX-License-Identifier: Apache-2.0
//! Binding of evidence to keys and connections, the freshness tree, certificates, receipts and TLS settings.
//!
//! Pure functions of bytes: no sockets, clocks or randomness. Feature `tls` adds the TLS settings of both sides,
//! feature `stream` a wrapper that keeps a connection's exporter reachable while HTTP owns the stream.

pub mod binding;
pub mod boot;
pub mod certificate;
pub mod chain;
pub mod launch;
pub mod receipt;
pub mod stored;
#[cfg(feature = "stream")]
pub mod stream;
#[cfg(feature = "tls")]
pub mod tls;
pub mod tree;

pub use binding::{ReportDataInputs, ed25519_spki_sha256, gpu_digest, gpu_nonce};
pub use boot::{BootFacts, Moment, expected_events};
pub use certificate::{CertificateError, CertificateEvidence, GuestCertificate};
pub use chain::{Audit, Chain, ChainError, Commitment};
pub use launch::{Quoted, launch_digest};
pub use receipt::{DeliveredReceipt, Receipt, ReceiptError, SignedReceipt};
pub use stored::{StoredProof, StoredProofError, as_committed};
pub use tree::{EXPORTER_LABEL, Leaf, PathError, Tree, verify_path};
