// SPDX-License-Identifier: Apache-2.0
//! Durable state of the attestation service: wrapped keys, releases, audit log.
