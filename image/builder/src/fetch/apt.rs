// SPDX-License-Identifier: Apache-2.0
//! Reads which Debian archives this machine uses (sources.list(5): one-line and deb822 style).

use std::path::Path;

use super::FetchError;
use crate::files;

/// Base addresses of the configured archives: those whose address ends in `/debian` first, otherwise in file order.
pub(super) fn configured_mirrors(etc_apt: &Path) -> Result<Vec<String>, FetchError> {
    let mut found = Vec::new();
    if let Ok(text) = read(&etc_apt.join("sources.list")) {
        found.extend(one_line_style(&text));
    }
    let parts = etc_apt.join("sources.list.d");
    for name in files::list_files(&parts).unwrap_or_default() {
        let Ok(text) = read(&parts.join(&name)) else { continue };
        match name.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(one_line_style(&text)),
            Some("sources") => found.extend(deb822_style(&text)),
            _ => {}
        }
    }
    found.retain(|address| is_http(address));
    found.sort_by_key(|address| !address.trim_end_matches('/').ends_with("/debian"));
    let mut unique: Vec<String> = Vec::new();
    for address in found {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    if unique.is_empty() { Err(FetchError::NoMirror) } else { Ok(unique) }
}

pub(super) fn is_http(address: &str) -> bool {
    let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
    rest.is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_graphic()))
}

fn read(path: &Path) -> Result<String, FetchError> {
    Ok(String::from_utf8_lossy(&files::read_capped(path, MAX_SOURCES)?).into_owned())
}

/// `deb [options] address suite component...`
fn one_line_style(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let rest = line.trim_start().strip_prefix("deb")?;
        let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        rest.split_whitespace().next().map(str::to_owned)
    };
    text.lines().filter_map(address).collect()
}

/// Stanzas of `Field: value` lines, continued by indented lines; `#` begins a comment line.
fn deb822_style(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).flat_map(stanza_addresses).collect()
}

fn stanza_addresses(lines: &[&str]) -> Vec<String> {
    let field = |name: &str| -> Vec<String> {
        let mut words = Vec::new();
        let mut inside = false;
        for line in lines {
            let value = if line.starts_with([' ', '\t']) {
                line
            } else {
                let (key, value) = line.split_once(':').unwrap_or((line, ""));
                inside = key.eq_ignore_ascii_case(name);
                value
            };
            if inside {
                words.extend(value.split_whitespace().map(str::to_owned));
            }
        }
        words
    };
    let off = |word: &String| ["no", "false", "0", "off", "without", "disable"].contains(&word.to_lowercase().as_str());
    if !field("Types").iter().any(|t| t == "deb") || field("Enabled").iter().any(off) {
        return Vec::new();
    }
    field("URIs")
}

const MAX_SOURCES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_sources() {
        let text = "# deb http://no/debian x main\ndeb-src http://no/debian x\n deb [arch=amd64 signed-by=/k] http://a/debian x main\ndeb\thttps://b/x y z\ndebug http://no\n";
        assert_eq!(one_line_style(text), ["http://a/debian", "https://b/x"]);
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src\n# URIs: http://no\nURIs: http://a/debian\n http://b/debian\nSuites: x\n\nTypes: deb-src\nURIs: http://no\n\nEnabled: no\nTypes: deb\nURIs: http://no\n";
        assert_eq!(deb822_style(text), ["http://a/debian", "http://b/debian"]);
    }

    #[test]
    fn archives_come_first_and_once_and_only_by_http() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(dir.path().join("sources.list"), "deb http://tools/apt x main\ndeb file:/srv/debian x main\n")
            .unwrap();
        let stanza = "Types: deb\nURIs: http://a/debian/\nSuites: x\n\nTypes: deb\nURIs: http://a/debian/\nSuites: y\n";
        std::fs::write(dir.path().join("sources.list.d/debian.sources"), stanza).unwrap();
        assert_eq!(configured_mirrors(dir.path()).unwrap(), ["http://a/debian/", "http://tools/apt"]);
    }

    #[test]
    fn no_sources_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(configured_mirrors(dir.path()), Err(FetchError::NoMirror)));
    }
}
