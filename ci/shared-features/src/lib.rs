// SPDX-License-Identifier: Apache-2.0
//! Empty: this crate's dependencies turn on what tests want of packages that programs want less of.
//!
//! Cargo gives a package one set of features for all that is built together. Programs are built without the dependencies of
//! tests; where these want more of a package, it would be compiled twice, and all that depends on it.
