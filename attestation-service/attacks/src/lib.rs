// SPDX-License-Identifier: Apache-2.0
//! Attacks on the attestation service as committed directories: bytes or steps, the refusal that each must meet, and
//! where they come from. `docs/threat-model.md` numbers the attacks; `docs/attacks.md` lists the directories.
//!
//! Each case is run against the programs, as processes, and over TLS where a guest would be: a refusal with another
//! code or field than the case says is a failed test. Bytes were made once by [`generate`], with keys that nobody has
//! any more, and are valid for decades, since a running service takes no time but its machine's.

pub mod case;
pub mod generate;
pub mod gpu;
pub mod page;
pub mod program;
pub mod resume;
pub mod wire;
