// SPDX-License-Identifier: Apache-2.0
//! Binding of evidence to keys and connections, and the freshness tree.
