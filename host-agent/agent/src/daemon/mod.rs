// SPDX-License-Identifier: Apache-2.0
//! The daemon: guests as they were declared, whatever dies.

mod config;
mod release;
