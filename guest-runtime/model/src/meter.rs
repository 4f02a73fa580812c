// SPDX-License-Identifier: Apache-2.0
//! Progress on standard error: a bar on a terminal, a line per tenth elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shows how far a piece of work has come.
pub(crate) struct Meter {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Starts with nothing of `total` bytes done.
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        });
        Self { what, total, done: AtomicU64::new(0), bar }
    }

    /// Counts further bytes.
    pub(crate) fn advance(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        } else if self.tenths(before) < self.tenths(before.saturating_add(bytes)) {
            eprintln!("{}: {} %", self.what, self.tenths(before.saturating_add(bytes)).saturating_mul(10));
        }
    }

    /// Takes the bar away.
    pub(crate) fn stop(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn tenths(&self, done: u64) -> u64 {
        done.saturating_mul(10).checked_div(self.total).unwrap_or(0).min(10)
    }
}

const TEMPLATE: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
