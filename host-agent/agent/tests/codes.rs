// SPDX-License-Identifier: Apache-2.0
//! Every code that the host agent can report stands in the provider's pages, with what to do about it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Found by how codes are written: whoever writes a word of that form adds it to a page, or to the list here of what is
/// no code.
#[test]
fn the_pages_show_every_code_and_what_to_do() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |name: &str| std::fs::read_to_string(here.join("../../docs").join(name)).unwrap();
    let pages = page("host-agent.md") + &page("provider.md") + &page("releases.md");
    let rows: Vec<Vec<&str>> = pages.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    let explained = |code: &str| {
        let named = format!("`{code}`");
        let row = rows.iter().find(|row| row.first().is_some_and(|first| first.contains(&named)));
        row.is_some_and(|row| row.len() > 1 && row.last().is_some_and(|fix| fix.len() > 3))
    };
    let words = words(&here.join(".."));
    assert!(words.len() > 100, "the sources were not found: {words:?}");
    let no_codes: BTreeSet<&str> = NO_CODES.into_iter().collect();
    let codes = words.iter().filter(|(word, _)| {
        !no_codes.contains(word.as_str()) && !word.starts_with("chrysalis_") && !word.starts_with("default_")
    });
    let missing: Vec<_> = codes.filter(|(code, _)| !explained(code)).collect();
    assert!(missing.is_empty(), "neither on a page nor known to be no code: {missing:#?}");
    for word in no_codes {
        assert!(words.contains_key(word), "{word} is not written any more");
        assert!(!explained(word), "{word} is a code");
    }
}

/// Strings of two or more words joined by underlines, with the files they stand in; tests left out.
fn words(base: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for member in std::fs::read_dir(base).unwrap().flatten() {
        if member.file_name() == "agent-tests" {
            continue;
        }
        for path in sources(&member.path().join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for word in code.flat_map(|line| line.split('"').skip(1).step_by(2)).filter(|word| is_word(word)) {
                found.entry(word.to_owned()).or_default().insert(path.display().to_string());
            }
        }
    }
    found
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let below =
        entries.map(|entry| entry.path()).flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    below.filter(|path| path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs")).collect()
}

fn is_word(text: &str) -> bool {
    let parts: Vec<&str> = text.split('_').collect();
    let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    parts.len() > 1 && parts.iter().all(plain) && text.starts_with(|first: char| first.is_ascii_lowercase())
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// Files of the kernel, fields of documents, options.
const NO_CODES: [&str; 30] = [
    "agent_pid",
    "aws4_request",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "boot_deadline_s",
    "prompt_rows",
    "boot_vga",
    "drain_deadline_s",
    "driver_override",
    "dry_run",
    "enable_virt_at_load",
    "iommu_group",
    "is_false",
    "kvm_intel",
    "last_event",
    "mmio_caching",
    "model_disk",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "numa_node",
    "qmp_capabilities",
    "quote_socket",
    "run_dir",
    "silence_deadline_s",
    "tcb_good",
    "tdp_mmu",
    "tdx_host_platform",
    "vendor_id",
];
