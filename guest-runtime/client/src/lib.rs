// SPDX-License-Identifier: Apache-2.0
//! Attested client: connects to a guest, has it prove itself on that very connection, and checks its receipts.
//!
//! [`connect`] gives an [`AttestedConnection`] only when a fresh proof for the connection was accepted by the policy;
//! [`chat`] asks a question over it; [`run`] is the program `attested-proxy`, a local endpoint for any
//! OpenAI client. Which hardware is believed is the caller's argument: the release binary passes Intel's root.
//!
//! What acceptance does not establish: that a connection was not diverted to a second genuine guest, unless the
//! policy pins platforms or instances. The verdict then says `instance: any`.

mod chat;
mod cli;
mod connection;
mod error;
mod folder;
mod heads;
mod openai;
mod policy;
mod proxy;
mod receipts;
mod report;
mod sse;
mod upstream;
mod verifier;
mod verify_receipt;
mod verify_receipts;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;
use tdx_verify::TrustAnchors;

pub use chat::{Answer, Streamed, chat, question, read_streamed};
pub use connection::{AttestedConnection, InvalidApiKey, connect};
pub use error::ClientError;
pub use folder::FolderError;
pub use openai::response_of;
pub use policy::{ClientPolicy, PolicyFile, PolicyFileError};
pub use receipts::{BookError, ReceiptBook, Session, check_receipt};
pub use sse::{Block, BlockError, Blocks};
pub use upstream::{Upstream, UpstreamError};
pub use verifier::{GuestProof, GuestSide, Verifier};

/// Runs the program with the arguments `args` (the program's name first). Results go to standard output, everything
/// else to standard error. Exit codes: 0 accepted, 2 refused, 64 wrong usage, 1 anything else.
pub fn run(anchors: &TrustAnchors, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli.run(anchors),
        Err(error) => {
            // Help and version are no errors; they go to standard output.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(cli::USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
