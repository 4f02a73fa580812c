// SPDX-License-Identifier: Apache-2.0
//! A store, a published release, a simulated platform with guests, and the service as a program that can be killed:
//! what tests under load and benches have in common. Times are the machine's own, since the program's are.

mod guest;
mod program;
mod scene;

pub use guest::Guest;
pub use program::{Program, Starter};
pub use scene::{KEY, Scene, model, now};
