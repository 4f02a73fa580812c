// SPDX-License-Identifier: Apache-2.0
//! Server-sent events, block by block, with the bytes as they came.

/// One block: everything up to and with an empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The bytes, to be passed on.
    pub raw: Vec<u8>,
    /// The joined lines of `data:`.
    pub data: Option<String>,
    /// The lines after `:`.
    pub comments: Vec<String>,
}

/// Why a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// A block is longer than [`Blocks::MAX`].
    #[error("a server-sent event is longer than {} bytes", Blocks::MAX)]
    TooLong,
    /// A block is no UTF-8.
    #[error("a server-sent event is not UTF-8")]
    NotUtf8,
}

/// Takes bytes as they come and gives whole blocks.
#[derive(Debug, Default)]
pub struct Blocks {
    buffer: Vec<u8>,
    /// Where to go on looking for the end.
    searched: usize,
}

impl Blocks {
    /// Most bytes of a block.
    pub const MAX: usize = 1 << 20;

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole block, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`BlockError`]; the stream can't be read further.
    pub fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(found) = rest.windows(2).position(|pair| pair == b"\n\n") else {
            self.searched = self.buffer.len().saturating_sub(1);
            return if self.buffer.len() > Self::MAX { Err(BlockError::TooLong) } else { Ok(None) };
        };
        let end = self.searched.saturating_add(found).saturating_add(2);
        self.searched = 0;
        if end > Self::MAX {
            return Err(BlockError::TooLong);
        }
        let raw: Vec<u8> = self.buffer.drain(..end).collect();
        parse(raw).map(Some)
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

fn parse(raw: Vec<u8>) -> Result<Block, BlockError> {
    let text = std::str::from_utf8(&raw).map_err(|_| BlockError::NotUtf8)?;
    let (mut data, mut comments) = (None::<String>, Vec::new());
    for line in text.lines() {
        let value = |rest: &str| rest.strip_prefix(' ').unwrap_or(rest).to_owned();
        if let Some(comment) = line.strip_prefix(':') {
            comments.push(value(comment));
        } else if let Some(more) = line.strip_prefix("data:") {
            data = Some(data.map_or_else(|| value(more), |before| format!("{before}\n{}", value(more))));
        }
    }
    Ok(Block { raw, data, comments })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(blocks: &mut Blocks) -> Vec<Block> {
        std::iter::from_fn(|| blocks.next_block().unwrap()).collect()
    }

    #[test]
    fn data_and_comments_are_told_apart() {
        let mut blocks = Blocks::default();
        blocks.push(b"data: a\ndata: b\n\n: c\n\nevent: x\ndata:d\n\ndata: [DO");
        let found = all(&mut blocks);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].data.as_deref(), Some("a\nb"));
        assert_eq!((found[1].data.as_deref(), found[1].comments.as_slice()), (None, ["c".to_owned()].as_slice()));
        assert_eq!(found[2].data.as_deref(), Some("d"));
        assert!(!blocks.is_empty());
        blocks.push(b"NE]\n\n");
        assert_eq!(all(&mut blocks)[0].data.as_deref(), Some("[DONE]"));
        assert!(blocks.is_empty());
    }

    #[test]
    fn endless_and_broken_blocks_are_refused() {
        let mut blocks = Blocks::default();
        blocks.push(&vec![b'x'; Blocks::MAX + 1]);
        assert_eq!(blocks.next_block(), Err(BlockError::TooLong));
        let mut blocks = Blocks::default();
        blocks.push(b"data: \xff\n\n");
        assert_eq!(blocks.next_block(), Err(BlockError::NotUtf8));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_blocks(texts in prop::collection::vec("[a-zé]{0,20}", 0..6), cut in 1_usize..17) {
            let stream: String = texts.iter().map(|text| format!("data: {text}\n\n")).collect();
            let mut blocks = Blocks::default();
            let mut found = Vec::new();
            for piece in stream.as_bytes().chunks(cut) {
                blocks.push(piece);
                found.extend(all(&mut blocks));
            }
            let data: Vec<String> = found.iter().filter_map(|block| block.data.clone()).collect();
            prop_assert_eq!(data, texts);
            prop_assert_eq!(found.into_iter().flat_map(|block| block.raw).collect::<Vec<_>>(), stream.into_bytes());
        }
    }
}
