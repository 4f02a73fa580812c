// SPDX-License-Identifier: Apache-2.0
//! The subcommands, one file each.

pub(crate) mod acpi;
pub(crate) mod compute;
pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod quoted;
pub(crate) mod replay;
