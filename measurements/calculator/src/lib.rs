// SPDX-License-Identifier: Apache-2.0
//! Computes the expected TDX registers of an image for a machine shape.
