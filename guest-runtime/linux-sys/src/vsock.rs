// SPDX-License-Identifier: Apache-2.0
//! Connections to the host. Everything that comes from there is hostile.

use std::{
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

use crate::SysError;

/// Connects to a vsock port of the host (CID 2), blocking. Reads and writes fail after `patience` without progress.
///
/// The result is typed as a Unix stream: the standard library has no type for vsock, and its stream types are thin
/// wrappers over any connected stream socket. Only reading, writing, shutting down and time-outs mean anything on it.
///
/// # Errors
/// [`SysError`].
pub fn to_host(port: u32, patience: Option<Duration>) -> Result<UnixStream, SysError> {
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(SysError::when("make a vsock socket"))?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port)).map_err(SysError::when("connect to the host"))?;
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(patience).map_err(SysError::when("set a time-out"))?;
    stream.set_write_timeout(patience).map_err(SysError::when("set a time-out"))?;
    Ok(stream)
}

/// `VMADDR_CID_HOST`.
const HOST: u32 = 2;
