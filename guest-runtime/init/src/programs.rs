// SPDX-License-Identifier: Apache-2.0
//! How the guest's own processes are started: user, descriptors, files and ports of each. Public so that tests start
//! what they try in the same way; only the path differs there.

use std::{ffi::OsString, os::fd::OwnedFd};

use linux_sys::{
    landlock::{Access, Reach},
    process::Program,
};

use crate::{
    phases::mounts::{ENGINE, MODEL},
    users,
};

/// The holder of keys and quote device: `descriptors` are its control socket and its serving socket, in this order.
#[must_use]
pub fn attester(descriptors: Vec<OwnedFd>, inherits_stderr: bool) -> Program<'static> {
    Program {
        path: "/bin/attester",
        arguments: Vec::new(),
        uid: users::ATTESTER,
        gid: users::ATTESTER,
        groups: Vec::new(),
        descriptors,
        // The simulated device is reached by vsock, which no network namespace takes away.
        without_network: true,
        locks_memory: true,
        reach: Reach { paths: tee::tdx::paths(), tcp_listen: None }.with_randomness(),
        filter: None,
        inherits_stderr,
    }
}

/// A program that the model is for. It reads the model, and makes its socket.
#[must_use]
pub fn engine(path: &'static str, arguments: Vec<OsString>, inherits_stderr: bool) -> Program<'static> {
    Program {
        path,
        arguments,
        uid: users::ENGINE,
        gid: users::ENGINE,
        groups: Vec::new(),
        descriptors: Vec::new(),
        without_network: true,
        locks_memory: false,
        reach: Reach {
            paths: vec![(MODEL.into(), Access::Read), (ENGINE.into(), Access::MakeSocket)],
            tcp_listen: None,
        },
        filter: None,
        inherits_stderr,
    }
}

/// The API, which listens on TCP port `port`; `drain` is the socket on which the host is heard, and `tenants` holds the document
/// of the model's tenants.
#[must_use]
pub fn serve(
    port: u16,
    arguments: Vec<OsString>,
    drain: OwnedFd,
    tenants: Option<OwnedFd>,
    inherits_stderr: bool,
) -> Program<'static> {
    Program {
        path: "/bin/serve",
        arguments,
        uid: users::SERVE,
        gid: users::SERVE,
        groups: Vec::new(),
        descriptors: std::iter::once(drain).chain(tenants).collect(),
        without_network: false,
        locks_memory: false,
        reach: Reach { paths: Vec::new(), tcp_listen: Some(port) }.with_randomness(),
        filter: None,
        inherits_stderr,
    }
}
