// SPDX-License-Identifier: Apache-2.0
//! The system calls of the guest, and all of its unsafe code.
