// SPDX-License-Identifier: Apache-2.0
//! Encrypted model packs: pack, verify, inspect, decrypt.
