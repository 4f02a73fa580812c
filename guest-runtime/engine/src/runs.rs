// SPDX-License-Identifier: Apache-2.0
//! Texts that llama.cpp's tokenizers could not read to their end.
//!
//! For most models llama.cpp cuts a text into words by code of its own. For the others it uses the C++ library's regular
//! expressions, which call themselves for each character of a word: a word that is long enough ends the process
//! (ggml-org/llama.cpp issue 27783). For those models such texts are refused.

/// Whether the words of a text are found by recursion. `kind` and `pre` are `tokenizer.ggml.model` and
/// `tokenizer.ggml.pre` of the model's file.
pub(crate) fn is_recursive(kind: &str, pre: &str) -> bool {
    // Other kinds know no words.
    kind == "gpt2" && !FLAT.contains(&pre)
}

/// Whether a text has a run of characters without white space, or of white space, that is too long for recursion.
pub(crate) fn has_long_run(text: &str) -> bool {
    let (mut length, mut was_space) = (0_usize, false);
    text.chars().any(|character| {
        let is_space = character.is_whitespace();
        length = if is_space == was_space { length.saturating_add(1) } else { 1 };
        was_space = is_space;
        length > MAX_RUN
    })
}

/// Takes one or two kilobytes of the main thread's stack of eight megabytes for each character.
const MAX_RUN: usize = 2000;
/// Those for which the locked llama.cpp has a splitter of its own, or expressions that take one character.
const FLAT: [&str; 31] = [
    "gpt-2",
    "phi-2",
    "jina-es",
    "jina-de",
    "gigachat",
    "jina-v2-es",
    "jina-v2-de",
    "a.x-4.0",
    "mellum",
    "modern-bert",
    "mpt",
    "olmo",
    "jais",
    "trillion",
    "granite-docling",
    "starcoder",
    "refact",
    "command-r",
    "smollm",
    "codeshell",
    "exaone",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "stablelm2",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "pixtral",
    "qwen35",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_found_wherever_they_stand() {
        for (piece, broken) in [("a", "a "), ("é", "é\n"), ("1", "1\u{2003}"), ("-", "- "), (" ", " a"), ("\n", "\n.")]
        {
            assert!(!has_long_run(&piece.repeat(MAX_RUN)), "{piece:?}");
            assert!(has_long_run(&piece.repeat(MAX_RUN + 1)), "{piece:?}");
            assert!(has_long_run(&format!("some words {}", piece.repeat(MAX_RUN + 2))), "{piece:?}");
            assert!(!has_long_run(&broken.repeat(10 * MAX_RUN)), "{broken:?}");
        }
        assert!(!has_long_run(""));
    }

    #[test]
    fn unknown_tokenizers_are_taken_for_recursive_ones() {
        for (kind, pre, recursive) in [
            ("gpt2", "smollm", false),
            ("gpt2", "llama-bpe", false),
            ("gpt2", "gpt-4o", true),
            ("gpt2", "tekken", true),
            ("gpt2", "deepseek-v3", true),
            ("gpt2", "new", true),
            ("gpt2", "", true),
            ("llama", "", false),
        ] {
            assert_eq!(is_recursive(kind, pre), recursive, "{kind} {pre}");
        }
    }
}
