// SPDX-License-Identifier: Apache-2.0
//! Words on the measured command line, and the console of development images.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
};

use linux_sys::verity::VerityRoot;

use crate::boot::{Code, Fails as _, Failure};

/// What the measured command line allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Allowances {
    /// `chrysalis.tee=simulated`: the processor may lack RDSEED, as emulated ones do.
    pub(crate) simulated: bool,
    /// `chrysalis.profile=debug`: phases and errors are printed on the console.
    pub(crate) debug: bool,
    /// `chrysalis.root=…`: the image has a root disk, which this verifies. Exactly the profiles for GPUs have one.
    pub(crate) root: Option<VerityRoot>,
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
        let is_known = |word: &str| PROFILES.contains(&word) || word == SIMULATED || word.starts_with(ROOT);
        let known = words().all(|word| is_known(word) && count(&word) == 1);
        let has = |word: &str| words().any(|found| found == word);
        let profiles = words().filter(|word| PROFILES.contains(word)).count();
        let mut roots = words().filter_map(|word| word.strip_prefix(ROOT));
        let root = match (roots.next(), roots.next()) {
            (None, _) => None,
            (Some(root), None) => Some(root.parse().ok()?),
            (Some(_), Some(_)) => return None,
        };
        let has_root = words().any(|word| GPU_PROFILES.contains(&word)) == root.is_some();
        (known && profiles == 1 && has_root).then(|| Self { simulated: has(SIMULATED), debug: has(DEBUG), root })
    }
}

const PREFIX: &str = "chrysalis.";
const SIMULATED: &str = "chrysalis.tee=simulated";
const DEBUG: &str = "chrysalis.profile=debug";
/// Exactly one of them says which image this is.
const PROFILES: [&str; 5] =
    ["chrysalis.profile=cpu", "chrysalis.profile=sim", DEBUG, "chrysalis.profile=gpu", "chrysalis.profile=gpu-sim"];
const GPU_PROFILES: [&str; 2] = ["chrysalis.profile=gpu", "chrysalis.profile=gpu-sim"];
const ROOT: &str = "chrysalis.root=";

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
        assert_eq!(both, Some(Allowances { simulated: true, debug: true, root: None }));
        // Not a word of ours: the kernel's or nobody's.
        assert!(Allowances::of("chrysalis.profile=sim xchrysalis.tee=simulated").is_some_and(|found| !found.simulated));
    }

    #[test]
    fn exactly_the_images_for_gpus_have_a_root() {
        let root = format!("chrysalis.root={}:{}:9", "0a".repeat(32), "0b".repeat(32));
        let other = format!("chrysalis.root={}:{}:8", "0a".repeat(32), "0b".repeat(32));
        for profile in ["gpu", "gpu-sim"] {
            let found = Allowances::of(&format!("quiet chrysalis.profile={profile} {root}")).unwrap();
            assert_eq!(found.root, root.strip_prefix(ROOT).unwrap().parse().ok());
            assert!(found.root.is_some() && !found.debug);
        }
        for line in [
            "chrysalis.profile=gpu".to_owned(),
            format!("chrysalis.profile=cpu {root}"),
            format!("chrysalis.profile=sim {root} chrysalis.tee=simulated"),
            format!("chrysalis.profile=gpu {root} {other}"),
            format!("chrysalis.profile=gpu {root} {root}"),
            format!("chrysalis.profile=gpu {root}0x"),
            "chrysalis.profile=gpu chrysalis.root=".to_owned(),
        ] {
            assert_eq!(Allowances::of(&line), None, "{line}");
        }
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
