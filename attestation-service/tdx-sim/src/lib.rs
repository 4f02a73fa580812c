// SPDX-License-Identifier: Apache-2.0
//! Development only: simulated TDX hardware and the binaries that trust it.
//!
//! There is no TDX processor on the development machines. This crate stands in for the *hardware only*: the
//! provisioning keys and their certificates ([`pki`]), quotes ([`quote`]), the collateral that a verifier fetches for
//! them ([`collateral`]), and a trust domain that extends RTMR3 and quotes ([`SimulatedTd`]).
//!
//! Nothing signed here says anything about real hardware. Only binaries of this crate trust its root.

mod changed;
pub mod collateral;
mod der;
pub mod device;
pub mod fault;
pub mod measure;
pub mod pki;
pub mod quote;
pub mod root;
pub mod td;
pub mod verdict;

pub use collateral::Collateral;
pub use fault::Fault;
pub use measure::{Launch, MeasureError, Measurement, measure};
pub use pki::{PkiError, SimulatedPlatform};
pub use quote::{QuoteVersion, TdReport};
pub use root::take_root;
pub use td::{SimulatedTd, TdParams};

/// What every line that shows a simulated result says.
pub const SIMULATED: &str = "hardware simulated";
