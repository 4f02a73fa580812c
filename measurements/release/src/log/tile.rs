// SPDX-License-Identifier: Apache-2.0
//! Names of tiles and entry bundles (C2SP tlog-tiles, "Merkle Tree" and "Log Entries").

use types::Sha256Digest;

/// Hashes in a full tile, entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;
/// Bytes of a hash in a tile.
pub const HASH_BYTES: usize = 32;
/// Most bytes of one entry: its length has two bytes in a bundle.
pub const MAX_ENTRY: usize = u16::MAX as usize;

/// The name of a tile (`tile/L/N[.p/W]`) or an entry bundle (`tile/entries/N[.p/W]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TilePath {
    /// Level of the tile, 0 to 7, or `None` for an entry bundle.
    level: Option<u8>,
    /// Number in the level.
    index: u64,
    /// Hashes or entries in it, 1 to 256.
    width: u16,
}

/// Why a tile could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TileError {
    /// It is not there.
    #[error("the tile {0} is missing")]
    Missing(TilePath),
    /// It has another size than its name says, or an entry's length does not fit.
    #[error("the tile {0} is malformed")]
    Form(TilePath),
    /// It could not be read.
    #[error("the tile {path} could not be read")]
    Read {
        /// Which tile.
        path: TilePath,
        /// What the storage said.
        #[source]
        source: Box<dyn core::error::Error + Send + Sync>,
    },
    /// The text is not a tile's name in its only spelling.
    #[error("not the name of a tile")]
    Name,
    /// The tree's size or an index is beyond what eight levels of tiles hold, or an index beyond the tree.
    #[error("the index or size is out of range")]
    Range,
}

/// Where tiles are read from. What comes back is checked by the reader.
pub trait Tiles {
    /// The bytes of the tile or entry bundle.
    ///
    /// # Errors
    /// [`TileError::Missing`] or [`TileError::Read`].
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError>;
}

impl TilePath {
    /// The tile `index` of `level` in a tree of `size` entries; `None` where the tree has no such tile.
    #[must_use]
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        if level > MAX_LEVEL {
            return None;
        }
        Self::with_width(Some(level), index, size.checked_shr(8 * u32::from(level))?)
    }

    /// The entry bundle `index` of a tree of `size` entries; `None` where the tree has no such bundle.
    #[must_use]
    pub fn entries(index: u64, size: u64) -> Option<Self> {
        Self::with_width(None, index, size)
    }

    fn with_width(level: Option<u8>, index: u64, nodes: u64) -> Option<Self> {
        let before = index.checked_mul(u64::from(TILE_WIDTH))?;
        let width = nodes.checked_sub(before)?.min(u64::from(TILE_WIDTH));
        let width = u16::try_from(width).ok().filter(|w| *w > 0)?;
        Some(Self { level, index, width })
    }

    /// Level of the tile, or `None` for an entry bundle.
    #[must_use]
    pub const fn level(&self) -> Option<u8> {
        self.level
    }

    /// Number in the level.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Hashes or entries in it.
    #[must_use]
    pub const fn width(&self) -> u16 {
        self.width
    }

    /// Whether it is full and will never change.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The full tile or bundle of this number, which holds this one's content first.
    #[must_use]
    pub const fn full(&self) -> Self {
        Self { level: self.level, index: self.index, width: TILE_WIDTH }
    }

    /// This tile's or bundle's bytes out of those of [`TilePath::full`].
    ///
    /// # Errors
    /// [`TileError::Form`] when `full` is not a full tile or bundle.
    pub fn cut_from_full(&self, full: &[u8]) -> Result<Vec<u8>, TileError> {
        let length = match self.level {
            Some(_) => {
                self.full().hashes(full)?;
                usize::from(self.width) * HASH_BYTES
            }
            None => self.full().split_entries(full)?.iter().take(usize::from(self.width)).map(|e| e.len() + 2).sum(),
        };
        full.get(..length).map(<[u8]>::to_vec).ok_or(TileError::Form(*self))
    }

    /// The hashes in the tile's bytes.
    ///
    /// # Errors
    /// [`TileError::Form`] when `bytes` has another size than the width says.
    pub fn hashes(&self, bytes: &[u8]) -> Result<Vec<Sha256Digest>, TileError> {
        if self.level.is_none() || bytes.len() != usize::from(self.width) * HASH_BYTES {
            return Err(TileError::Form(*self));
        }
        bytes
            .chunks_exact(HASH_BYTES)
            .map(|c| Sha256Digest::from_slice(c).map_err(|_| TileError::Form(*self)))
            .collect()
    }

    /// The entries in the bundle's bytes.
    ///
    /// # Errors
    /// [`TileError::Form`] when lengths do not add up to exactly the width's number of entries.
    pub fn split_entries<'a>(&self, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, TileError> {
        if self.level.is_some() {
            return Err(TileError::Form(*self));
        }
        let (mut rest, mut entries) = (bytes, Vec::with_capacity(usize::from(self.width)));
        for _ in 0..self.width {
            let (length, tail) = rest.split_first_chunk::<2>().ok_or(TileError::Form(*self))?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (entry, tail) = tail.split_at_checked(length).ok_or(TileError::Form(*self))?;
            entries.push(entry);
            rest = tail;
        }
        if rest.is_empty() { Ok(entries) } else { Err(TileError::Form(*self)) }
    }
}

impl core::fmt::Display for TilePath {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.level {
            Some(level) => write!(f, "tile/{level}/")?,
            None => f.write_str("tile/entries/")?,
        }
        let digits = format!("{:03}", self.index);
        let digits = format!("{}{digits}", "0".repeat((3 - digits.len() % 3) % 3));
        let groups = digits.len() / 3;
        for (number, group) in digits.as_bytes().chunks(3).enumerate() {
            let prefix = if number + 1 < groups { "x" } else { "" };
            let separator = if number > 0 { "/" } else { "" };
            write!(f, "{separator}{prefix}{}", String::from_utf8_lossy(group))?;
        }
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl core::str::FromStr for TilePath {
    type Err = TileError;

    fn from_str(text: &str) -> Result<Self, TileError> {
        let rest = text.strip_prefix("tile/").ok_or(TileError::Name)?;
        let (level, rest) = rest.split_once('/').ok_or(TileError::Name)?;
        let level = match level {
            "entries" => None,
            digit => Some(digit.parse().ok().filter(|l| *l <= MAX_LEVEL).ok_or(TileError::Name)?),
        };
        let (name, width) = match rest.split_once(".p/") {
            Some((name, width)) => (name, width.parse().ok().filter(|w| *w < TILE_WIDTH).ok_or(TileError::Name)?),
            None => (rest, TILE_WIDTH),
        };
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        let index = digits.parse().map_err(|_| TileError::Name)?;
        let path = Self { level, index, width };
        // One spelling only, so that a name can't reach anything but a tile.
        if width > 0 && path.to_string() == text { Ok(path) } else { Err(TileError::Name) }
    }
}

/// Levels 0 to 7 cover 2^64 entries.
const MAX_LEVEL: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        let name = |level, index, size| TilePath::in_tree(level, index, size).map(|p| p.to_string());
        assert_eq!(name(0, 1_234_067, (1_234_067 + 1) * 256).as_deref(), Some("tile/0/x001/x234/067"));
        assert_eq!(name(0, 273, 70_000).as_deref(), Some("tile/0/273.p/112"));
        assert_eq!(name(1, 1, 70_000).as_deref(), Some("tile/1/001.p/17"));
        assert_eq!(name(2, 0, 70_000).as_deref(), Some("tile/2/000.p/1"));
        assert_eq!(name(3, 0, 70_000), None);
        assert_eq!(name(0, 274, 70_000), None);
        assert_eq!(name(8, 0, u64::MAX), None);
        assert_eq!(TilePath::entries(273, 70_000).unwrap().to_string(), "tile/entries/273.p/112");
    }

    #[test]
    fn only_the_exact_spelling_is_read() {
        for good in ["tile/0/x001/x234/067", "tile/entries/000.p/1", "tile/7/000.p/255", "tile/entries/999"] {
            assert_eq!(good.parse::<TilePath>().unwrap().to_string(), good);
        }
        for bad in [
            "tile/8/000",
            "tile/0/0",
            "tile/0/x000/001",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/+1",
            "tile/0/../000",
            "tile/00/000",
            "tile/entries/000.p/01",
            "/tile/0/000",
            "tile/0/000/",
            "tile/0/x99999999999999999999/000",
        ] {
            assert!(bad.parse::<TilePath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn partial_tiles_are_cut_from_full_ones() {
        let full: Vec<u8> = (0..=255u8).flat_map(|byte| [byte; 32]).collect();
        let path = TilePath::in_tree(0, 0, 3).unwrap();
        assert_eq!(path.full().to_string(), "tile/0/000");
        assert_eq!(path.cut_from_full(&full).unwrap(), full[..96]);
        assert!(path.cut_from_full(&full[..8191]).is_err());
        let bundle: Vec<u8> = (0..=255u8).flat_map(|byte| [0, 1, byte]).collect();
        assert_eq!(TilePath::entries(0, 2).unwrap().cut_from_full(&bundle).unwrap(), [0, 1, 0, 0, 1, 1]);
        assert!(TilePath::entries(0, 2).unwrap().cut_from_full(&bundle[1..]).is_err());
    }

    #[test]
    fn entry_bundles_must_add_up() {
        let path = TilePath::entries(0, 2).unwrap();
        assert_eq!(path.split_entries(b"\0\x01a\0\0").unwrap(), [b"a".as_slice(), b""]);
        for bad in [b"\0\x01a\0".as_slice(), b"\0\x01a\0\0\0", b"\0\x05a\0\0", b""] {
            assert!(path.split_entries(bad).is_err(), "{bad:?}");
        }
        assert!(TilePath::in_tree(0, 0, 2).unwrap().hashes(&[0; 63]).is_err());
    }
}
