// SPDX-License-Identifier: Apache-2.0
//! Kernel configuration fragments, and the check that Kconfig did what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::KernelError;
use crate::files;

/// A configuration fragment: every option it wants, in the kernel's `.config` syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// File name.
    pub name: String,
    options: Vec<(String, String)>,
}

/// An option that is not what a fragment wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The option, with `CONFIG_`.
    pub option: String,
    /// The value wanted.
    pub wanted: String,
    /// The value after resolution; `n` also stands for absent.
    pub found: String,
}

impl Fragment {
    /// Reads `CONFIG_NAME=value` lines, comments (`#`) and blank lines.
    ///
    /// # Errors
    /// [`KernelError::FragmentLine`] for any other line.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, KernelError> {
        let text = String::from_utf8_lossy(bytes);
        let mut options = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let option = option_line(line)
                .ok_or_else(|| KernelError::FragmentLine { fragment: name.to_owned(), line: index + 1 })?;
            options.push(option);
        }
        Ok(Self { name: name.to_owned(), options })
    }
}

/// What the fragments want together, one option a line, sorted; a later fragment overrides an earlier one.
pub(super) fn merged_text(fragments: &[Fragment]) -> String {
    merged(fragments).iter().map(|(option, value)| format!("{option}={value}\n")).collect()
}

/// Refuses options that no Kconfig file of the tree defines: wanting one off would otherwise pass for ever.
pub(super) fn check_known(tree: &Path, fragments: &[Fragment]) -> Result<(), KernelError> {
    let mut known = BTreeSet::new();
    for path in files::list_files(tree)? {
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("Kconfig")) {
            let text = files::read_capped(&tree.join(&path), MAX_KCONFIG)?;
            known.extend(defined_options(&String::from_utf8_lossy(&text)));
        }
    }
    let is_unknown = |option: &String| !known.contains(option.trim_start_matches(PREFIX));
    let unknown: Vec<String> = merged(fragments).into_keys().filter(is_unknown).collect();
    if unknown.is_empty() { Ok(()) } else { Err(KernelError::UnknownOptions(unknown)) }
}

/// Compares the resolved configuration with every option wanted.
pub(super) fn check_resolved(fragments: &[Fragment], resolved: &str) -> Result<(), KernelError> {
    let found: BTreeMap<_, _> = resolved.lines().filter_map(option_line).collect();
    let mut differences = Vec::new();
    for (option, wanted) in merged(fragments) {
        let found = found.get(&option).map_or("n", String::as_str);
        if found != wanted {
            differences.push(Difference { option, wanted, found: found.to_owned() });
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(KernelError::OptionsDiffer(differences)) }
}

pub(super) fn list(differences: &[Difference]) -> String {
    let one = |d: &Difference| format!("{} wanted {} found {}", d.option, d.wanted, d.found);
    differences.iter().map(one).collect::<Vec<_>>().join(", ")
}

pub(super) fn merged(fragments: &[Fragment]) -> BTreeMap<String, String> {
    fragments.iter().flat_map(|f| f.options.iter().cloned()).collect()
}

fn option_line(line: &str) -> Option<(String, String)> {
    let (option, value) = line.split_once('=')?;
    let name = option.strip_prefix(PREFIX)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = !name.is_empty() && name.bytes().all(plain) && !value.is_empty();
    good.then(|| (option.to_owned(), value.to_owned()))
}

/// Names after `config` and `menuconfig` in a Kconfig file.
fn defined_options(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next()?;
        let name = words.next()?;
        (matches!(keyword, "config" | "menuconfig") && words.next().is_none()).then(|| name.to_owned())
    })
}

const PREFIX: &str = "CONFIG_";
const MAX_KCONFIG: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(texts: &[&str]) -> Vec<Fragment> {
        texts.iter().map(|t| Fragment::parse("f", t.as_bytes()).unwrap()).collect()
    }

    #[test]
    fn an_option_that_came_out_different_is_named() {
        let wanted = fragments(&["CONFIG_A=y\nCONFIG_B=n\nCONFIG_S=\"x\"\n", "CONFIG_C=3\n"]);
        let good = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=3\nCONFIG_S=\"x\"\n";
        check_resolved(&wanted, good).unwrap();
        let bad = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=4\nCONFIG_S=\"x\"\n";
        let Err(KernelError::OptionsDiffer(differences)) = check_resolved(&wanted, bad) else { panic!() };
        let text = list(&differences);
        assert_eq!(text, "CONFIG_A wanted y found n, CONFIG_B wanted n found y, CONFIG_C wanted 3 found 4");
    }

    #[test]
    fn a_missing_option_is_named() {
        let Err(KernelError::OptionsDiffer(d)) = check_resolved(&fragments(&["CONFIG_A=y\n"]), "") else { panic!() };
        assert_eq!((d.len(), d[0].option.as_str()), (1, "CONFIG_A"));
    }

    #[test]
    fn an_option_the_kernel_does_not_have_is_named() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("sub")).unwrap();
        std::fs::write(tree.path().join("sub/Kconfig"), "menuconfig A\n\tbool\nconfig B\n\tconfig is a word\n")
            .unwrap();
        check_known(tree.path(), &fragments(&["CONFIG_A=y\nCONFIG_B=n\n"])).unwrap();
        let Err(KernelError::UnknownOptions(names)) = check_known(tree.path(), &fragments(&["CONFIG_BB=n\n"])) else {
            panic!()
        };
        assert_eq!(names, ["CONFIG_BB"]);
    }

    #[test]
    fn later_fragments_override() {
        let merged = merged_text(&fragments(&["CONFIG_B=n\nCONFIG_A=y\n", "# x\nCONFIG_B=y\n"]));
        assert_eq!(merged, "CONFIG_A=y\nCONFIG_B=y\n");
    }

    #[test]
    fn other_lines_are_refused() {
        for text in ["CONFIG_A", "A=y", "CONFIG_=y", "CONFIG_A=", "CONFIG_A B=y", " CONFIG_A=y"] {
            let error = Fragment::parse("f", format!("\n{text}\n").as_bytes()).unwrap_err();
            assert!(matches!(error, KernelError::FragmentLine { line: 2, .. }), "{text}");
        }
    }
}
