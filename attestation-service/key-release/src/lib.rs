// SPDX-License-Identifier: Apache-2.0
//! The key release protocol as states without IO.
