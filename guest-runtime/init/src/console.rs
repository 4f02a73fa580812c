// SPDX-License-Identifier: Apache-2.0
//! Words on the measured command line, and the console of development images.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
};

use crate::boot::{Code, Fails as _, Failure};

/// What the measured command line allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Allowances {
    /// `chrysalis.tee=simulated`: the processor may lack RDSEED, as emulated ones do.
    pub(crate) simulated: bool,
    /// `chrysalis.profile=debug`: phases and errors are printed on the console.
    pub(crate) debug: bool,
}

impl Allowances {
    /// Reads `/proc/cmdline`. Verifiers know these words by RTMR2: no release for production has those that allow
    /// anything. A word that begins with `chrysalis.` and is not known here, or stands there twice, is a failure: it was
    /// meant for another image, and ignoring it would be a decision that nobody made.
    pub(crate) fn read() -> Result<Self, Failure> {
        let line = fs::read_to_string("/proc/cmdline").map_err(Code::CommandLineUnknown.because())?;
        Self::of(&line).ok_or(Code::CommandLineUnknown.alone())
    }

    fn of(command_line: &str) -> Option<Self> {
        let words = || command_line.split_ascii_whitespace().filter(|word| word.starts_with(PREFIX));
        let count = |word: &&str| words().filter(|found| found == word).count();
        let profiles = words().filter(|word| PROFILES.contains(word)).count();
        let known = words().all(|word| (PROFILES.contains(&word) || word == SIMULATED) && count(&word) == 1);
        let has = |word: &str| words().any(|found| found == word);
        (known && profiles == 1).then(|| Self { simulated: has(SIMULATED), debug: has(DEBUG) })
    }
}

const PREFIX: &str = "chrysalis.";
const SIMULATED: &str = "chrysalis.tee=simulated";
const DEBUG: &str = "chrysalis.profile=debug";
/// Exactly one of them says which image this is.
const PROFILES: [&str; 3] = ["chrysalis.profile=cpu", "chrysalis.profile=sim", DEBUG];

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
    fn known_words_allow_what_they_say() {
        assert_eq!(Allowances::of("quiet chrysalis.profile=cpu\n"), Some(Allowances::default()));
        let both = Allowances::of("chrysalis.profile=debug chrysalis.tee=simulated initrd=initrd\n");
        assert_eq!(both, Some(Allowances { simulated: true, debug: true }));
        // Not a word of ours: the kernel's or nobody's.
        assert!(Allowances::of("chrysalis.profile=sim xchrysalis.tee=simulated").is_some_and(|found| !found.simulated));
    }

    #[test]
    fn unknown_and_repeated_words_are_refused() {
        for line in [
            "",
            "chrysalis.tee=simulated",
            "chrysalis.profile=cpu chrysalis.tee=simulated2",
            "chrysalis.profile=cpu chrysalis.tee=",
            "chrysalis.profile=debug,x",
            "chrysalis.profile=cpu chrysalis.shell=1",
            "chrysalis.profile=cpu chrysalis.",
            "chrysalis.profile=cpu chrysalis.profile=debug",
            "chrysalis.profile=cpu chrysalis.profile=cpu",
            "chrysalis.profile=sim chrysalis.tee=simulated chrysalis.tee=simulated",
        ] {
            assert_eq!(Allowances::of(line), None, "{line}");
        }
    }
}
