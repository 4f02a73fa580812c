// SPDX-License-Identifier: Apache-2.0
//! The quote device of the guest.
