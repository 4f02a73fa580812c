// SPDX-License-Identifier: Apache-2.0
//! Development only: simulated TDX hardware and the binaries that trust it.
