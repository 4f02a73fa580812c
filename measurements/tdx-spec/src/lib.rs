// SPDX-License-Identifier: Apache-2.0
//! Binary layouts of Intel TDX: quotes, TD reports, attributes, TDVF metadata.
