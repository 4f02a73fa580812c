// SPDX-License-Identifier: Apache-2.0
//! PID 1 of the guest: boot as a list of named phases.
//!
//! Each phase does one thing and then extends RTMR3, through the attester, with one named event. A failure, a panic or the
//! death of any process ends the guest with one numeric line to the host ([`types::HaltCode`], `docs/status-codes.md`); nothing
//! else is ever printed, except on the console of a development image.

mod attester;
mod boot;
mod confinement;
mod console;
mod gpus;
mod phases;
pub mod programs;
mod service;
mod status;
mod users;

use std::convert::Infallible;

use types::EventName;

use boot::{Boot, Halt};
pub use confinement::{Stage, confine};
pub use gpus::{persistence, runtime_directories};
pub use phases::mounts::mount;

/// Boots, serves, and powers the machine off when anything fails.
pub fn run() -> ! {
    let mut boot = Boot::begin();
    let Err(halt) = sequence(&mut boot);
    boot.halt(&halt);
    linux_sys::power::off()
}

/// The boot.
fn sequence(boot: &mut Boot) -> Result<Infallible, Halt> {
    boot.phase(EventName::Mounts, phases::mounts::run)?;
    boot.phase(EventName::Entropy, phases::entropy::run)?;
    let config = boot.phase(EventName::Configuration, phases::configuration::run)?;
    boot.phase(EventName::Lockdown, |boot| phases::lockdown::run(boot, &config))?;
    boot.phase(EventName::Network, |_| phases::network::run(&config))?;
    boot.phase(EventName::Time, |boot| phases::time::run(boot, &config))?;
    boot.phase(EventName::Gpu, |boot| phases::gpu::run(boot, &config))?;
    let (key, tenants) = boot.phase(EventName::Keys, |boot| phases::keys::run(boot, &config))?;
    boot.phase(EventName::KeysClosed, phases::keys::close)?;
    let model = boot.phase(EventName::Model, |_| phases::model::run(&config, key))?;
    boot.measure(EventName::Serve)?;
    boot.phase_after_event(EventName::Serve, |boot| phases::serve::run(boot, &config, &model, tenants))?;
    phases::serve::supervise(boot)
}
