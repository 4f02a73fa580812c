// SPDX-License-Identifier: Apache-2.0
//! Work that a busy service asks for before it looks at evidence: a number that makes a hash of the token begin with
//! zeros. Finding one costs 2^bits hashes, checking it costs one, and the service remembers nothing: the token carries
//! the bits under its MAC.

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

use crate::Token;

/// What a challenge asks for beside evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Leading zero bits, 1 or more.
    pub bits: u8,
}

/// A search for a number, in portions.
#[derive(Debug)]
pub struct Search {
    token: Token,
    bits: u8,
    next: u64,
}

/// Whether `number` solves the work of so many bits for `token`: SHA-256("chrysalis/work/v1" ‖ token ‖ number u64
/// big-endian) begins with that many zeros.
#[must_use]
pub fn is_solution(token: &Token, bits: u8, number: u64) -> bool {
    let hash = Sha256Digest::of_parts(&[b"chrysalis/work/v1", token.as_bytes(), &number.to_be_bytes()]);
    let mut zeros = 0_u32;
    for byte in hash.as_bytes() {
        zeros = zeros.saturating_add(byte.leading_zeros());
        if *byte != 0 {
            break;
        }
    }
    zeros >= u32::from(bits)
}

impl Search {
    /// A search, where so much may be asked for; `None` for more than [`MAX_WORK_BITS`].
    #[must_use]
    pub fn new(token: Token, work: Work) -> Option<Self> {
        (work.bits <= MAX_WORK_BITS).then_some(Self { token, bits: work.bits, next: 0 })
    }

    /// Tries so many numbers more.
    pub fn portion(&mut self, tries: u64) -> Option<u64> {
        let end = self.next.saturating_add(tries);
        let found = (self.next..end).find(|number| is_solution(&self.token, self.bits, *number));
        self.next = end;
        found
    }
}

/// Most that a client does: 4 million hashes, seconds on a slow machine. A service that asks for more holds its guests
/// up, and is refused.
pub const MAX_WORK_BITS: u8 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; Token::LEN])
    }

    #[test]
    fn a_solution_is_of_one_token_and_costs_what_was_asked() {
        let mut search = Search::new(token(1), Work { bits: 10 }).unwrap();
        let found = search.portion(1 << 20).unwrap();
        assert!(is_solution(&token(1), 10, found) && is_solution(&token(1), 1, found));
        assert!((0..found).all(|number| !is_solution(&token(1), 10, number)), "it is the first");
        // Of other tokens it is one for a thousandth.
        let also = (2..=255).filter(|byte| is_solution(&token(*byte), 10, found)).count();
        assert!(also < 10, "{also}");
        // Of 4096 numbers about four solve ten bits, and all solve none.
        let solutions = (0..4096).filter(|number| is_solution(&token(1), 10, *number)).count();
        assert!((1..20).contains(&solutions), "{solutions}");
        assert!((0..100).all(|number| is_solution(&token(1), 0, number)));
        assert!(!is_solution(&token(1), 255, found));
    }

    #[test]
    fn a_search_goes_on_where_it_stopped_and_is_bounded() {
        let whole = Search::new(token(3), Work { bits: 8 }).unwrap().portion(1 << 20).unwrap();
        let mut search = Search::new(token(3), Work { bits: 8 }).unwrap();
        let found = (0..1 << 20).find_map(|_| search.portion(7)).unwrap();
        assert_eq!(found, whole);
        assert!(Search::new(token(3), Work { bits: MAX_WORK_BITS }).is_some());
        assert!(Search::new(token(3), Work { bits: MAX_WORK_BITS + 1 }).is_none());
    }
}
