// SPDX-License-Identifier: Apache-2.0
//! Another command line: which words.
//!
//! Linux's EFI stub logs no text, only the digest of its load options. So alternatives are hashed and compared: what
//! the caller names, and bounded changes of the release's own line. A boot loader's log may hold the text; it counts
//! if its digest covers it.

use types::{RegisterName, Sha384Digest};

use crate::{
    align::Logged,
    document::{Basis, Finding},
    limits::{MAX_COMMAND_LINES, MAX_KNOWLEDGE, WORDS},
    model::ModelEvent,
    session::Session,
};

/// A command line's digest that differs in the log.
pub(crate) fn differs<'a>(session: &mut Session<'a>, event: &ModelEvent, logged: &Logged<'a>) {
    if let Some(text) = logged.event.command_line() {
        is(session, &without_initrd_word(&text), Some(event.name), "the log's own text, which its digest covers");
        return;
    }
    let digest = logged.digest;
    match search(session, |options| Sha384Digest::of(options) == digest) {
        Some(Candidate { line, words }) => conclude(session, &line, words, Some(event.name)),
        None => session.find(Finding {
            code: "command_line_differs",
            register: Some(RegisterName::Rtmr2),
            event: Some(event.name.to_owned()),
            field: "command_line",
            basis: Basis::Difference,
            detail: format!(
                "the command line is another; the log has its digest but not its text, and none of {} lines that were tried has it",
                session.searched.command_lines
            ),
            fix: "launch with the release's command line unchanged; --cmdline TEXT tells whether it was TEXT".to_owned(),
        }),
    }
}

/// A line that was tried, and where the firmware put `initrd=initrd`.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) line: String,
    pub(crate) words: InitrdWords,
}

/// Where `initrd=initrd` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitrdWords {
    /// Where the release's firmware puts it.
    AsExpected,
    /// At the other end.
    OtherEnd,
    /// Nowhere.
    Absent,
}

/// Notes what a line that fits says.
pub(crate) fn conclude(session: &mut Session<'_>, line: &str, words: InitrdWords, event: Option<&str>) {
    let text = match words {
        InitrdWords::AsExpected => None,
        InitrdWords::OtherEnd => Some(
            "the firmware puts initrd=initrd at the other end of the command line, as other generations of EDK II do",
        ),
        InitrdWords::Absent => {
            Some("the command line is given without initrd=initrd: no initrd was named to the kernel")
        }
    };
    if let Some(text) = text {
        session.find(Finding {
            code: "firmware_initrd_word",
            register: Some(RegisterName::Rtmr2),
            event: event.map(str::to_owned),
            field: "firmware",
            basis: Basis::Digest,
            detail: text.to_owned(),
            fix:
                "launch the firmware that the release names; if it is that one, the release names the wrong generation"
                    .to_owned(),
        });
    }
    if line != session.image.command_line {
        is(session, line, event, "its digest");
    }
}

fn is(session: &mut Session<'_>, line: &str, event: Option<&str>, by: &str) {
    let difference = differing_words(&session.image.command_line, line);
    session.find(Finding {
        code: "command_line_changed",
        register: Some(RegisterName::Rtmr2),
        event: event.map(str::to_owned),
        field: "command_line",
        basis: Basis::Digest,
        detail: format!("the command line differs (by {by}): {difference}"),
        fix: "launch with the release's command line unchanged".to_owned(),
    });
}

/// Tries lines until `accept` takes the load options of one.
pub(crate) fn search(session: &mut Session<'_>, accept: impl Fn(&[u8]) -> bool) -> Option<Candidate> {
    let mut tried = 0;
    let mut result = None;
    let expected_after = session.image.firmware.generation.initrd_word() == calculator::InitrdWord::After;
    for line in lines(session).take(MAX_COMMAND_LINES) {
        let both = [(InitrdWords::AsExpected, expected_after), (InitrdWords::OtherEnd, !expected_after)];
        tried += 1;
        let with_word = both.map(|(words, after)| {
            (words, if after { format!("{line} initrd=initrd\0") } else { format!("initrd=initrd {line}\0") })
        });
        let texts = with_word.into_iter().chain([(InitrdWords::Absent, format!("{line}\0"))]);
        let fits = texts.into_iter().find(|(_, text)| {
            let options: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            accept(&options)
        });
        if let Some((words, _)) = fits {
            result = Some(Candidate { line, words });
            break;
        }
    }
    session.searched.command_lines = session.searched.command_lines.max(tried);
    result
}

/// The release's line, lines of the caller and of other releases, and bounded changes of the release's line: a word
/// left out; a known word at the end, at the beginning or instead of a word; two neighbours exchanged.
fn lines<'s>(session: &Session<'s>) -> impl Iterator<Item = String> + use<'s> {
    let own: &'s str = &session.input.reference.image.command_line;
    let knowledge = session.input.knowledge;
    let named = knowledge.command_lines.iter().take(MAX_KNOWLEDGE).filter(|line| line.len() <= MAX_LINE).cloned();
    let released = knowledge.images.iter().take(MAX_KNOWLEDGE).map(|(_, image)| image.command_line.clone());
    let words: Vec<&'s str> = own.split(' ').collect();
    let count = words.len();
    let left_out = {
        let words = words.clone();
        (0..count).map(move |at| changed(&words, at, None))
    };
    let added = WORDS.iter().flat_map(move |word| [format!("{own} {word}"), format!("{word} {own}")]);
    let exchanged = {
        let words = words.clone();
        (1..count).map(move |at| {
            let mut words = words.clone();
            words.swap(at - 1, at);
            words.join(" ")
        })
    };
    let replaced = (0..count)
        .flat_map(move |at| WORDS.iter().map(move |word| (at, *word)))
        .map(move |(at, word)| changed(&words, at, Some(word)));
    core::iter::once(own.to_owned())
        .chain(named)
        .chain(released)
        .chain(left_out)
        .chain(added)
        .chain(exchanged)
        .chain(replaced)
}

/// The line with one word left out or replaced.
fn changed(words: &[&str], at: usize, by: Option<&str>) -> String {
    let word = |(index, word)| if index == at { by } else { Some(word) };
    words.iter().copied().enumerate().filter_map(word).collect::<Vec<_>>().join(" ")
}

fn without_initrd_word(text: &str) -> String {
    text.split(' ').filter(|word| *word != "initrd=initrd").collect::<Vec<_>>().join(" ")
}

/// Says which words differ: `added: debug; removed: quiet; changed: a=1 to a=2`.
pub(crate) fn differing_words(from: &str, to: &str) -> String {
    let from: Vec<&str> = from.split(' ').take(MAX_WORDS).collect();
    let to: Vec<&str> = to.split(' ').take(MAX_WORDS).collect();
    let mut removed: Vec<&str> = unmatched(&from, &to);
    let mut added: Vec<&str> = unmatched(&to, &from);
    let mut changed = Vec::new();
    removed.retain(|old| {
        let key = |word: &str| word.split_once('=').map(|(key, _)| key.to_owned());
        let Some(at) = key(old).and_then(|k| added.iter().position(|new| key(new).as_ref() == Some(&k))) else {
            return true;
        };
        changed.push(format!("{old} to {}", added.swap_remove(at)));
        false
    });
    let list = |name: &str, words: &[String]| {
        (!words.is_empty()).then(|| format!("{name}: {}", event_log::escaped(words.join(" ").as_bytes())))
    };
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let parts = [list("added", &owned(&added)), list("removed", &owned(&removed)), list("changed", &changed)];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if text.is_empty() { "the same words in another order or with other spaces".to_owned() } else { text }
}

/// The words of `from` that have no partner in `other`.
fn unmatched<'a>(from: &[&'a str], other: &[&str]) -> Vec<&'a str> {
    let mut left: Vec<&str> = other.to_vec();
    let mut result = Vec::new();
    for word in from {
        match left.iter().position(|candidate| candidate == word) {
            Some(at) => {
                left.swap_remove(at);
            }
            None => result.push(*word),
        }
    }
    result
}

const MAX_WORDS: usize = 512;
const MAX_LINE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_words_are_named() {
        assert_eq!(differing_words("a b=1 c", "a b=2 c d"), "added: d; changed: b=1 to b=2");
        assert_eq!(differing_words("a b", "a"), "removed: b");
        assert_eq!(differing_words("a b", "b a"), "the same words in another order or with other spaces");
        assert_eq!(differing_words("a", "a\u{1b}[31m"), "added: a\\x1b[31m; removed: a");
    }

    #[test]
    fn a_word_is_left_out_or_replaced() {
        assert_eq!(changed(&["a", "b", "c"], 1, None), "a c");
        assert_eq!(changed(&["a", "b"], 0, Some("x")), "x b");
    }
}
