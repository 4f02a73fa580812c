// SPDX-License-Identifier: Apache-2.0
//! Descriptors handed from one process to another by number.
#![allow(unsafe_code, reason = "a descriptor known by number has no owner yet")]

use std::{
    io::Write as _,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};

use crate::SysError;

/// Takes descriptor `number`, which the parent left open for this process, and closes it on exec from now on.
///
/// Call it once per number, before anything else could own that number: at the top of `main`.
///
/// # Errors
/// [`SysError`] when it is not open.
pub fn inherited(number: RawFd) -> Result<OwnedFd, SysError> {
    // SAFETY: F_GETFD on any number is harmless; it fails when nothing is open there.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if number < 3 || open < 0 {
        return Err(SysError { what: "take an inherited descriptor", source: std::io::Error::last_os_error() });
    }
    // SAFETY: it is open, and by this function's contract nothing else in the process owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(SysError::when("mark an inherited descriptor"))?;
    Ok(owned)
}

/// The reading end of a pipe that holds these bytes and then ends: for a child that reads them once. They stand in no file,
/// and in no argument. The kernel keeps them until they are read or the pipe is closed.
///
/// # Errors
/// [`SysError`]: no pipe, or more bytes than a pipe of this process may hold (1 MiB, where nothing else is set).
pub fn holding(bytes: &[u8]) -> Result<OwnedFd, SysError> {
    let failed = |source| SysError { what: "fill a pipe", source };
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    // Nobody reads yet: what did not fit would be waited for without end.
    let size = i32::try_from(bytes.len().max(1)).map_err(|_| failed(Errno::EINVAL.into()))?;
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size)).map_err(SysError::when("size a pipe"))?;
    writer.write_all(bytes).map_err(failed)?;
    Ok(reader.into())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    #[test]
    fn a_pipe_holds_what_a_child_reads_once() {
        for length in [0, 1, 4096, 65_537, 256 << 10] {
            let bytes: Vec<u8> = (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
            let mut read = Vec::new();
            let mut pipe = File::from(holding(&bytes).unwrap());
            pipe.read_to_end(&mut read).unwrap();
            assert!(read == bytes, "{length}");
            assert_eq!(pipe.read(&mut [0; 1]).unwrap(), 0);
        }
        assert!(holding(&vec![0; 64 << 20]).is_err(), "it is refused, and nobody waits");
    }
}
