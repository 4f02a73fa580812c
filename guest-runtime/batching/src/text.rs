// SPDX-License-Identifier: Apache-2.0
//! From the bytes of tokens to the text of an answer.

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

    /// Whether all text so far was given.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.partial.is_empty() && self.held.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
