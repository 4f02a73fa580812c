// SPDX-License-Identifier: Apache-2.0
//! Appraises evidence against releases and policy.
