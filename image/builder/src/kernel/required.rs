// SPDX-License-Identifier: Apache-2.0
//! The security choices that no fragment may leave out.
//!
//! A fragment only states wishes, and a line that was deleted is no longer checked by anybody. So the choices that matter
//! stand a second time, with their reasons, in `image/kernel/required.toml`: before Kconfig runs, the fragments must say each
//! of them; after it, the result is compared with all that the fragments say ([`super::config::check_resolved`]).

use std::collections::{BTreeMap, BTreeSet};

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
    /// An exception that nothing needs: what it allows is not required, or its fragment does not say it.
    #[error("required.toml: the exception of {fragment} for {option} is not needed")]
    Needless {
        /// The fragment.
        fragment: String,
        /// The option.
        option: String,
    },
    /// Fragments that leave out what is required, or say something else.
    #[error("kernel options that are required by image/kernel/required.toml: {}", .0.join("; "))]
    NotMet(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    option: Vec<Group>,
    #[serde(default)]
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    because: String,
    /// Of concern only to profiles with this fragment; to all when absent.
    with: Option<String>,
    #[serde(default)]
    y: Vec<String>,
    #[serde(default)]
    n: Vec<String>,
    /// Options that must be the empty text.
    #[serde(default)]
    empty: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    fragment: String,
    #[expect(dead_code, reason = "for readers; it must be there")]
    because: String,
    #[serde(default)]
    y: Vec<String>,
    #[serde(default)]
    n: Vec<String>,
}

/// Compares what the fragments say together with what is required.
///
/// # Errors
/// [`RequirementError`] names every option that is not met, with the reason for it.
pub(super) fn check(required: &str, fragments: &[Fragment]) -> Result<(), RequirementError> {
    let File { option: groups, exception: exceptions } =
        toml::from_str(required).map_err(|error| RequirementError::Malformed(Box::new(error)))?;
    let said = config::merged(fragments);
    let mut excepted = excepted(&exceptions, fragments)?;
    let mut seen = BTreeSet::new();
    let mut not_met = Vec::new();
    for Group { because, with, y, n, empty } in &groups {
        let concerned = with.as_ref().is_none_or(|name| fragments.iter().any(|fragment| fragment.name == *name));
        let empty = empty.iter().map(|option| (option.as_str(), EMPTY));
        for (option, value) in values(y, n).chain(empty) {
            if !seen.insert(option) {
                return Err(RequirementError::Repeated(option.to_owned()));
            }
            if !concerned {
                continue;
            }
            let found = said.get(&format!("CONFIG_{option}")).map_or("nothing", String::as_str);
            if found != value && excepted.remove(option).is_none_or(|(_, allowed)| allowed != found) {
                not_met.push(format!("CONFIG_{option} must be {value}, the fragments say {found} ({because})"));
            }
        }
    }
    if !not_met.is_empty() {
        return Err(RequirementError::NotMet(not_met));
    }
    match excepted.into_iter().next() {
        None => Ok(()),
        Some((option, (fragment, _))) => Err(needless(fragment, option)),
    }
}

/// What the exceptions of these fragments allow: the fragment and the value, by option. Each fragment must say so itself.
fn excepted<'a>(
    exceptions: &'a [Exception],
    fragments: &[Fragment],
) -> Result<BTreeMap<&'a str, (&'a str, &'static str)>, RequirementError> {
    let mut allowed = BTreeMap::new();
    for Exception { fragment: name, y, n, .. } in exceptions {
        let Some(fragment) = fragments.iter().find(|fragment| fragment.name == *name) else { continue };
        let own = config::merged(std::slice::from_ref(fragment));
        for (option, value) in values(y, n) {
            if own.get(&format!("CONFIG_{option}")).map(String::as_str) != Some(value) {
                return Err(needless(name, option));
            }
            if allowed.insert(option, (name.as_str(), value)).is_some() {
                return Err(RequirementError::Repeated(option.to_owned()));
            }
        }
    }
    Ok(allowed)
}

fn needless(fragment: &str, option: &str) -> RequirementError {
    RequirementError::Needless { fragment: fragment.to_owned(), option: option.to_owned() }
}

fn values<'a>(y: &'a [String], n: &'a [String]) -> impl Iterator<Item = (&'a str, &'static str)> {
    y.iter().map(|option| (option.as_str(), "y")).chain(n.iter().map(|option| (option.as_str(), "n")))
}

/// The empty text, as a fragment writes it.
const EMPTY: &str = "\"\"";

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: &str = "[[option]]\nbecause = \"r\"\ny = [\"A\"]\nn = [\"B\"]\n\
        [[option]]\nbecause = \"s\"\nn = [\"C\"]\n\
        [[exception]]\nfragment = \"debug.config\"\nbecause = \"t\"\ny = [\"C\"]\n";

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
        let also = fragment("debug.config", "CONFIG_C=y\nCONFIG_B=y\n");
        let error = check(REQUIRED, &[base.clone(), also]).unwrap_err();
        assert!(error.to_string().contains("CONFIG_B must be n"), "{error}");
        // A later fragment that says a third thing is not what the exception allows.
        let third = [base, fragment("debug.config", "CONFIG_C=y\n"), fragment("other.config", "CONFIG_C=m\n")];
        let error = check(REQUIRED, &third).unwrap_err();
        assert!(error.to_string().contains("CONFIG_C must be n, the fragments say m"), "{error}");
    }

    #[test]
    fn an_exception_that_is_not_needed_is_named() {
        let base = fragment("base.config", "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\n");
        let needless = |required: &str, debug: &str| {
            let error = check(required, &[base.clone(), fragment("debug.config", debug)]).unwrap_err();
            let RequirementError::Needless { fragment, option } = error else { panic!("{error}") };
            (fragment, option)
        };
        // The fragment does not say it, says it as required, or nobody requires anything else.
        assert_eq!(needless(REQUIRED, "CONFIG_D=y\n"), ("debug.config".into(), "C".into()));
        assert_eq!(needless(REQUIRED, "CONFIG_C=n\n"), ("debug.config".into(), "C".into()));
        let stray = format!("{REQUIRED}[[exception]]\nfragment = \"debug.config\"\nbecause = \"t\"\nn = [\"D\"]\n");
        assert_eq!(needless(&stray, "CONFIG_C=y\nCONFIG_D=n\n"), ("debug.config".into(), "D".into()));
        // Of no concern to profiles without the fragment.
        check(&stray, &[base]).unwrap();
    }

    #[test]
    fn a_requirement_with_a_fragment_concerns_its_profiles_only() {
        let required = format!(
            "{REQUIRED}[[option]]\nwith = \"gpu.config\"\nbecause = \"u\"\ny = [\"D\"]\nn = [\"E\"]\nempty = [\"F\"]\n"
        );
        let base = fragment("base.config", "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\n");
        check(&required, std::slice::from_ref(&base)).unwrap();
        let good = fragment("gpu.config", "CONFIG_D=y\nCONFIG_E=n\nCONFIG_F=\"\"\n");
        check(&required, &[base.clone(), good.clone()]).unwrap();
        let refused = |fragments: &[Fragment]| check(&required, fragments).unwrap_err().to_string();
        let bad = fragment("gpu.config", "CONFIG_E=y\nCONFIG_F=\"x\"\n");
        let error = refused(&[base.clone(), bad]);
        for named in
            ["D must be y, the fragments say nothing (u)", "E must be n", "F must be \"\", the fragments say \"x\""]
        {
            assert!(error.contains(named), "{error}");
        }
        // A later fragment may not undo it.
        let error = refused(&[base.clone(), good, fragment("other.config", "CONFIG_F=\"x\"\n")]);
        assert!(error.contains("CONFIG_F must be"), "{error}");
        // What all profiles must say is not said another way by some: that is an exception.
        let twice = format!("{REQUIRED}[[option]]\nwith = \"gpu.config\"\nbecause = \"u\"\ny = [\"C\"]\n");
        assert!(matches!(check(&twice, &[base]), Err(RequirementError::Repeated(option)) if option == "C"));
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
        check(&required, &[base.clone(), emulation.clone(), debug.clone()]).unwrap();
        let gpu = fragment("gpu.config", &read("config/gpu.config"));
        check(&required, &[base.clone(), gpu.clone()]).unwrap();
        check(&required, &[base, gpu, emulation]).unwrap();
        // It can fail.
        assert!(check(&required, &[debug]).is_err());
    }

    #[test]
    fn the_security_choices_of_gpu_config_cannot_be_deleted() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        let required = read("required.toml");
        let base = fragment("base.config", &read("config/base.config"));
        let gpu = read("config/gpu.config");
        for line in [
            "MODULE_SIG=y",
            "MODULE_SIG_KEY=\"\"",
            "SYSTEM_TRUSTED_KEYS=\"\"",
            "MODULE_FORCE_LOAD=n",
            "MODULE_UNLOAD=n",
            "MODPROBE_PATH=\"\"",
            "STRICT_MODULE_RWX=y",
            "FW_LOADER_USER_HELPER=n",
            "SECURITYFS=y",
            "DM_VERITY=y",
            "DM_VERITY_FEC=n",
            "CRYPTO_SHA256=y",
            "EROFS_FS_ZIP=n",
            "EROFS_FS_XATTR=n",
            "ACPI_HOTPLUG_MEMORY=n",
            "CRYPTO_USER=n",
            "CRYPTO_USER_API_HASH=n",
            "CRYPTO_USER_API_SKCIPHER=n",
            "CRYPTO_USER_API_AEAD=n",
            "CRYPTO_AES_NI_INTEL=y",
        ] {
            let line = format!("CONFIG_{line}\n");
            assert!(gpu.contains(&line), "{line}");
            let without = fragment("gpu.config", &gpu.replace(&line, ""));
            let Err(RequirementError::NotMet(found)) = check(&required, &[base.clone(), without]) else {
                panic!("{line}")
            };
            let option = line.split('=').next().unwrap();
            assert!(found.len() == 1 && found[0].starts_with(&format!("{option} must be")), "{found:?}");
        }
    }
}
