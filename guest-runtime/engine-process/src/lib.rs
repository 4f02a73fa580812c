// SPDX-License-Identifier: Apache-2.0
//! What every engine process of the guest has, whatever computes in it: one client on a Unix socket that is closed
//! behind it, commands on one thread and work on another ([`serve_client`]), and the seccomp filters of both stages of
//! its life ([`confine`], [`confine_with_gpus`]).
//!
//! What works is a [`Worker`]. Each [`batching::Engine`] is one.

mod sandbox;
mod serving;
mod worker;

pub use linux_sys::seccomp::SeccompError;
pub use sandbox::{Stage, confine, confine_with_gpus};
pub use serving::{ServeError, accept_one, serve_client};
pub use worker::Worker;
