// SPDX-License-Identifier: Apache-2.0
//! Picks tokens.

use crate::{Token, Vocabulary};
use engine_protocol::{Sampling, TokenLogprob, TokenLogprobs};
use output_schema::Matcher;
use std::{cmp::Ordering, collections::HashMap};

/// Picks the tokens of one answer. The same settings and logits give the same tokens.
///
/// Order: penalties, temperature, `top_p`, then the form: among what `top_p` leaves, a token that the form does not allow
/// is drawn again; if none of them is allowed, the likeliest allowed one of all is taken.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    state: u64,
    /// How often each token stands in the answer.
    counts: HashMap<Token, u16>,
    form: Option<Matcher>,
}

/// A token that may come, and its value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: Token,
    value: f32,
}

impl Sampler {
    /// For the `choice`-th answer of a request.
    #[must_use]
    pub fn new(settings: Sampling, choice: u16, form: Option<Matcher>) -> Self {
        let state = settings.seed ^ u64::from(choice).wrapping_mul(CHOICE);
        Self { settings, state, counts: HashMap::new(), form }
    }

    /// The next token. `None` when there is none: the logits are not numbers, or the form allows no token.
    pub fn pick(&mut self, logits: &[f32], vocabulary: &Vocabulary) -> Option<Token> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let token = if self.settings.temperature == 0.0 {
            self.pick_likeliest(self.candidates(logits), vocabulary)
        } else {
            self.draw(self.candidates(logits), vocabulary)
        }?;
        let count = self.counts.entry(token).or_insert(0);
        *count = count.saturating_add(1);
        if let Some(form) = &mut self.form {
            form.take(vocabulary.text(token));
        }
        Some(token)
    }

    /// Whether the form is complete and allows nothing more.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.form.as_ref().is_some_and(Matcher::must_end)
    }

    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        let scale = if self.settings.temperature == 0.0 { 1.0 } else { self.settings.temperature };
        let mut candidates: Vec<Candidate> =
            (0..).zip(logits).map(|(token, logit)| Candidate { token, value: logit / scale }).collect();
        let Sampling { frequency_penalty, presence_penalty, .. } = self.settings;
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            for (token, count) in &self.counts {
                let slot = usize::try_from(*token).ok().and_then(|index| candidates.get_mut(index));
                if let Some(candidate) = slot {
                    candidate.value -= (f32::from(*count) * frequency_penalty + presence_penalty) / scale;
                }
            }
        }
        candidates
    }

    fn is_allowed(&self, token: Token, vocabulary: &Vocabulary) -> bool {
        let Some(form) = &self.form else { return true };
        if vocabulary.is_end(token) {
            return form.may_end();
        }
        let text = vocabulary.text(token);
        !text.is_empty() && form.allows(text)
    }

    fn pick_likeliest(&self, mut candidates: Vec<Candidate>, vocabulary: &Vocabulary) -> Option<Token> {
        let best = candidates.iter().copied().reduce(|best, next| if next.value > best.value { next } else { best })?;
        if self.is_allowed(best.token, vocabulary) {
            return Some(best.token);
        }
        // Few are needed as a rule: the rest is sorted only when they are not enough.
        let (first, rest) = split_likeliest(&mut candidates, SORTED_FIRST);
        for part in [first, rest] {
            part.sort_unstable_by(by_value);
            let allowed = part.iter().find(|candidate| self.is_allowed(candidate.token, vocabulary));
            if let Some(candidate) = allowed {
                return Some(candidate.token);
            }
        }
        None
    }

    fn draw(&mut self, mut candidates: Vec<Candidate>, vocabulary: &Vocabulary) -> Option<Token> {
        let most = candidates.iter().fold(f32::NEG_INFINITY, |most, candidate| most.max(candidate.value));
        let mut weights: Vec<(Token, f32)>;
        if self.settings.top_p < 1.0 {
            let nucleus = nucleus(&mut candidates, most, self.settings.top_p);
            weights = nucleus.iter().map(|one| (one.token, (one.value - most).exp())).collect();
        } else {
            weights = candidates.iter().map(|one| (one.token, (one.value - most).exp())).collect();
        }
        // Drawing again without what was refused draws from what is allowed, in its own proportions.
        for _ in 0..MAX_DRAWS {
            let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let mut left = self.random() * total;
            let Some(index) = weights.iter().position(|(_, weight)| {
                left -= f64::from(*weight);
                left < 0.0 && *weight > 0.0
            }) else {
                break;
            };
            let Some((token, weight)) = weights.get_mut(index) else { break };
            let token = *token;
            *weight = 0.0;
            if self.is_allowed(token, vocabulary) {
                return Some(token);
            }
        }
        // Nearly everything likely is refused. Exponential clocks give the same distribution in one pass.
        let mut clocks: Vec<Candidate> = Vec::new();
        for (token, weight) in weights.into_iter().filter(|(_, weight)| *weight > 0.0) {
            let clock = -(1.0 - self.random()).ln();
            #[expect(clippy::cast_possible_truncation, reason = "an order is wanted, not the last digits")]
            let value = (f64::from(weight).ln() - clock.ln()) as f32;
            clocks.push(Candidate { token, value });
        }
        self.pick_likeliest(clocks, vocabulary).or_else(|| self.pick_likeliest(candidates, vocabulary))
    }

    /// From 0 to 1, without 1: SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits are left")]
        let numerator = (mixed >> 11) as f64;
        numerator / 9_007_199_254_740_992.0
    }
}

/// The probabilities that the model gives a token and the likeliest ones.
#[must_use]
pub(crate) fn logprobs(logits: &[f32], token: Token, top: u8, vocabulary: &Vocabulary) -> TokenLogprobs {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "the logits are no more precise")]
    let log_sum = sum.ln() as f32 + most;
    let entry = |token: Token, logit: f32| {
        let logprob = (logit - log_sum).clamp(LEAST_LOGPROB, 0.0);
        TokenLogprob { bytes: vocabulary.text(token).to_vec(), logprob }
    };
    let own = usize::try_from(token).ok().and_then(|index| logits.get(index)).copied().unwrap_or(f32::NEG_INFINITY);
    let mut candidates: Vec<Candidate> =
        (0..).zip(logits).map(|(token, value)| Candidate { token, value: *value }).collect();
    let (first, _) = split_likeliest(&mut candidates, usize::from(top));
    first.sort_unstable_by(by_value);
    TokenLogprobs { token: entry(token, own), top: first.iter().map(|one| entry(one.token, one.value)).collect() }
}

/// Likeliest first; the lower number where two are alike, as a search for the greatest finds it.
fn by_value(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.total_cmp(&a.value).then(a.token.cmp(&b.token))
}

/// The `count` likeliest, in no order, and the others.
fn split_likeliest(candidates: &mut [Candidate], count: usize) -> (&mut [Candidate], &mut [Candidate]) {
    if let Some(last) = count.checked_sub(1).filter(|last| *last < candidates.len()) {
        candidates.select_nth_unstable_by(last, by_value);
    }
    let count = count.min(candidates.len());
    candidates.split_at_mut(count)
}

/// The likeliest ones whose probabilities sum up to `top_p`, at least one.
fn nucleus(candidates: &mut [Candidate], most: f32, top_p: f32) -> &[Candidate] {
    let weight = |one: &Candidate| f64::from((one.value - most).exp());
    let wanted = candidates.iter().map(weight).sum::<f64>() * f64::from(top_p);
    let mut count = SORTED_FIRST;
    loop {
        let (first, rest) = split_likeliest(candidates, count);
        first.sort_unstable_by(by_value);
        let mut sum = 0.0;
        let enough = first.iter().position(|one| {
            sum += weight(one);
            sum >= wanted
        });
        if let Some(index) = enough {
            return candidates.get(..index.saturating_add(1)).unwrap_or_default();
        }
        if rest.is_empty() {
            return candidates;
        }
        count = count.saturating_mul(16);
    }
}

/// Keeps the answers of one request apart.
const CHOICE: u64 = 0xd134_2543_de82_ef95;
const SORTED_FIRST: usize = 256;
const MAX_DRAWS: usize = 32;
const LEAST_LOGPROB: f32 = -9999.0;

#[cfg(test)]
mod tests {
    use super::*;
    use output_schema::{Grammar, Json};

    fn settings(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 7 }
    }

    fn letters() -> Vocabulary {
        let token = |text: &str| (text.as_bytes().to_vec(), text.is_empty());
        Vocabulary::new(["a", "b", "c", "", "\"", "1", "23", "{", "}"].into_iter().map(token))
    }

    fn frequencies(sampler: &mut Sampler, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut counts = vec![0_u32; logits.len()];
        for _ in 0..draws {
            // Without the form's progress: the same moment each time.
            let form = sampler.form.clone();
            counts[sampler.pick(logits, &letters()).unwrap() as usize] += 1;
            sampler.form = form;
        }
        counts.iter().map(|count| f64::from(*count) / f64::from(draws)).collect()
    }

    fn near(found: &[f64], expected: &[f64]) {
        let apart = found.iter().zip(expected).any(|(a, b)| (a - b).abs() > 0.02);
        assert!(!apart, "{found:?} {expected:?}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut sampler = Sampler::new(settings(0.0, 1.0), 0, None);
        assert_eq!(sampler.pick(&[0.0, 2.0, 2.0, 1.0], &letters()), Some(1));
        assert_eq!(sampler.pick(&[0.0, f32::NAN], &letters()), None);
        assert_eq!(sampler.pick(&[], &letters()), None);
    }

    #[test]
    fn drawing_follows_the_probabilities() {
        let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        near(&frequencies(&mut Sampler::new(settings(1.0, 1.0), 0, None), &logits, 15_000), &[0.5, 0.25, 0.125, 0.125]);
        near(
            &frequencies(&mut Sampler::new(settings(1.0, 0.7), 0, None), &logits, 15_000),
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        let squares = [0.25, 0.0625, 0.015_625, 0.015_625].map(|square| square / 0.34375);
        near(&frequencies(&mut Sampler::new(settings(0.5, 1.0), 0, None), &logits, 15_000), &squares);
    }

    #[test]
    fn a_form_leaves_the_proportions_of_what_it_allows() {
        let integer = || Matcher::new(Grammar::of_schema(&Json::parse(br#"{"type":"integer"}"#).unwrap()).unwrap());
        // "a" is by far likeliest and not allowed; "1" and "23" are.
        let logits = [9.0, 0.0, 0.0, 5.0, 0.0, 1.0_f32.ln(), 3.0_f32.ln(), 0.0, 0.0];
        let mut expected = [0.0; 9];
        (expected[5], expected[6]) = (0.25, 0.75);
        near(&frequencies(&mut Sampler::new(settings(1.0, 1.0), 0, Some(integer())), &logits, 15_000), &expected);
        let mut greedy = Sampler::new(settings(0.0, 1.0), 0, Some(integer()));
        assert_eq!(greedy.pick(&logits, &letters()), Some(6));
        assert_eq!(greedy.pick(&logits, &letters()), Some(3), "the end is allowed now");
        // The nucleus is "a" alone: the likeliest allowed one is taken.
        assert_eq!(Sampler::new(settings(1.0, 0.1), 0, Some(integer())).pick(&logits, &letters()), Some(6));
        let none = Matcher::new(Grammar::of_schema(&Json::parse(br#"{"const":true}"#).unwrap()).unwrap());
        assert_eq!(Sampler::new(settings(1.0, 1.0), 0, Some(none)).pick(&logits, &letters()), None);
    }

    #[test]
    fn penalties_count_what_the_answer_holds() {
        let mut sampler =
            Sampler::new(Sampling { frequency_penalty: 1.0, presence_penalty: 0.5, ..settings(0.0, 1.0) }, 0, None);
        let picks: Vec<_> = (0..4).map(|_| sampler.pick(&[3.0, 1.0, 0.0], &letters()).unwrap()).collect();
        // 3, 1.5, 0.5: then the second one is ahead.
        assert_eq!(picks, [0, 0, 1, 0]);
    }

    #[test]
    fn seeds_and_choices_differ() {
        let logits = [0.0; 9];
        let draw = |seed, choice| {
            let mut sampler = Sampler::new(Sampling { seed, ..settings(1.0, 1.0) }, choice, None);
            (0..20).map(|_| sampler.pick(&logits, &letters()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn logprobs_are_those_of_the_model() {
        let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 3.0).collect();
        let found = logprobs(&logits, 2, 2, &letters());
        assert_eq!(found.token.bytes, b"c");
        assert!((found.token.logprob - 0.125_f32.ln()).abs() < 1e-5);
        let top: Vec<_> = found.top.iter().map(|one| one.bytes.clone()).collect();
        assert_eq!(top, [b"a".to_vec(), b"b".to_vec()]);
        assert!((found.top[0].logprob - 0.5_f32.ln()).abs() < 1e-5);
        assert_eq!(logprobs(&[f32::NEG_INFINITY, 0.0], 0, 0, &letters()).token.logprob, LEAST_LOGPROB);
    }
}
