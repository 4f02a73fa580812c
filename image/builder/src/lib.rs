// SPDX-License-Identifier: Apache-2.0
//! Builds guest images reproducibly from locked inputs.
