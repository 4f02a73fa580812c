// SPDX-License-Identifier: Apache-2.0
//! Makes the committed cases that have bytes, with keys that are made for one run and never stored. Certificates, lists and
//! collateral hold from 2026 to 2099: a running service judges by its machine's clock.

mod forms;
mod gpu;
mod models;
mod quotes;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::case::{Case, Reason, Run};

pub use gpu::gpus;
pub use models::models;
pub use quotes::quotes;

/// A case with its bytes.
pub(crate) struct Made {
    name: String,
    case: Case,
    files: BTreeMap<String, Vec<u8>>,
}

impl Made {
    pub(crate) fn new(run: Run, name: &str, title: &str, origin: &str, expected: &[(&str, &str)]) -> Result<Self> {
        let attack = name.split('-').next().unwrap_or_default().parse().context("the name begins with a number")?;
        let case = Case {
            attack,
            title: title.to_owned(),
            origin: origin.to_owned(),
            run,
            at: Some(AT.to_owned()),
            expected: reasons(expected),
            wire: None,
            inputs: BTreeMap::new(),
            digests: BTreeMap::new(),
            arguments: Vec::new(),
            steps: Vec::new(),
            gpu: None,
            scenario: None,
        };
        Ok(Self { name: name.to_owned(), case, files: BTreeMap::new() })
    }

    /// Other reasons over the wire.
    pub(crate) fn wire(mut self, expected: &[(&str, &str)]) -> Self {
        self.case.wire = Some(reasons(expected));
        self
    }

    /// An input that other cases have, too.
    pub(crate) fn common(mut self, input: &str, file: &str) -> Self {
        self.case.inputs.entry(input.to_owned()).or_default().push(format!("../common/{file}"));
        self
    }

    /// An input of its own.
    pub(crate) fn own(mut self, input: &str, file: &str, bytes: Vec<u8>) -> Self {
        self.case.inputs.entry(input.to_owned()).or_default().push(file.to_owned());
        self.files.insert(file.to_owned(), bytes);
        self
    }

    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        let dir = root.join(&self.name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let head = "# SPDX-License-Identifier: Apache-2.0\n";
        std::fs::write(dir.join("case.toml"), format!("{head}{}", toml::to_string_pretty(&self.case)?))?;
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes)?;
        }
        Case::read(&dir).map(drop)
    }
}

pub(crate) fn reasons(list: &[(&str, &str)]) -> Vec<Reason> {
    list.iter().map(|(code, field)| Reason::new(code, field)).collect()
}

/// Begin of everything that is made, and the time of verification from files: 2026-01-01 and half a year later.
pub(crate) const FROM: u64 = 1_767_225_600;
pub(crate) const AT: &str = "2026-06-01T00:00:00Z";
/// 2099-01-01.
pub(crate) const UNTIL: u64 = 4_070_908_800;
