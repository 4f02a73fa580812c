// SPDX-License-Identifier: Apache-2.0
//! PID 1 of the guest: see the library.

fn main() {
    init::run()
}
