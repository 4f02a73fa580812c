// SPDX-License-Identifier: Apache-2.0
//! The security choices that no fragment may leave out.
//!
//! A fragment only states wishes, and a line that was deleted is no longer checked by anybody. So the choices that matter
//! stand a second time, with their reasons, in `image/kernel/required.toml`: before Kconfig runs, the fragments must say each
//! of them; after it, the result is compared with all that the fragments say ([`super::config::check_resolved`]).

use serde::Deserialize;

use super::config::{self, Fragment};

/// Why the fragments may not be used.
#[derive(Debug, thiserror::Error)]
pub enum RequirementError {
    /// `required.toml` is no such file.
    #[error("required.toml: {0}")]
    Malformed(Box<toml::de::Error>),
    /// An option stands in it twice, so that one of both would be ignored.
    #[error("required.toml: {0} stands there twice")]
    Repeated(String),
    /// Fragments that leave out what is required, or say something else.
    #[error("kernel options that are required by image/kernel/required.toml: {}", .0.join("; "))]
    NotMet(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    option: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    because: String,
    #[serde(default)]
    y: Vec<String>,
    #[serde(default)]
    n: Vec<String>,
    unless: Option<String>,
}

/// Compares what the fragments say together with what is required.
///
/// # Errors
/// [`RequirementError`] names every option that is not met, with the reason for it.
pub(super) fn check(required: &str, fragments: &[Fragment]) -> Result<(), RequirementError> {
    let File { option: groups } =
        toml::from_str(required).map_err(|error| RequirementError::Malformed(Box::new(error)))?;
    let said = config::merged(fragments);
    let mut seen = std::collections::BTreeSet::new();
    let mut not_met = Vec::new();
    for Group { because, y, n, unless } in &groups {
        let excepted = unless.as_ref().is_some_and(|name| fragments.iter().any(|fragment| fragment.name == *name));
        for (option, value) in y.iter().map(|option| (option, "y")).chain(n.iter().map(|option| (option, "n"))) {
            if !seen.insert(option) {
                return Err(RequirementError::Repeated(option.clone()));
            }
            let found = said.get(&format!("CONFIG_{option}")).map_or("nothing", String::as_str);
            if found != value && !excepted {
                not_met.push(format!("CONFIG_{option} must be {value}, the fragments say {found} ({because})"));
            }
        }
    }
    if not_met.is_empty() { Ok(()) } else { Err(RequirementError::NotMet(not_met)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: &str = "[[option]]\nbecause = \"r\"\ny = [\"A\"]\nn = [\"B\"]\n\
        [[option]]\nbecause = \"s\"\nn = [\"C\"]\nunless = \"debug.config\"\n";

    fn fragment(name: &str, text: &str) -> Fragment {
        Fragment::parse(name, text.as_bytes()).unwrap()
    }

    #[test]
    fn a_line_left_out_or_turned_round_is_named_with_its_reason() {
        let base = fragment("base.config", "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\n");
        check(REQUIRED, std::slice::from_ref(&base)).unwrap();
        let error = check(REQUIRED, &[fragment("base.config", "CONFIG_A=y\nCONFIG_C=n\n")]).unwrap_err();
        assert!(error.to_string().contains("CONFIG_B must be n, the fragments say nothing (r)"), "{error}");
        let over = fragment("other.config", "CONFIG_B=y\nCONFIG_A=n\n");
        let Err(RequirementError::NotMet(found)) = check(REQUIRED, &[base, over]) else { panic!() };
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn only_the_named_fragment_may_differ() {
        let base = fragment("base.config", "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\n");
        check(REQUIRED, &[base.clone(), fragment("debug.config", "CONFIG_C=y\n")]).unwrap();
        let error = check(REQUIRED, &[base.clone(), fragment("other.config", "CONFIG_C=y\n")]).unwrap_err();
        assert!(error.to_string().contains("CONFIG_C must be n"), "{error}");
        assert!(check(REQUIRED, &[base, fragment("debug.config", "CONFIG_B=y\n")]).is_err());
    }

    #[test]
    fn another_file_is_refused() {
        for bad in ["", "[[option]]\ny = [\"A\"]\n", "[[option]]\nbecause = \"x\"\nm = [\"A\"]\n"] {
            assert!(matches!(check(bad, &[]), Err(RequirementError::Malformed(_))), "{bad}");
        }
        let twice = "[[option]]\nbecause = \"x\"\ny = [\"A\"]\nn = [\"A\"]\n";
        let error = check(twice, &[fragment("f", "CONFIG_A=y\n")]).unwrap_err();
        assert!(matches!(error, RequirementError::Repeated(option) if option == "A"));
    }

    #[test]
    fn the_repository_fragments_meet_what_is_required() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        let required = read("required.toml");
        let base = fragment("base.config", &read("config/base.config"));
        let debug = fragment("debug.config", &read("config/debug.config"));
        check(&required, std::slice::from_ref(&base)).unwrap();
        let emulation = fragment("emulation.config", &read("config/emulation.config"));
        check(&required, &[base.clone(), emulation.clone()]).unwrap();
        check(&required, &[base, emulation, debug.clone()]).unwrap();
        // It can fail.
        assert!(check(&required, &[debug]).is_err());
    }
}
