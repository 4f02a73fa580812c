// SPDX-License-Identifier: Apache-2.0
//! The inference engine process of the guest.
