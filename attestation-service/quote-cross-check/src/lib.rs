// SPDX-License-Identifier: Apache-2.0
//! Nothing but tests: see `tests/version_4.rs`.
