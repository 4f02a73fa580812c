// SPDX-License-Identifier: Apache-2.0
//! One generation, towards serving.

use crate::observed::{End, Progress, Seen};
use crate::state::Generation;
use crate::step::Now;

/// What a generation needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Prepare,
    Start,
}

/// What came of one look at a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Driven {
    pub(crate) need: Need,
    /// An attempt failed just now.
    pub(crate) failed: bool,
}

/// Notes what is seen of a generation that shall run, and says what it needs.
pub(crate) fn drive(generation: &mut Generation, seen: &Seen, now: &Now) -> Driven {
    let nothing = Driven { need: Need::Nothing, failed: false };
    let failed = Driven { need: Need::Nothing, failed: true };
    if let Some(reasons) = &seen.failure {
        fail(generation, End::Refused { reasons: reasons.clone() }, now);
        return failed;
    }
    if seen.busy {
        return nothing;
    }
    if seen.alive {
        generation.running = true;
        note_progress(generation, &seen.progress, now);
        return nothing;
    }
    if generation.running && seen.attempt < generation.attempt {
        // The start was decided and never carried out: a daemon ended in between. Nothing has failed.
        generation.running = false;
        generation.attempt = generation.attempt.saturating_sub(1);
    }
    if generation.running {
        let unknown = || End::Failed { reason: "the keeper ended without a word: see keeper.log".to_owned() };
        fail(generation, seen.end.clone().unwrap_or_else(unknown), now);
        return failed;
    }
    if now.ms < generation.retry_at {
        return nothing;
    }
    Driven { need: if seen.composed { Need::Start } else { Need::Prepare }, failed: false }
}

fn note_progress(generation: &mut Generation, progress: &Progress, now: &Now) {
    let Progress::Serving(_) = progress else {
        generation.serving_since = None;
        return;
    };
    generation.served = true;
    let since = *generation.serving_since.get_or_insert(now.ms);
    if now.ms.saturating_sub(since) >= now.backoff.stable_ms {
        generation.failures = 0;
    }
}

fn fail(generation: &mut Generation, end: End, now: &Now) {
    generation.running = false;
    generation.serving_since = None;
    generation.failures = generation.failures.saturating_add(1);
    let jitter = now.jitter.wrapping_add(generation.number.wrapping_mul(7_919));
    let delay = now.backoff.delay(generation.failures, end.pace(), jitter);
    generation.retry_at = now.ms.saturating_add(delay);
    generation.last_end = Some(end);
}
