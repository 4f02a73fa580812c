// SPDX-License-Identifier: Apache-2.0
//! A directory of this machine.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::SourceError;
use crate::source::{PART, PARTS, Parts};

/// A file of at most `most` bytes.
pub(crate) fn whole(path: PathBuf, most: usize) -> Parts {
    read(move || {
        let (file, length) = regular(&path)?;
        if length > u64::try_from(most).unwrap_or(u64::MAX) {
            return Err(SourceError::Length);
        }
        Ok((file, length))
    })
}

/// A file of exactly `length` bytes, from `from` on.
pub(crate) fn range(path: PathBuf, from: u64, length: u64) -> Parts {
    read(move || {
        let (mut file, found) = regular(&path)?;
        if found != length {
            return Err(SourceError::Length);
        }
        file.seek(SeekFrom::Start(from)).map_err(failed("reading"))?;
        Ok((file, length.saturating_sub(from)))
    })
}

/// Reads in a thread of its own, until nobody takes any more.
fn read(open: impl FnOnce() -> Result<(File, u64), SourceError> + Send + 'static) -> Parts {
    let (sender, parts) = mpsc::channel(PARTS);
    tokio::task::spawn_blocking(move || {
        let (mut file, mut left) = match open() {
            Ok(opened) => opened,
            Err(error) => {
                let _ = sender.blocking_send(Err(error));
                return;
            }
        };
        while left > 0 {
            let part = next(&mut file, left);
            let taken = part.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            left = left.saturating_sub(taken);
            let failed = part.is_err();
            if sender.blocking_send(part).is_err() || failed {
                return;
            }
        }
    });
    parts
}

fn next(file: &mut File, left: u64) -> Result<Bytes, SourceError> {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(PART);
    let mut part = vec![0; length];
    file.read_exact(&mut part).map_err(failed("reading"))?;
    Ok(part.into())
}

fn regular(path: &Path) -> Result<(File, u64), SourceError> {
    // Asked before it is opened: opening a pipe would wait for its writer.
    let metadata = path.metadata().map_err(failed("opening"))?;
    if !metadata.is_file() {
        return Err(SourceError::Io { what: "opening", kind: io::ErrorKind::InvalidInput });
    }
    Ok((File::open(path).map_err(failed("opening"))?, metadata.len()))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> SourceError {
    move |error| SourceError::Io { what, kind: error.kind() }
}
