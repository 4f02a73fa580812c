// SPDX-License-Identifier: Apache-2.0
//! What is asked of both sides: prompts of a wanted length in tokens, answers of a wanted length.

use engine::Weights;

/// One answer to compute.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Jobs of one tenant may share what is computed for their prompts.
    pub(crate) tenant: u64,
    pub(crate) prompt: String,
    /// Tokens of the answer; the model may end it earlier, for both sides at the same token.
    pub(crate) answer: u32,
    /// Drawn from all tokens at temperature 1, as the API does where nothing is said; else the likeliest.
    pub(crate) drawn: bool,
}

/// Makes prompts. Two of them begin alike only where that is wanted.
pub(crate) struct Prompts<'w> {
    weights: &'w Weights,
    state: u64,
}

impl<'w> Prompts<'w> {
    pub(crate) fn new(weights: &'w Weights) -> Self {
        Self { weights, state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// A text of at least `tokens` tokens and few more, that goes on from `start`.
    pub(crate) fn text(&mut self, start: &str, tokens: usize) -> String {
        let vocab = self.weights.library().1.vocab();
        let mut text = start.to_owned();
        let count = |text: &str| vocab.tokenize(text.as_bytes(), true, false).len();
        let mut length = count(&text);
        while length < tokens {
            // A word is a token, mostly: never ask for more words than tokens are missing.
            for _ in 0..tokens.saturating_sub(length).div_ceil(2) {
                text.push_str(self.word());
            }
            length = count(&text);
        }
        text
    }

    pub(crate) fn jobs(&mut self, count: u32, prompt: usize, answer: impl Fn(u32) -> u32) -> Vec<Job> {
        let job = |number| {
            self.state = self.state.wrapping_add(number);
            Job {
                tenant: self.state,
                prompt: self.text("", prompt),
                answer: answer(u32::try_from(number).unwrap_or(0)),
                drawn: false,
            }
        };
        (0..u64::from(count)).map(job).collect()
    }

    /// Marsaglia's xorshift: the same prompts in each run.
    fn word(&mut self) -> &'static str {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let place = usize::try_from(self.state % 64).unwrap_or(0);
        WORDS.get(place % WORDS.len()).copied().unwrap_or(" and")
    }
}

const WORDS: [&str; 32] = [
    " the", " river", " of", " time", " and", " people", " in", " a", " small", " town", " were", " walking", " to",
    " work", " when", " it", " began", " rain", " over", " green", " hills", " so", " they", " stood", " under",
    " old", " trees", " until", " evening", " came", " with", " light",
];
