// SPDX-License-Identifier: Apache-2.0
//! The phases, one module each, in the order of the boot.

pub(crate) mod mounts;

pub(crate) mod entropy;

pub(crate) mod configuration;

pub(crate) mod lockdown;

pub(crate) mod network;

pub(crate) mod time;

pub(crate) mod gpu;

pub(crate) mod keys;

pub(crate) mod model;

pub(crate) mod serve;
