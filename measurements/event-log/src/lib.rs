// SPDX-License-Identifier: Apache-2.0
//! Parses and replays CCEL, TCG2 and RTMR3 event logs.
