// SPDX-License-Identifier: Apache-2.0
//! A space of 32-bit registers.

use std::fmt;
use std::time::Duration;

/// Registers behind a base address register, and time that passes between two looks at them.
pub trait RegisterSpace {
    /// Reads the register at a byte offset.
    ///
    /// # Errors
    /// [`AccessError`] outside of the space.
    fn read(&mut self, offset: u32) -> Result<u32, AccessError>;

    /// Writes the register at a byte offset.
    ///
    /// # Errors
    /// [`AccessError`] outside of the space.
    fn write(&mut self, offset: u32, value: u32) -> Result<(), AccessError>;

    /// Waits before the next look.
    fn pause(&mut self, time: Duration);
}

/// An offset that the space does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the register {offset:#x} lies outside of the mapped {size:#x} bytes or is not aligned")]
pub struct AccessError {
    /// Byte offset.
    pub offset: u32,
    /// Size of the space in bytes.
    pub size: usize,
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A read and what it gave.
    Read {
        /// Byte offset.
        offset: u32,
        /// Value.
        value: u32,
    },
    /// A write.
    Write {
        /// Byte offset.
        offset: u32,
        /// Value.
        value: u32,
    },
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset, value } => write!(f, "read  {offset:06x} {value:08x}"),
            Self::Write { offset, value } => write!(f, "write {offset:06x} {value:08x}"),
        }
    }
}

/// Remembers all accesses to another space.
#[derive(Debug)]
pub struct Traced<S> {
    space: S,
    accesses: Vec<Access>,
}

impl<S: RegisterSpace> Traced<S> {
    /// Begins to remember.
    pub fn new(space: S) -> Self {
        Self { space, accesses: Vec::new() }
    }

    /// All accesses so far, and the space.
    pub fn into_parts(self) -> (Vec<Access>, S) {
        (self.accesses, self.space)
    }
}

impl<S: RegisterSpace> RegisterSpace for Traced<S> {
    fn read(&mut self, offset: u32) -> Result<u32, AccessError> {
        let value = self.space.read(offset)?;
        self.accesses.push(Access::Read { offset, value });
        Ok(value)
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), AccessError> {
        self.accesses.push(Access::Write { offset, value });
        self.space.write(offset, value)
    }

    fn pause(&mut self, time: Duration) {
        self.space.pause(time);
    }
}
