// SPDX-License-Identifier: Apache-2.0
//! Makes the committed cases anew, with keys that are made for one run and never stored.

mod history;
mod identity;
mod measurement;
mod world;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::case::{Case, Reason, Verifier};
pub use world::World;

/// A case with its bytes.
pub(crate) struct Made {
    /// Name of the directory.
    name: String,
    case: Case,
    /// Files of the case's own directory.
    files: BTreeMap<String, Vec<u8>>,
}

impl Made {
    /// A case of `verifier` that takes everything from `../common`, until something is replaced.
    pub(crate) fn new(
        verifier: Verifier,
        name: &str,
        title: &str,
        origin: &str,
        expected: &[(&str, &str)],
    ) -> Result<Self> {
        let attack = name.split('-').next().unwrap_or_default().parse().context("the name begins with a number")?;
        let inputs: &[&str] = match verifier {
            Verifier::Appraise => &["root", "collateral", "evidence", "bundle", "trust", "challenge", "exporter"],
            Verifier::Bundle => &["bundle", "trust"],
            Verifier::History => &["bundle", "trust", "known", "proof"],
            Verifier::Witness => &["trust", "known", "checkpoint", "proof"],
        };
        let inputs = inputs.iter().map(|name| ((*name).to_owned(), format!("../common/{}", world::file_name(name))));
        let case = Case {
            attack,
            title: title.to_owned(),
            origin: origin.to_owned(),
            verifier,
            at: world::AT.to_owned(),
            inputs: inputs.collect(),
            expected: expected.iter().map(|(code, field)| Reason::new(code, field)).collect(),
        };
        Ok(Self { name: name.to_owned(), case, files: BTreeMap::new() })
    }

    /// Replaces an input by bytes of the case's own.
    pub(crate) fn with(mut self, input: &str, bytes: Vec<u8>) -> Self {
        let file = world::file_name(input);
        self.case.inputs.insert(input.to_owned(), file.to_owned());
        self.files.insert(file.to_owned(), bytes);
        self
    }

    fn write(&self, root: &Path) -> Result<()> {
        let dir = root.join(&self.name);
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let head = "# SPDX-License-Identifier: Apache-2.0\n";
        std::fs::write(dir.join("case.toml"), format!("{head}{}", toml::to_string_pretty(&self.case)?))?;
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes)?;
        }
        Case::read(&dir)?.check(&dir)
    }
}

/// Writes all cases under `out`, which must not exist. Each is checked as it is written.
///
/// # Errors
/// A case that is not refused as it must be.
pub fn generate(out: &Path) -> Result<usize> {
    ensure!(!out.exists(), "{} exists: move it away first", out.display());
    let mut world = World::new()?;
    let common = out.join("common");
    std::fs::create_dir_all(&common).with_context(|| common.display().to_string())?;
    for (name, bytes) in world.common()? {
        std::fs::write(common.join(name), bytes)?;
    }
    let mut cases = measurement::cases(&world)?;
    cases.extend(identity::cases(&world)?);
    cases.extend(history::cases(&mut world)?);
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(error) = case.write(out) {
            wrong.push(format!("{error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} cases are not decided as they must be:\n{}", wrong.len(), wrong.join("\n"));
    Ok(cases.len())
}
