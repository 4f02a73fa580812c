// SPDX-License-Identifier: Apache-2.0
//! The host agent with stand-ins for QEMU and its helpers. The tests are in `tests/`; `src/bin` has the stand-ins, and the
//! agent itself under another name, so that a test of this crate alone finds it built.
