// SPDX-License-Identifier: Apache-2.0
//! The device mapper's control device: one read-only device with one target is made, nothing else (`linux/dm-ioctl.h`).
#![allow(unsafe_code, reason = "four ioctls without safe wrappers")]

use std::{
    fs::{File, OpenOptions},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use crate::SysError;

/// The control device, asked for its version.
#[derive(Debug)]
pub(crate) struct Mapper(File);

/// The one target of a read-only device.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// Name of the target's type.
    pub(crate) kind: &'a str,
    /// Length in sectors of 512 bytes.
    pub(crate) sectors: u64,
    /// What the target's type reads.
    pub(crate) parameters: &'a str,
}

impl Mapper {
    /// Opens the control device.
    ///
    /// # Errors
    /// [`SysError`], also when the kernel speaks another version of the interface.
    pub(crate) fn open() -> Result<Self, SysError> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        let mapper = Self(control.map_err(SysError::when("open the device mapper"))?);
        mapper.ask(dm_version, &mut Request::new("", 0)?, "ask the device mapper's version")?;
        Ok(mapper)
    }

    /// Makes the device `name`, read-only, and gives its path. A device that cannot be completed stays without a table: it
    /// has no bytes.
    ///
    /// # Errors
    /// [`SysError`].
    pub(crate) fn read_only(&self, name: &str, target: &Target<'_>) -> Result<PathBuf, SysError> {
        let mut made = Request::new(name, READ_ONLY)?;
        self.ask(dm_dev_create, &mut made, "make a mapped device")?;
        let device = made.header.dev;
        let mut table = Request::new(name, READ_ONLY)?;
        table.describe(target)?;
        self.ask(dm_table_load, &mut table, "load the table of a mapped device")?;
        // Without the flag for suspending, the device is resumed: the table becomes active.
        self.ask(dm_dev_suspend, &mut Request::new(name, READ_ONLY)?, "activate a mapped device")?;
        Ok(Path::new("/dev").join(format!("dm-{}", minor(device))))
    }

    fn ask(&self, ioctl: Ioctl, request: &mut Request, what: &'static str) -> Result<(), SysError> {
        // SAFETY: the kernel reads and writes `data_size` bytes, which is the size of the whole request, and the request
        // begins with its header.
        let done = unsafe { ioctl(self.0.as_raw_fd(), std::ptr::from_mut(request).cast()) };
        done.map(drop).map_err(SysError::when(what))
    }
}

type Ioctl = unsafe fn(libc::c_int, *mut Header) -> nix::Result<libc::c_int>;

impl Request {
    fn new(name: &str, flags: u32) -> Result<Self, SysError> {
        let size = const { size_of::<Self>() as u32 };
        let header = Header {
            version: VERSION,
            data_size: size,
            data_start: const { size_of::<Header>() as u32 },
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: text(name)?,
            uuid: [0; 129],
            data: [0; 7],
        };
        let target = TargetSpec { sector_start: 0, length: 0, status: 0, next: 0, target_type: [0; 16] };
        Ok(Self { header, target, parameters: [0; MAX_PARAMETERS] })
    }

    fn describe(&mut self, target: &Target<'_>) -> Result<(), SysError> {
        let Target { kind, sectors, parameters } = target;
        self.header.target_count = 1;
        self.target.length = *sectors;
        self.target.target_type = text(kind)?;
        self.parameters = text(parameters)?;
        Ok(())
    }
}

/// A text in a field that ends with a zero.
fn text<const N: usize>(text: &str) -> Result<[u8; N], SysError> {
    let mut field = [0; N];
    let too_long = || SysError { what: "describe a mapped device", source: std::io::ErrorKind::InvalidInput.into() };
    if text.len() >= N || text.bytes().any(|byte| byte == 0) {
        return Err(too_long());
    }
    field.get_mut(..text.len()).ok_or_else(too_long)?.copy_from_slice(text.as_bytes());
    Ok(field)
}

/// The kernel's encoding of a device number for programs (`new_encode_dev`).
const fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & 0xf_ff00)
}

/// A header, one target, its parameters: all that a request here ever holds.
#[repr(C)]
struct Request {
    header: Header,
    target: TargetSpec,
    parameters: [u8; MAX_PARAMETERS],
}

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
struct TargetSpec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == 312 && size_of::<TargetSpec>() == 40);
const _: () = assert!(std::mem::offset_of!(Request, parameters) == 352);
const _: () = assert!(nix::request_code_readwrite!(DM, 9, size_of::<Header>()) == 0xc138_fd09);

nix::ioctl_readwrite!(
    /// `DM_VERSION`: fails when the caller's major version is another.
    dm_version,
    DM,
    0,
    Header
);
nix::ioctl_readwrite!(
    /// `DM_DEV_CREATE`.
    dm_dev_create,
    DM,
    3,
    Header
);
nix::ioctl_readwrite!(
    /// `DM_DEV_SUSPEND`: suspends or resumes.
    dm_dev_suspend,
    DM,
    6,
    Header
);
nix::ioctl_readwrite!(
    /// `DM_TABLE_LOAD`.
    dm_table_load,
    DM,
    9,
    Header
);

const CONTROL: &str = "/dev/mapper/control";
/// `DM_IOCTL`.
const DM: u8 = 0xfd;
/// The first version of the fourth interface: all of 4.x takes it.
const VERSION: [u32; 3] = [4, 0, 0];
/// `DM_READONLY_FLAG`.
const READ_ONLY: u32 = 1;
const MAX_PARAMETERS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_size_and_its_target() {
        let mut request = Request::new("gpu-root", READ_ONLY).unwrap();
        let target = Target { kind: "verity", sectors: 8, parameters: "1 254:0" };
        request.describe(&target).unwrap();
        assert_eq!((request.header.data_size, request.header.data_start), (864, 312));
        assert_eq!((request.header.target_count, request.target.length), (1, 8));
        assert!(request.header.name.starts_with(b"gpu-root\0") && request.parameters.starts_with(b"1 254:0\0"));
        assert!(request.target.target_type.starts_with(b"verity\0"));
    }

    #[test]
    fn a_text_that_does_not_fit_is_refused() {
        assert!(text::<4>("abc").is_ok());
        assert!(text::<4>("abcd").is_err() && text::<8>("a\0b").is_err());
        let parameters = "x".repeat(MAX_PARAMETERS);
        let target = Target { kind: "verity", sectors: 8, parameters: &parameters };
        assert!(Request::new("r", 0).unwrap().describe(&target).is_err());
    }

    #[test]
    fn minors_are_split_in_the_kernels_encoding() {
        assert_eq!(minor(0xfc00), 0);
        assert_eq!(minor(0xfc07), 7);
        assert_eq!(minor(0x10_fc01), 0x101);
    }
}
