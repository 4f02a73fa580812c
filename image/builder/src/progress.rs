// SPDX-License-Identifier: Apache-2.0
//! How long work tells that it goes on: a bar on a terminal, plain lines otherwise, always on stderr.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// What a number of [`Progress::advance`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes transferred.
    Bytes,
    /// Things done: files unpacked, objects compiled.
    Items,
}

/// Receives the progress of long work. Implementations must not fail.
pub trait Progress: Send + Sync {
    /// A named step begins.
    fn step(&self, what: &str);
    /// `done` of `total` (if known) within the step `what`.
    fn advance(&self, what: &str, done: u64, total: Option<u64>, unit: Unit);
    /// The counting that [`Progress::advance`] began is over.
    fn finish(&self);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
    fn advance(&self, _what: &str, _done: u64, _total: Option<u64>, _unit: Unit) {}
    fn finish(&self) {}
}

/// Writes to stderr: a bar when it is a terminal, otherwise a line for each step and one every ten seconds.
#[derive(Debug)]
pub struct Console {
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Console {
    /// Looks at stderr once.
    #[must_use]
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            state: Mutex::new(State { bar: None, last_line: Instant::now() }),
        }
    }

    fn bar(&self, what: &str, total: Option<u64>, unit: Unit) -> ProgressBar {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = match (total.is_some(), unit) {
            (true, Unit::Bytes) => "  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            (true, Unit::Items) => "  {msg} [{bar:30}] {pos}/{len}",
            (false, Unit::Bytes) => "  {msg} {bytes} {elapsed}",
            (false, Unit::Items) => "  {msg} {pos} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Console {
    fn step(&self, what: &str) {
        self.finish();
        eprintln!("{what}");
    }

    fn advance(&self, what: &str, done: u64, total: Option<u64>, unit: Unit) {
        let Ok(mut state) = self.state.lock() else { return };
        if self.terminal {
            let bar = state.bar.get_or_insert_with(|| self.bar(what, total, unit));
            bar.set_position(done);
        } else if state.last_line.elapsed() >= LINE_INTERVAL {
            state.last_line = Instant::now();
            eprintln!("  {what}: {}", amount(done, total, unit));
        }
    }

    fn finish(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        state.last_line = Instant::now();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn amount(done: u64, total: Option<u64>, unit: Unit) -> String {
    let show = |n: u64| match unit {
        Unit::Bytes => format!("{} MiB", n >> 20),
        Unit::Items => n.to_string(),
    };
    match total {
        Some(total) => format!("{} of {}", show(done), show(total)),
        None => show(done),
    }
}

const LINE_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        assert_eq!(amount(5 << 20, Some(10 << 20), Unit::Bytes), "5 MiB of 10 MiB");
        assert_eq!(amount(7, None, Unit::Items), "7");
    }
}
