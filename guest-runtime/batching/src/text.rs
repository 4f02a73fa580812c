// SPDX-License-Identifier: Apache-2.0
//! From the bytes of tokens to the text of an answer.

use std::collections::VecDeque;

/// The text of one answer as it grows: whole UTF-8 characters only, ended by the first stop text.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Bytes of a character that is not complete yet, at most three.
    partial: Vec<u8>,
    /// Text that may still turn out to be the start of a stop text.
    held: String,
    stops: Vec<String>,
}

impl Answer {
    /// An empty answer that ends before the first of `stops`. Empty stop texts are ignored.
    #[must_use]
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, ..Self::default() }
    }

    /// Adds a token's bytes. Gives the text that is now certain (may be empty), and whether a stop text ended the
    /// answer. Bytes that are no UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> (String, bool) {
        self.partial.extend_from_slice(bytes);
        let text = self.take_characters();
        self.held.push_str(&text);
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            self.partial.clear();
            return (text, true);
        }
        let certain = self.held.len().saturating_sub(self.longest_start_of_a_stop());
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Bytes of text that were not given yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.partial.len().saturating_add(self.held.len())
    }

    /// What is left when the model ended its answer by itself.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        if !self.partial.is_empty() {
            self.partial.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }

    fn take_characters(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.partial.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    let Some(bad) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(bad..).unwrap_or_default();
                }
            }
        }
        self.partial = rest.to_vec();
        text
    }

    /// Length of the longest end of `held` that is a start of a stop text.
    fn longest_start_of_a_stop(&self) -> usize {
        let starts = |stop: &String| {
            let ends = stop.char_indices().map(|(end, _)| end).rev();
            ends.filter_map(|end| stop.get(..end)).find(|start| self.held.ends_with(start)).map_or(0, str::len)
        };
        self.stops.iter().map(starts).max().unwrap_or(0)
    }
}

/// What belongs to pieces of an answer's text, such as log probabilities, until the text of the piece is certain. It holds
/// few: as many as there are bytes of text that are not certain, however long the answer becomes.
#[derive(Debug, Clone)]
pub struct Held<T> {
    /// With the bytes of each piece.
    pieces: VecDeque<(T, usize)>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { pieces: VecDeque::new() }
    }
}

impl<T> Held<T> {
    /// Adds what belongs to the newest piece, which has so many bytes.
    pub fn push(&mut self, what: T, bytes: usize) {
        self.pieces.push_back((what, bytes));
    }

    /// What belongs to text that was given: all but the newest pieces that make up the last `pending` bytes. Bytes that are
    /// no UTF-8 become longer as text; then something is given later than it could be, never earlier.
    pub fn certain(&mut self, pending: usize) -> Vec<T> {
        let (mut kept, mut bytes) = (0_usize, 0_usize);
        for (_, length) in self.pieces.iter().rev() {
            if bytes >= pending {
                break;
            }
            bytes = bytes.saturating_add(*length);
            kept = kept.saturating_add(1);
        }
        let given = self.pieces.len().saturating_sub(kept);
        self.pieces.drain(..given).map(|(what, _)| what).collect()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer that repeats the start of a stop text is never without text that waits. What belongs to its tokens must
    /// not wait with it.
    #[test]
    fn what_belongs_to_certain_text_does_not_wait_for_the_rest() {
        let mut answer = Answer::new(vec![" a!".to_owned()]);
        let (mut held, mut given) = (Held::default(), Vec::new());
        for number in 0..5000 {
            held.push(number, 2);
            let (_, stopped) = answer.push(b" a");
            assert!(!stopped && answer.pending() == 2);
            given.extend(held.certain(answer.pending()));
            assert_eq!(given.len(), number, "all but the newest");
        }
        // The stop text: its own tokens are forgotten, none was given before.
        held.push(5000, 1);
        assert_eq!(answer.push(b"!"), (String::new(), true));
        held.clear();
        assert_eq!((given.len(), held.certain(0).len()), (4999, 0));
    }

    #[test]
    fn a_piece_is_certain_when_all_of_its_text_is() {
        let mut held = Held::default();
        held.push('a', 4);
        held.push('b', 0);
        held.push('c', 3);
        assert_eq!(held.certain(8), []);
        assert_eq!(held.certain(4), []);
        assert_eq!(held.certain(3), ['a', 'b']);
        assert_eq!(held.certain(1), []);
        assert_eq!(held.certain(0), ['c']);
    }

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut answer = Answer::new(stops.iter().map(ToString::to_string).collect());
        let mut out = vec![];
        for piece in pieces {
            let (text, stopped) = answer.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(answer.finish());
        (out, false)
    }

    #[test]
    fn a_character_split_over_tokens_comes_out_whole() {
        let euro = "€".as_bytes();
        assert_eq!(run(&[], &[&euro[..1], &euro[1..2], &euro[2..]]).0, ["", "", "€", ""]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced_once_each() {
        assert_eq!(run(&[], &[b"a\xffb", b"\xe2\x82"]).0, ["a\u{fffd}b", "", "\u{fffd}"]);
        assert_eq!(run(&[], &[b"\xe2\x82", b"x"]).0, ["", "\u{fffd}x", ""]);
    }

    #[test]
    fn a_stop_text_split_over_tokens_is_found_and_not_shown() {
        assert_eq!(
            run(&["END"], &[b"say E", b"N", b"D now"]),
            (vec!["say ".into(), String::new(), String::new()], true)
        );
        assert_eq!(run(&["END"], &[b"E", b"NT"]), (vec![String::new(), "ENT".into(), String::new()], false));
        assert_eq!(run(&["END"], &[b"EN"]), (vec![String::new(), "EN".into()], false));
        assert_eq!(run(&["bc", "b"], &[b"abc"]), (vec!["a".into()], true));
        assert_eq!(run(&["\u{20ac}x"], &["1\u{20ac}".as_bytes(), b"y"]).0, ["1", "\u{20ac}y", ""]);
    }

    proptest! {
        #[test]
        fn the_pieces_joined_are_the_text(text in ".{0,60}", cut in 1_usize..9, stop in "[a-c]{1,3}") {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            prop_assert_eq!(run(&[], &pieces).0.concat(), text.clone());
            let (out, stopped) = run(&[&stop], &pieces);
            let expected = text.split_once(&stop).map_or(text.as_str(), |(before, _)| before);
            prop_assert_eq!(out.concat(), expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }

        #[test]
        fn arbitrary_bytes_come_out_as_the_standard_library_repairs_them(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(run(&[], &pieces).0.concat(), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
