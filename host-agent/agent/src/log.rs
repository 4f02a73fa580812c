// SPDX-License-Identifier: Apache-2.0
//! Logs of child processes. A guest decides how much its QEMU says: a log takes a fixed part of the disk, whatever it is.

use std::collections::VecDeque;
use std::io::Write;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Reads `output` to its end and writes to `log` its first MiB as it comes, and what came last when it has ended. Never
/// stops reading, also when nothing can be written: who speaks must not wait.
pub(crate) async fn keep(mut output: impl AsyncRead + Unpin, mut log: impl Write) {
    let mut buffer = vec![0; BUFFER];
    let (mut room, mut last, mut left_out) = (FIRST, VecDeque::new(), 0_u64);
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default();
        let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        room = room.saturating_sub(now.len());
        // A full disk costs the log, not the guest.
        let _ = log.write_all(now);
        last.extend(later);
        let excess = last.len().saturating_sub(LAST);
        last.drain(..excess);
        left_out = left_out.saturating_add(u64::try_from(excess).unwrap_or(u64::MAX));
    }
    if left_out > 0 {
        let _ = writeln!(log, "\n[host-agent: {left_out} bytes are left out]");
    }
    let (one, two) = last.as_slices();
    let _ = log.write_all(one).and_then(|()| log.write_all(two)).and_then(|()| log.flush());
}

const BUFFER: usize = 8 * 1024;
/// Most bytes that are written while they come.
const FIRST: usize = 1 << 20;
/// Most bytes that are kept in memory until the end.
const LAST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log holds of this output.
    async fn kept(output: &[u8]) -> Vec<u8> {
        let mut log = Vec::new();
        keep(output, &mut log).await;
        log
    }

    #[tokio::test]
    async fn a_log_has_the_beginning_and_the_end_of_whatever_is_said() {
        for length in [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + LAST] {
            let output: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            assert_eq!(kept(&output).await, output, "{length}");
        }
        for excess in [1, LAST, 5 * FIRST] {
            let output: Vec<u8> = (0..FIRST + LAST + excess).map(|at| at.to_le_bytes()[at % 3]).collect();
            let log = kept(&output).await;
            assert!(log.len() < FIRST + LAST + 100, "{}", log.len());
            assert!(log.starts_with(&output[..FIRST]) && log.ends_with(&output[output.len() - LAST..]));
            let note = String::from_utf8_lossy(&log[FIRST..log.len() - LAST]).into_owned();
            assert_eq!(note.trim(), format!("[host-agent: {excess} bytes are left out]"));
        }
    }

    #[tokio::test]
    async fn a_full_disk_stops_nobody() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (speaks, output) = tokio::net::UnixStream::pair().unwrap();
        let reading = tokio::spawn(keep(output, Full));
        let mut speaks = speaks;
        tokio::io::AsyncWriteExt::write_all(&mut speaks, &vec![1; 2 * FIRST]).await.unwrap();
        drop(speaks);
        reading.await.unwrap();
    }
}
