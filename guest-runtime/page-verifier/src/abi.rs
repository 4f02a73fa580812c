// SPDX-License-Identifier: Apache-2.0
//! How bytes cross the border of a WebAssembly module without a pointer: four at a time, as a number.

use crate::MAX_REQUEST;

/// One request, and then its answer. The module's exported functions are these methods: `begin`, `give` until all is given, `decide`, and
/// `answer` until all is taken.
#[derive(Debug, Default)]
pub struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    /// Without a request.
    #[must_use]
    pub const fn new() -> Self {
        Self { request: Vec::new(), answer: Vec::new() }
    }

    /// Forgets what was there.
    pub fn begin(&mut self) {
        *self = Self::new();
    }

    /// Adds the first `count` (at most 4) bytes of `word`, little-endian. What is longer than [`MAX_REQUEST`] is cut one byte after that,
    /// and then refused for its length.
    pub fn give(&mut self, word: u32, count: u32) {
        let room = MAX_REQUEST.saturating_add(1).saturating_sub(self.request.len());
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(room);
        self.request.extend(word.to_le_bytes().into_iter().take(count));
    }

    /// Decides, and gives the answer's length in bytes. The request is forgotten.
    pub fn decide(&mut self, verify: impl FnOnce(&[u8]) -> Vec<u8>) -> u32 {
        self.answer = verify(&std::mem::take(&mut self.request));
        u32::try_from(self.answer.len()).unwrap_or(u32::MAX)
    }

    /// Four bytes of the answer from `at` on, little-endian; zeros after its end.
    #[must_use]
    pub fn answer(&self, at: u32) -> u32 {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let mut word = [0; 4];
        let rest = self.answer.get(from..).unwrap_or_default();
        word.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
        u32::from_le_bytes(word)
    }
}
