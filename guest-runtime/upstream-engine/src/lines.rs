// SPDX-License-Identifier: Apache-2.0
//! Server-sent events, as far as completions use them: a line each.

use zeroize::Zeroize as _;

/// Takes bytes as they come and gives back the data of whole events (HTML standard, "Server-sent events"). Holds at most one
/// line and what came with it.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// How much of it was given back.
    start: usize,
    /// How much of it holds no end of a line that was not given back.
    searched: usize,
    /// Bytes so far.
    total: usize,
}

/// The stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotALine {
    /// A line is longer than [`MAX_LINE`], or all of them than [`MAX_STREAM`].
    TooLong,
    /// A field that is none of an event stream's.
    UnknownField,
}

impl Lines {
    /// Adds bytes. Call [`Self::next_data`] until it gives `None` before you push again: this bounds the memory.
    ///
    /// # Errors
    /// [`NotALine::TooLong`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NotALine> {
        self.total = self.total.saturating_add(bytes.len());
        self.buffer.drain(..self.start.min(self.buffer.len()));
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
        if self.total > MAX_STREAM {
            return Err(NotALine::TooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The data of the next event. Empty lines, comments and fields other than `data` are passed over.
    ///
    /// # Errors
    /// [`NotALine`].
    pub fn next_data(&mut self) -> Result<Option<Vec<u8>>, NotALine> {
        loop {
            let start = self.start;
            let new = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(end) = new.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                let is_long = self.buffer.len().saturating_sub(start) > MAX_LINE;
                return if is_long { Err(NotALine::TooLong) } else { Ok(None) };
            };
            let end = self.searched.saturating_add(end);
            self.start = end.saturating_add(1);
            self.searched = self.start;
            let line = self.buffer.get(start..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.len() > MAX_LINE {
                return Err(NotALine::TooLong);
            }
            let (name, value) = match line.iter().position(|byte| *byte == b':') {
                Some(colon) => line.split_at(colon),
                None => (line, &[][..]),
            };
            let value = value.strip_prefix(b":").unwrap_or(value);
            match name {
                b"data" => return Ok(Some(value.strip_prefix(b" ").unwrap_or(value).to_vec())),
                b"" | b"event" | b"id" | b"retry" => {}
                _ => return Err(NotALine::UnknownField),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

/// Longest line, in bytes: a piece of text with twenty likeliest tokens beside each of its own has some kilobytes.
pub const MAX_LINE: usize = 256 << 10;
/// Longest stream, in bytes. `serve` ends answers of a quarter of it.
pub const MAX_STREAM: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(stream: &[u8], cut: usize) -> Result<Vec<String>, NotALine> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in stream.chunks(cut) {
            lines.push(piece)?;
            while let Some(data) = lines.next_data()? {
                found.push(String::from_utf8_lossy(&data).into_owned());
            }
        }
        Ok(found)
    }

    #[test]
    fn data_is_found_among_other_fields_however_it_is_cut() {
        let stream =
            b": hi\n\nevent: x\r\ndata: a: b\r\n\r\ndata:c\n\ndata\nid: 1\nretry: 2\ndata:  d\ndata: unfinished";
        for cut in 1..stream.len() {
            assert_eq!(all(stream, cut).unwrap(), ["a: b", "c", "", " d"]);
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        assert_eq!(all(&vec![b'x'; MAX_LINE + 1], 4096), Err(NotALine::TooLong));
        assert_eq!(all(&[&vec![b'x'; MAX_LINE + 1][..], b"\n"].concat(), usize::MAX), Err(NotALine::TooLong));
        let line = [&b"data: "[..], &vec![b'x'; MAX_LINE - 6], b"\n"].concat();
        assert_eq!(all(&line, 4096).unwrap().len(), 1);
        let comments = [&b":"[..], &[b'x'; 1022], b"\n"].concat().repeat(MAX_STREAM / 1024 + 1);
        assert_eq!(all(&comments, 1 << 16), Err(NotALine::TooLong));
        assert_eq!(all(b"HTTP/1.1 200 OK\n", 5), Err(NotALine::UnknownField));
        assert_eq!(all(b"\0\0\0\n", 5), Err(NotALine::UnknownField));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(stream in "(data: [a-z\n]{0,9}\n|:x\n|\r\n){0,9}", cut in 1_usize..40) {
            prop_assert_eq!(all(stream.as_bytes(), cut), all(stream.as_bytes(), usize::MAX));
        }
    }
}
