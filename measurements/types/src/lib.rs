// SPDX-License-Identifier: Apache-2.0
//! Vocabulary shared by all parts: digests, registers, machine shape, guest configuration, evidence.
