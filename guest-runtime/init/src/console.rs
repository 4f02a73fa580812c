// SPDX-License-Identifier: Apache-2.0
//! Words on the measured command line, and the console of development images.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
};

/// What the measured command line allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Allowances {
    /// `chrysalis.tee=simulated`: the processor may lack RDSEED, as emulated ones do.
    pub(crate) simulated: bool,
    /// `chrysalis.profile=debug`: phases and errors are printed on the console.
    pub(crate) debug: bool,
}

impl Allowances {
    /// Reads `/proc/cmdline`. Verifiers know these words by RTMR2: no release for production has them.
    pub(crate) fn read() -> Self {
        Self::of(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn of(command_line: &str) -> Self {
        let has = |word| command_line.split_ascii_whitespace().any(|found| found == word);
        Self { simulated: has("chrysalis.tee=simulated"), debug: has("chrysalis.profile=debug") }
    }
}

/// The console of a development image; silent in all others.
#[derive(Debug, Default)]
pub(crate) struct Console(Option<File>);

impl Console {
    pub(crate) fn open(allowances: Allowances) -> Self {
        let open = || OpenOptions::new().write(true).open("/dev/console").ok();
        Self(allowances.debug.then(open).flatten())
    }

    pub(crate) fn say(&mut self, text: std::fmt::Arguments<'_>) {
        if let Some(console) = &mut self.0 {
            let _ = writeln!(console, "init: {text}\r");
        }
    }

    /// Whether this is a development image with a console.
    pub(crate) const fn is_open(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_allow_anything() {
        assert_eq!(Allowances::of("quiet chrysalis.profile=cpu\n"), Allowances::default());
        for word in ["chrysalis.tee=simulated2", "xchrysalis.tee=simulated", "chrysalis.profile=debug,x", ""] {
            assert_eq!(Allowances::of(word), Allowances::default(), "{word}");
        }
        let both = Allowances::of("chrysalis.profile=debug chrysalis.tee=simulated initrd=initrd\n");
        assert_eq!(both, Allowances { simulated: true, debug: true });
    }
}
