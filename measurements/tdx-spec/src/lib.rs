// SPDX-License-Identifier: Apache-2.0
//! Binary layouts of Intel TDX: quotes, TD reports, attributes, TDVF metadata.
//!
//! Readers only, and of the layout only: a value of these types is well formed, not authentic. Every reader
//! takes untrusted bytes, has caps, refuses trailing bytes and never panics. Writers live with the simulator,
//! on purpose in another crate.

pub mod attributes;
pub mod cursor;
pub mod quote;
pub mod report;
pub mod tdreport;
pub mod tdvf;

pub use attributes::{TdAttributes, Xfam};
pub use cursor::{Cursor, ReadError};
pub use quote::{Quote, QuoteBody, QuoteError, QuoteHeader, QuoteVersion};
pub use report::{TdReport10, TdReport15, TdReport15Ex};
pub use tdreport::{ReportMac, TdInfo, TdReport, TdReportError, TeeTcbInfo};
pub use tdvf::{Section, SectionKind, Tdvf, TdvfError};
