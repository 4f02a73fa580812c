// SPDX-License-Identifier: Apache-2.0
//! Verifies TDX quotes against collateral, trust anchors and policy.
