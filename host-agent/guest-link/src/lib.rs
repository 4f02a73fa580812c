// SPDX-License-Identifier: Apache-2.0
//! The host side of the vsock links of a guest: forwarding to the attestation service, status lines, and
//! files that others have signed.
//!
//! The guest behind a link is as hostile to the host as the host is to it: connections, bytes and lines are capped.

mod blobs;
mod connect;
mod drain;
mod forward;
mod listener;
mod status;
mod switch;

pub use blobs::serve_blobs;
pub use connect::connect_owned;
pub use drain::{DrainError, tell_to_drain};
pub use forward::forward;
pub use listener::{LinkError, LinkListener, LinkStream, VsockHost};
pub use status::{MalformedStatus, StatusLine, receive_status};
pub use switch::switch;

/// Port on which guests reach the attestation service.
pub const SERVICE_PORT: u32 = 7000;
/// Port on which guests send status lines.
pub const STATUS_PORT: u32 = 7001;
/// Port on which guests ask for files that others have signed.
pub const BLOB_PORT: u32 = blob_protocol::PORT;
/// Port of the simulated quote device.
pub const SIMULATED_DEVICE_PORT: u32 = 7002;
