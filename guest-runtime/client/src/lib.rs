// SPDX-License-Identifier: Apache-2.0
//! Attested client library and the local proxy.
