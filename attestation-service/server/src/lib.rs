// SPDX-License-Identifier: Apache-2.0
//! The attestation service.
