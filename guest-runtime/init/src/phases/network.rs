// SPDX-License-Identifier: Apache-2.0
//! One interface, one static address; no DNS, no DHCP, no gateway.

use linux_sys::net;
use types::GuestConfig;

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

pub(crate) fn run(config: &GuestConfig) -> Result<(), Failure> {
    net::loopback_up().map_err(Code::NetworkFailed.because())?;
    net::interface_up(config.network.address.0, config.network.prefix.0).map_err(Code::NetworkFailed.because())
}
