// SPDX-License-Identifier: Apache-2.0
//! What `serve` and the inference engine say to each other over a Unix socket.
