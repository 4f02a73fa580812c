// SPDX-License-Identifier: Apache-2.0
//! Release statements, DSSE bundles and the append-only tile log.
