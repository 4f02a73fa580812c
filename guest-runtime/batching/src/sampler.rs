// SPDX-License-Identifier: Apache-2.0
//! Picks tokens.

use crate::weights::{Weights, first_with, greatest, log_sum_exp};
use crate::{Token, Vocabulary, model::Start};
use engine_protocol::{Bias, Sampling, TokenLogprob, TokenLogprobs};
use output_schema::Matcher;
use std::{cmp::Ordering, collections::HashMap, sync::Arc};
use zeroize::Zeroize;

/// Picks the tokens of one answer. The same settings and logits give the same tokens.
///
/// Order: the request's own changes of logits, penalties, temperature, `top_p`, then the form: among what `top_p` leaves, a token that the form does not allow
/// is drawn again; if none of them is allowed, the likeliest allowed one of all is taken. A form that is so large that
/// its bound on work is reached counts what was not looked at as not allowed.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    state: u64,
    /// How often each token stands in the answer.
    counts: HashMap<Token, u16>,
    form: Option<Matcher>,
    /// What is added to logits.
    bias: Arc<[Bias]>,
}

/// A token that may come, and its value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: Token,
    value: f32,
}

/// Why there is no next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoToken {
    /// The logits are no numbers: the computation cannot be relied on.
    NotNumbers,
    /// The form allows no token, or finding one would take too long: a matter of this request alone.
    Form,
}

impl Sampler {
    /// For the `choice`-th answer of a request.
    #[must_use]
    pub fn new(settings: Sampling, choice: u16, form: Option<Matcher>) -> Self {
        let state = settings.seed ^ u64::from(choice).wrapping_mul(CHOICE);
        Self { settings, state, counts: HashMap::new(), form, bias: Arc::default() }
    }

    /// With the request's own changes of logits. What the form does not allow stays so, however much is added.
    #[must_use]
    pub fn with_bias(self, bias: Arc<[Bias]>) -> Self {
        Self { bias, ..self }
    }

    /// The next token.
    ///
    /// # Errors
    /// [`NoToken`].
    pub fn pick(&mut self, logits: &[f32], vocabulary: &Vocabulary, scratch: &mut Scratch) -> Result<Token, NoToken> {
        let most = greatest(logits).ok_or(NoToken::NotNumbers)?;
        let Scratch { values, weights } = scratch;
        let (values, most) = match self.is_plain() {
            true => (logits, most),
            false => {
                values.clear();
                values.extend_from_slice(logits);
                self.change(values);
                // What was minus infinity still is.
                (values.as_slice(), greatest(values).ok_or(NoToken::NotNumbers)?)
            }
        };
        let mut gate = Gate::new(self.form.as_mut(), vocabulary);
        let temperature = self.settings.temperature;
        let token = if temperature == 0.0 {
            let best = first_with(values, most).and_then(|place| Token::try_from(place).ok());
            best.filter(|best| gate.allows(*best)).or_else(|| likeliest_allowed(possible(values), &mut gate))
        } else {
            weights.set(values, most, temperature);
            draw(values, most, self.settings, weights, &mut self.state, &mut gate)
        };
        let token = token.ok_or(NoToken::Form)?;
        let count = self.counts.entry(token).or_insert(0);
        *count = count.saturating_add(1);
        if let Some(form) = &mut self.form {
            form.take(vocabulary.text(token));
        }
        Ok(token)
    }

    /// Whether the form is complete and allows nothing more.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.form.as_ref().is_some_and(Matcher::must_end)
    }

    /// Whether the model's own logits count.
    fn is_plain(&self) -> bool {
        let Sampling { frequency_penalty, presence_penalty, .. } = self.settings;
        self.bias.is_empty() && (self.counts.is_empty() || (frequency_penalty == 0.0 && presence_penalty == 0.0))
    }

    /// Adds what the request adds, and penalties.
    fn change(&self, values: &mut [f32]) {
        for Bias { token, bias } in self.bias.iter() {
            if let Some(value) = usize::try_from(*token).ok().and_then(|index| values.get_mut(index)) {
                *value += bias;
            }
        }
        let Sampling { frequency_penalty, presence_penalty, .. } = self.settings;
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            for (token, count) in &self.counts {
                if let Some(value) = usize::try_from(*token).ok().and_then(|index| values.get_mut(index)) {
                    *value -= f32::from(*count) * frequency_penalty + presence_penalty;
                }
            }
        }
    }
}

/// Memory that is used again for each token. It holds what the last answer was drawn from.
#[derive(Debug, Clone, Default, Zeroize)]
pub struct Scratch {
    values: Vec<f32>,
    weights: Weights,
}

impl Scratch {
    /// Whether it holds nothing: no draw yet, or none since it was wiped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.weights.is_empty()
    }
}

/// Those that the model does not rule out.
fn possible(values: &[f32]) -> impl Iterator<Item = Candidate> {
    candidates(values).filter(|candidate| candidate.value > f32::NEG_INFINITY)
}

fn candidates(values: &[f32]) -> impl Iterator<Item = Candidate> {
    (0..).zip(values).map(|(token, value)| Candidate { token, value: *value })
}

/// What the form lets through at this moment.
struct Gate<'a> {
    /// The form, whether the answer may end, and whether a text may begin with each byte.
    form: Option<(&'a mut Matcher, bool, Vec<bool>)>,
    vocabulary: &'a Vocabulary,
}

impl<'a> Gate<'a> {
    fn new(form: Option<&'a mut Matcher>, vocabulary: &'a Vocabulary) -> Self {
        let with_table = |form: &'a mut Matcher| {
            let (may_end, table) = (form.may_end(), form.first_bytes());
            (form, may_end, table)
        };
        Self { form: form.map(with_table), vocabulary }
    }

    /// Whether a token can be allowed, by its first byte: what costs next to nothing for a whole vocabulary.
    fn may_allow(&self, token: Token) -> bool {
        let Some((_, may_end, table)) = &self.form else { return true };
        match self.vocabulary.start(token) {
            Start::End => *may_end,
            Start::Byte(byte) => table.get(usize::from(byte)).copied().unwrap_or(false),
            Start::Nothing => false,
        }
    }

    fn allows(&mut self, token: Token) -> bool {
        if !self.may_allow(token) {
            return false;
        }
        let is_end = self.vocabulary.is_end(token);
        self.form.as_mut().is_none_or(|(form, ..)| is_end || form.allows(self.vocabulary.text(token)))
    }
}

/// The likeliest that the form allows.
fn likeliest_allowed(candidates: impl Iterator<Item = Candidate>, gate: &mut Gate<'_>) -> Option<Token> {
    let mut candidates: Vec<Candidate> = candidates.filter(|candidate| gate.may_allow(candidate.token)).collect();
    // Few are needed as a rule.
    let (first, rest) = split_likeliest(&mut candidates, SORTED_FIRST);
    first.sort_unstable_by(by_value);
    if let Some(candidate) = first.iter().find(|candidate| gate.allows(candidate.token)) {
        return Some(candidate.token);
    }
    let mut found: Option<Candidate> = None;
    for candidate in rest {
        let is_likelier = found.is_none_or(|found| by_value(candidate, &found) == Ordering::Less);
        if is_likelier && gate.allows(candidate.token) {
            found = Some(*candidate);
        }
    }
    found.map(|candidate| candidate.token)
}

/// Draws a token by `weights`, which are those of `values`, the greatest of which is `most`.
fn draw(
    values: &[f32],
    most: f32,
    settings: Sampling,
    weights: &mut Weights,
    state: &mut u64,
    gate: &mut Gate<'_>,
) -> Option<Token> {
    let Sampling { temperature, top_p, .. } = settings;
    // All tokens in their order, or the likeliest in theirs.
    let mut likely = None;
    if top_p < 1.0 {
        let nucleus = nucleus(weights, top_p);
        weights.set_to(nucleus.iter().map(|one| one.value));
        likely = Some(nucleus);
    }
    let token = |place: usize| match &likely {
        None => Token::try_from(place).ok(),
        Some(likely) => likely.get(place).map(|one| one.token),
    };
    if gate.form.is_some() {
        weights.retain(|place| token(place).is_some_and(|token| gate.may_allow(token)));
    }
    // Drawing again without what was refused draws from what is allowed, in its own proportions.
    for _ in 0..MAX_DRAWS {
        let Some(token) = weights.draw(random(state)).and_then(token) else { break };
        if gate.allows(token) {
            return Some(token);
        }
    }
    // Nearly everything likely is refused. Exponential clocks give the same distribution in one pass.
    let mut clocked = |token: Token, log_weight: f64| {
        let clock = -(1.0 - random(state)).ln();
        #[expect(clippy::cast_possible_truncation, reason = "an order is wanted, not the last digits")]
        let value = (log_weight - clock.ln()) as f32;
        Candidate { token, value }
    };
    let Some(likely) = &likely else {
        // By their values: what is allowed may be so much less likely than the likeliest that its weight is 0.
        let (most, temperature) = (f64::from(most), f64::from(temperature.max(LEAST_TEMPERATURE)));
        let allowed = possible(values).filter(|one| gate.may_allow(one.token));
        let clocks: Vec<Candidate> =
            allowed.map(|one| clocked(one.token, (f64::from(one.value) - most) / temperature)).collect();
        return likeliest_allowed(clocks.into_iter(), gate);
    };
    let left = weights.all().filter_map(|(place, weight)| Some((likely.get(place)?.token, f64::from(weight).ln())));
    let clocks: Vec<Candidate> = left.map(|(token, log_weight)| clocked(token, log_weight)).collect();
    likeliest_allowed(clocks.into_iter(), gate).or_else(|| likeliest_allowed(possible(values), gate))
}

/// From 0 to 1, without 1: SplitMix64 (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are left")]
    let numerator = (mixed >> 11) as f64;
    numerator / 9_007_199_254_740_992.0
}

/// The probabilities that the model gives a token and the likeliest ones.
#[must_use]
pub(crate) fn logprobs(logits: &[f32], token: Token, top: u8, vocabulary: &Vocabulary) -> TokenLogprobs {
    let most = greatest(logits).unwrap_or(0.0);
    let log_sum = log_sum_exp(logits, most);
    let entry = |token: Token, logit: f32| {
        let logprob = (logit - log_sum).clamp(LEAST_LOGPROB, 0.0);
        TokenLogprob { bytes: vocabulary.text(token).to_vec(), logprob }
    };
    let own = usize::try_from(token).ok().and_then(|index| logits.get(index)).copied().unwrap_or(f32::NEG_INFINITY);
    let first = likeliest(logits, usize::from(top));
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

/// The `count` likeliest in their order. For few of many.
fn likeliest(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::with_capacity(count.saturating_add(1));
    for candidate in candidates(logits) {
        let is_full = found.len() == count;
        if is_full && found.last().is_none_or(|last| candidate.value <= last.value) {
            continue;
        }
        let place = found.partition_point(|one| by_value(one, &candidate) == Ordering::Less);
        found.insert(place, candidate);
        found.truncate(count);
    }
    found
}

/// The likeliest ones whose probabilities sum up to `top_p`, at least one, with their weights.
fn nucleus(weights: &Weights, top_p: f32) -> Vec<Candidate> {
    let wanted = weights.total() * f64::from(top_p);
    let mut candidates: Vec<Candidate> = Vec::new();
    // The greatest weight is 1. Those that are much smaller are not needed as a rule, and to sort all costs most.
    for least in [1e-3, 1e-5, 0.0] {
        let some = weights.all().filter(|(_, weight)| *weight > least);
        candidates.clear();
        candidates
            .extend(some.filter_map(|(place, value)| Some(Candidate { token: Token::try_from(place).ok()?, value })));
        if candidates.iter().map(|one| f64::from(one.value)).sum::<f64>() >= wanted {
            break;
        }
    }
    let mut count = SORTED_FIRST;
    loop {
        let (first, rest) = split_likeliest(&mut candidates, count);
        first.sort_unstable_by(by_value);
        let mut sum = 0.0;
        let enough = first.iter().position(|one| {
            sum += f64::from(one.value);
            sum >= wanted
        });
        if enough.is_some() || rest.is_empty() {
            candidates.truncate(enough.map_or(usize::MAX, |index| index.saturating_add(1)));
            return candidates;
        }
        count = count.saturating_mul(16);
    }
}

/// Keeps the answers of one request apart.
const CHOICE: u64 = 0xd134_2543_de82_ef95;
const SORTED_FIRST: usize = 256;
const MAX_DRAWS: usize = 32;
/// Below it values divided by it are too far apart for chance to matter, and too large to be kept in order.
const LEAST_TEMPERATURE: f32 = 1e-6;
const LEAST_LOGPROB: f32 = -9999.0;

#[cfg(test)]
mod tests {
    use super::*;
    use output_schema::{Grammar, Json};
    use proptest::strategy::Strategy as _;

    fn settings(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 7 }
    }

    /// Memory that another answer left behind.
    fn used() -> Scratch {
        let mut scratch = Scratch { values: vec![90.0; 50], weights: Weights::default() };
        scratch.weights.set_to((0..2000).map(|_| 1.0));
        scratch
    }

    fn letters() -> Vocabulary {
        let token = |text: &str| (text.as_bytes().to_vec(), text.is_empty());
        Vocabulary::new(["a", "b", "c", "", "\"", "1", "23", "{", "}"].into_iter().map(token))
    }

    fn form(schema: &str) -> Matcher {
        Matcher::new(Grammar::of_schema(&Json::parse(schema.as_bytes()).unwrap()).unwrap()).unwrap()
    }

    fn frequencies(sampler: &mut Sampler, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut counts = vec![0_u32; logits.len()];
        for _ in 0..draws {
            // Without the form's progress: the same moment each time.
            let form = sampler.form.clone();
            counts[sampler.pick(logits, &letters(), &mut used()).unwrap() as usize] += 1;
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
        assert_eq!(sampler.pick(&[0.0, 2.0, 2.0, 1.0], &letters(), &mut used()), Ok(1));
        assert_eq!(sampler.pick(&[0.0, f32::NAN], &letters(), &mut used()), Err(NoToken::NotNumbers));
        assert_eq!(sampler.pick(&[], &letters(), &mut used()), Err(NoToken::NotNumbers));
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
        let integer = || form(r#"{"type":"integer"}"#);
        // "a" is by far likeliest and not allowed; "1" and "23" are.
        let logits = [9.0, 0.0, 0.0, 5.0, 0.0, 1.0_f32.ln(), 3.0_f32.ln(), 0.0, 0.0];
        let mut expected = [0.0; 9];
        (expected[5], expected[6]) = (0.25, 0.75);
        near(&frequencies(&mut Sampler::new(settings(1.0, 1.0), 0, Some(integer())), &logits, 15_000), &expected);
        // So cold that "a" leaves no weight for them: their proportions are the same.
        let cold = 0.02;
        let logits_of_cold = logits.map(|logit| if logit < 5.0 { logit * cold } else { logit });
        let mut sampler = Sampler::new(settings(cold, 1.0), 0, Some(integer()));
        near(&frequencies(&mut sampler, &logits_of_cold, 15_000), &expected);
        let mut least = Sampler::new(settings(f32::MIN_POSITIVE, 1.0), 0, Some(integer()));
        assert_eq!(least.pick(&logits, &letters(), &mut used()), Ok(6));
        let mut greedy = Sampler::new(settings(0.0, 1.0), 0, Some(integer()));
        assert_eq!(greedy.pick(&logits, &letters(), &mut used()), Ok(6));
        assert_eq!(greedy.pick(&logits, &letters(), &mut used()), Ok(3), "the end is allowed now");
        // The nucleus is "a" alone: the likeliest allowed one is taken.
        assert_eq!(Sampler::new(settings(1.0, 0.1), 0, Some(integer())).pick(&logits, &letters(), &mut used()), Ok(6));
        let none = form(r#"{"const":true}"#);
        assert_eq!(
            Sampler::new(settings(1.0, 1.0), 0, Some(none)).pick(&logits, &letters(), &mut used()),
            Err(NoToken::Form)
        );
    }

    #[test]
    fn what_the_model_rules_out_fills_no_form() {
        let mut logits = [f32::NEG_INFINITY; 9];
        logits[0] = 1.0;
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(settings(temperature, 1.0), 0, Some(form(r#"{"type":"integer"}"#)));
            assert_eq!(sampler.pick(&logits, &letters(), &mut used()), Err(NoToken::Form));
        }
    }

    #[test]
    fn penalties_count_what_the_answer_holds() {
        let mut sampler =
            Sampler::new(Sampling { frequency_penalty: 1.0, presence_penalty: 0.5, ..settings(0.0, 1.0) }, 0, None);
        let picks: Vec<_> = (0..4).map(|_| sampler.pick(&[3.0, 1.0, 0.0], &letters(), &mut used()).unwrap()).collect();
        // 3, 1.5, 0.5: then the second one is ahead.
        assert_eq!(picks, [0, 0, 1, 0]);
    }

    fn biased(temperature: f32, bias: &[(Token, f32)], form: Option<Matcher>) -> Sampler {
        let bias = bias.iter().map(|(token, bias)| Bias { token: *token, bias: *bias });
        Sampler::new(settings(temperature, 1.0), 0, form).with_bias(bias.collect())
    }

    #[test]
    fn what_is_added_to_logits_counts_whether_drawn_or_greedy() {
        let logits = [2.0, 1.0, 0.0];
        assert_eq!(biased(0.0, &[], None).pick(&logits, &letters(), &mut used()), Ok(0));
        assert_eq!(biased(0.0, &[(2, 2.5)], None).pick(&logits, &letters(), &mut used()), Ok(2));
        assert_eq!(biased(0.0, &[(0, -1.5)], None).pick(&logits, &letters(), &mut used()), Ok(1));
        near(&frequencies(&mut biased(1.0, &[(0, -100.0), (2, 1.0)], None), &logits, 15_000), &[0.0, 0.5, 0.5]);
        // Before temperature: 0.5 doubles what was added, too.
        let weights = [0.0_f32.exp(), 2.0_f32.exp()].map(|weight| f64::from(weight / (1.0 + 2.0_f32.exp())));
        near(&frequencies(&mut biased(0.5, &[(1, 1.0)], None), &[0.0, 0.0], 15_000), &weights);
        // One that the model does not have is nobody's.
        assert_eq!(biased(0.0, &[(3, 100.0)], None).pick(&logits, &letters(), &mut used()), Ok(0));
        // What can't come, does not.
        assert_eq!(biased(0.0, &[(0, 100.0)], None).pick(&[f32::NEG_INFINITY, 1.0], &letters(), &mut used()), Ok(1));
    }

    #[test]
    fn a_form_wins_over_what_is_added() {
        let logits = [0.0; 9];
        for temperature in [0.0, 1.0] {
            // "a" is no integer, and the integer's only digits are made unlikely.
            let bias = [(0, 100.0), (5, -100.0), (6, -100.0)];
            let mut sampler = biased(temperature, &bias, Some(form(r#"{"type":"integer"}"#)));
            assert!([5, 6].contains(&sampler.pick(&logits, &letters(), &mut used()).unwrap()));
        }
    }

    #[test]
    fn what_is_no_number_is_not_drawn_from() {
        for bad in [f32::NAN, f32::INFINITY] {
            for temperature in [0.0, 1.0] {
                let mut sampler = Sampler::new(settings(temperature, 1.0), 0, None);
                assert_eq!(sampler.pick(&[1.0, bad, 0.0], &letters(), &mut used()), Err(NoToken::NotNumbers));
                assert_eq!(sampler.pick(&[f32::NEG_INFINITY; 3], &letters(), &mut used()), Err(NoToken::NotNumbers));
                assert_eq!(sampler.pick(&[f32::NEG_INFINITY, 1.0], &letters(), &mut used()), Ok(1));
            }
        }
    }

    /// A temperature near 0 is as none, however large logits and penalties are.
    #[test]
    fn the_least_temperatures_pick_the_likeliest() {
        for temperature in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-37, 1e-9] {
            for penalty in [-2.0, 0.0, 2.0] {
                for top_p in [1.0, 0.5] {
                    let penalties = Sampling {
                        frequency_penalty: penalty,
                        presence_penalty: penalty,
                        ..settings(temperature, top_p)
                    };
                    let mut sampler = Sampler::new(penalties, 0, None);
                    let picks: Vec<_> =
                        (0..3).map(|_| sampler.pick(&[-50.0, 90.0, 20.0], &letters(), &mut used())).collect();
                    assert_eq!(picks, [Ok(1), Ok(1), Ok(1)], "{temperature} {penalty} {top_p}");
                }
            }
        }
    }

    /// Many unlikely texts that begin alike, and a large vocabulary: each token is looked at, and still it costs little.
    #[test]
    fn a_form_of_unlikely_texts_costs_little() {
        let texts: Vec<String> = (0..256).map(|index| format!("\"{}{index}\"", "a".repeat(40))).collect();
        let mut sampler =
            Sampler::new(settings(0.7, 0.9), 0, Some(form(&format!("{{\"enum\":[{}]}}", texts.join(",")))));
        let token = |number: u32| match number {
            0 => (b"\"".to_vec(), false),
            1..=10 => ((number - 1).to_string().into_bytes(), false),
            // Half of them begin as the texts do.
            _ if number.is_multiple_of(2) => {
                (format!("{}b{number}", "a".repeat(1 + number as usize % 30)).into_bytes(), false)
            }
            3001 => (b"a".to_vec(), false),
            _ => (format!("x{number}").into_bytes(), false),
        };
        let vocabulary = Vocabulary::new((0..4001).map(token));
        let logits: Vec<f32> = (0..4001_u16).map(|number| f32::from(number % 997) / 10.0).collect();
        let mut text = Vec::new();
        while !sampler.must_end() {
            let token = sampler.pick(&logits, &vocabulary, &mut used()).unwrap();
            text.extend_from_slice(vocabulary.text(token));
        }
        assert!(texts.contains(&String::from_utf8(text).unwrap()));
    }

    #[test]
    fn nothing_of_a_draw_is_left_when_memory_is_wiped() {
        let mut scratch = used();
        scratch.zeroize();
        assert!(scratch.is_empty() && scratch.weights.all().next().is_none());
        assert_eq!(scratch.weights.total(), 0.0);
    }

    #[test]
    fn seeds_and_choices_differ() {
        let logits = [0.0; 9];
        let draw = |seed, choice| {
            let mut sampler = Sampler::new(Sampling { seed, ..settings(1.0, 1.0) }, choice, None);
            (0..20).map(|_| sampler.pick(&logits, &letters(), &mut used()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    proptest::proptest! {
        /// However flat or steep: as sorting all of them says.
        #[test]
        fn the_nucleus_is_the_shortest_that_suffices(
            mut values in proptest::collection::vec(-30.0_f32..0.0, 1..3000),
            spread in 0.01_f32..1.0,
            top_p in 0.0_f32..1.0,
        ) {
            values.iter_mut().for_each(|value| *value *= spread);
            let most = greatest(&values).unwrap();
            let mut weights = Weights::default();
            weights.set(&values, most, 1.0);
            let mut sorted: Vec<Candidate> =
                weights.all().map(|(place, value)| Candidate { token: place as Token, value }).collect();
            sorted.sort_by(by_value);
            let (mut sum, wanted) = (0.0, weights.total() * f64::from(top_p));
            let enough = sorted.iter().position(|one| {
                sum += f64::from(one.value);
                sum >= wanted
            });
            sorted.truncate(enough.map_or(usize::MAX, |index| index + 1));
            proptest::prop_assert_eq!(nucleus(&weights, top_p), sorted);
        }

        #[test]
        fn the_likeliest_are_those_that_sorting_gives(
            logits in proptest::collection::vec((-20_i8..20).prop_map(f32::from), 0..300),
            count in 0_usize..25,
        ) {
            let mut sorted: Vec<Candidate> = candidates(&logits).collect();
            sorted.sort_by(by_value);
            sorted.truncate(count);
            proptest::prop_assert_eq!(likeliest(&logits, count), sorted);
        }
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
