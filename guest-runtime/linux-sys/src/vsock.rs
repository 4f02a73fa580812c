// SPDX-License-Identifier: Apache-2.0
//! Connections to and from the host. Everything that comes from there is hostile.
#![allow(unsafe_code, reason = "an accepted descriptor is given as a number")]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen as start_listening, socket,
};

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

/// Listens on a vsock port of this guest; nothing waits on the result ([`accept`] says `WouldBlock`). The device carries
/// connections of the host alone.
///
/// # Errors
/// [`SysError`].
pub fn listen(port: u32) -> Result<OwnedFd, SysError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener: OwnedFd =
        socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(SysError::when("make a vsock socket"))?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port)).map_err(SysError::when("take a vsock port"))?;
    let backlog = Backlog::new(WAITING).map_err(SysError::when("listen on a vsock port"))?;
    start_listening(&listener, backlog).map_err(SysError::when("listen on a vsock port"))?;
    Ok(listener)
}

/// Takes the next connection of a listening stream socket of any family; nothing waits on it either. Typed as
/// [`to_host`]'s result is. The standard library's `accept` takes no address but those of its own families.
///
/// # Errors
/// The kernel's, `WouldBlock` among them.
pub fn accept(listener: &impl AsFd) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accepted = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: the kernel has just opened it for this call; nothing else knows its number.
    Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(accepted) }))
}

/// Connections that wait to be taken.
const WAITING: i32 = 4;
/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;
/// `VMADDR_CID_HOST`.
const HOST: u32 = 2;

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn connections_are_taken_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut client = UnixStream::connect(&path).unwrap();
        let mut accepted = accept(&listener).unwrap();
        let mut byte = [0];
        let read = |stream: &mut UnixStream, byte: &mut [u8]| io::Read::read(stream, byte);
        assert_eq!(read(&mut accepted, &mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"x").unwrap();
        assert_eq!(read(&mut accepted, &mut byte).unwrap(), 1);
    }
}
