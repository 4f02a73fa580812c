// SPDX-License-Identifier: Apache-2.0
//! From a launch specification to the arguments of QEMU.
