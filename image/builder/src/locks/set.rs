// SPDX-License-Identifier: Apache-2.0
//! Locked sets of Debian packages that are unpacked into one tree.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

use super::{Kind, Lock, LockError, MAX_INPUT, MAX_LOCK, NamedLock, is_plain_path, is_word, of_kind};
use crate::files;

/// A lock file of kind `debian-set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageSet {
    /// `debian-set`.
    pub kind: String,
    /// The suite that updates are taken from.
    pub suite: String,
    /// The archive's components that updates are taken from.
    #[serde(default = "main_only")]
    pub components: Vec<String>,
    /// Another set that this one is unpacked over: packages that stand there are left out here.
    #[serde(default)]
    pub over: Option<String>,
    /// Whether dependencies are left out: single files are taken out of the packages, and each is named elsewhere.
    #[serde(default)]
    pub alone: bool,
    /// Why the project needs it.
    pub reason: String,
    /// The packages asked for; their dependencies follow unless the set is `alone`.
    pub want: Vec<String>,
    /// Dependencies left out, because nothing of them is used.
    pub omit: Vec<String>,
    /// Packages of which parts enter an image: linked into its programs, or whole files.
    #[serde(default)]
    pub linked: Vec<Linked>,
    /// Packages that are not unpacked whole.
    #[serde(default)]
    pub only: Vec<Only>,
    /// Symbolic links that stand in the tree beside what the packages bring.
    #[serde(default, rename = "link")]
    pub links: Vec<TreeLink>,
    /// Files with a fixed text, likewise.
    #[serde(default, rename = "text")]
    pub texts: Vec<TreeText>,
    /// The whole set, sorted by name.
    pub packages: Vec<LockedPackage>,
}

/// A package of which parts enter an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linked {
    /// Package name.
    pub package: String,
    /// SPDX licence expression of those parts.
    pub licence: String,
    /// Which parts.
    pub parts: String,
}

/// What is unpacked of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Only {
    /// Package name.
    pub package: String,
    /// Files, and directories with all below them. Each must be in the package.
    pub paths: Vec<String>,
}

/// A symbolic link of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeLink {
    /// Its place, relative to the tree's root.
    pub path: String,
    /// Where it leads.
    pub target: String,
}

/// A file of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeText {
    /// Its place, relative to the tree's root.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// A package of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Package name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Pool path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
}

/// A set together with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet {
    /// The lock file's name without `.toml`.
    pub name: String,
    /// What it says.
    pub set: PackageSet,
    /// SHA-256 of the lock file.
    pub lock_sha256: Sha256Digest,
}

impl NamedSet {
    /// Reads one lock file.
    ///
    /// # Errors
    /// [`LockError`] naming the field and the rule.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let bytes = files::read_capped(path, MAX_LOCK)?;
        let set = parse(path, &bytes)?;
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, set, lock_sha256: Sha256Digest::of(&bytes) })
    }

    /// A digest over the packages, and over what is unpacked of them and beside them where a set says so: comments and
    /// reasons change nothing that is built.
    #[must_use]
    pub fn content(&self) -> Sha256Digest {
        let line = |p: &LockedPackage| format!("{} {} {}\n", p.package, p.version, p.sha256);
        let mut text: String = self.set.packages.iter().map(line).collect();
        let only = |only: &Only| format!("only {} {:?}\n", only.package, only.paths);
        text.extend(self.set.only.iter().map(only));
        text.extend(self.set.links.iter().map(|link| format!("link {:?} {:?}\n", link.path, link.target)));
        text.extend(self.set.texts.iter().map(|file| format!("text {:?} {:?}\n", file.path, file.text)));
        Sha256Digest::of(text.as_bytes())
    }

    /// What is unpacked of a package; `None` stands for all.
    #[must_use]
    pub fn only(&self, package: &str) -> Option<&[String]> {
        self.set.only.iter().find(|only| only.package == package).map(|only| only.paths.as_slice())
    }

    /// The locked version of one of its packages.
    #[must_use]
    pub fn version(&self, package: &str) -> Option<&str> {
        self.set.packages.iter().find(|p| p.package == package).map(|p| p.version.as_str())
    }

    /// Each package as a lock of its own.
    #[must_use]
    pub fn locks(&self) -> Vec<NamedLock> {
        let lock = |p: &LockedPackage| NamedLock {
            name: format!("{}/{}", self.name, p.package),
            lock: Lock {
                kind: Kind::Debian,
                package: p.package.clone(),
                version: p.version.clone(),
                path: p.path.clone(),
                size: p.size,
                sha256: p.sha256,
                licence: self.licence(&p.package),
                reason: self.set.reason.clone(),
                suite: None,
                members: Vec::new(),
            },
            lock_sha256: self.lock_sha256,
        };
        self.set.packages.iter().map(lock).collect()
    }

    /// One of its packages as a lock of its own.
    #[must_use]
    pub fn lock(&self, package: &str) -> Option<NamedLock> {
        self.locks().into_iter().find(|lock| lock.lock.package == package)
    }

    fn licence(&self, package: &str) -> String {
        let linked = self.set.linked.iter().find(|l| l.package == package);
        linked.map_or_else(|| "NOASSERTION".to_owned(), |l| l.licence.clone())
    }
}

fn main_only() -> Vec<String> {
    vec!["main".to_owned()]
}

/// All sets of a directory, by name.
///
/// # Errors
/// [`LockError`] for the first one refused.
pub fn read_sets(directory: &Path) -> Result<Vec<NamedSet>, LockError> {
    of_kind(directory, |kind| kind == KIND)?.iter().map(|path| NamedSet::read(path)).collect()
}

fn parse(path: &Path, bytes: &[u8]) -> Result<PackageSet, LockError> {
    let refuse = |field, rule| Err(LockError::Field { path: path.to_owned(), field, rule });
    let Ok(text) = std::str::from_utf8(bytes) else { return refuse("file", "must be UTF-8") };
    let set: PackageSet =
        toml::from_str(text).map_err(|e| LockError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
    if set.kind != KIND {
        return refuse("kind", "must be debian-set");
    }
    let words = set.want.iter().chain(&set.omit).chain(&set.components).chain(&set.over);
    if !is_word(&set.suite) || set.components.is_empty() || !words.into_iter().all(|name| is_word(name)) {
        return refuse("suite, components, over, want, omit", "must be letters, digits and .+-_");
    }
    let names: Vec<&str> = set.packages.iter().map(|p| p.package.as_str()).collect();
    if !names.is_sorted() || names.iter().collect::<BTreeSet<_>>().len() != names.len() {
        return refuse("packages", "must be sorted by name, each once");
    }
    if names.iter().any(|name| set.omit.iter().any(|omitted| omitted == name)) {
        return refuse("omit", "must not stand in packages");
    }
    if set.linked.iter().any(|l| !names.contains(&l.package.as_str()) || l.licence.trim().is_empty()) {
        return refuse("linked", "must stand in packages and state its licence");
    }
    let mut parted: Vec<&str> = set.only.iter().map(|only| only.package.as_str()).collect();
    parted.sort_unstable();
    if parted.windows(2).any(|pair| pair.first() == pair.last()) || parted.iter().any(|name| !names.contains(name)) {
        return refuse("only", "must stand in packages, each once");
    }
    if set.only.iter().any(|only| only.paths.is_empty() || !only.paths.iter().all(|path| is_plain_path(path))) {
        return refuse("only", "must name paths of plain components");
    }
    let places = set.links.iter().map(|link| &link.path).chain(set.texts.iter().map(|file| &file.path));
    if !places.into_iter().all(|path| is_plain_path(path)) {
        return refuse("link, text", "must be paths of plain components");
    }
    for package in &set.packages {
        if !is_word(&package.package) || !is_word(&package.version) {
            return refuse("packages", "name and version must be letters, digits and .+-_~:");
        }
        if !package.path.starts_with("pool/") || !is_plain_path(&package.path) {
            return refuse("packages.path", "must be a pool path of plain components, without a host");
        }
        if package.size == 0 || package.size > MAX_INPUT {
            return refuse("packages.size", "must be between 1 byte and 4 GiB");
        }
    }
    Ok(set)
}

const KIND: &str = "debian-set";

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
kind = "debian-set"
suite = "trixie"
reason = "r"
want = ["b"]
omit = ["c"]
packages = [
    { package = "a", version = "1", path = "pool/a_1.deb", size = 5, sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf" },
    { package = "b", version = "1:2", path = "pool/b_2.deb", size = 5, sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf" },
]

[[linked]]
package = "a"
licence = "MIT"
parts = "a.o"
"#;

    fn read(text: &str) -> Result<PackageSet, LockError> {
        parse(Path::new("x.toml"), text.as_bytes())
    }

    #[test]
    fn bad_sets_are_named() {
        read(GOOD).unwrap();
        for (from, to, expected) in [
            ("kind = \"debian-set\"", "kind = \"debian\"", "kind"),
            ("\"trixie\"", "\"../trixie\"", "suite, components, over, want, omit"),
            ("reason = \"r\"", "reason = \"r\"\ncomponents = []", "suite, components, over, want, omit"),
            ("reason = \"r\"", "reason = \"r\"\nover = \"../x\"", "suite, components, over, want, omit"),
            ("package = \"b\"", "package = \"a\"", "packages"),
            ("package = \"a\", version", "package = \"z\", version", "packages"),
            ("omit = [\"c\"]", "omit = [\"b\"]", "omit"),
            ("version = \"1:2\"", "version = \"1 2\"", "packages"),
            ("pool/b_2.deb", "http://mirror/pool/b_2.deb", "packages.path"),
            ("pool/b_2.deb", "pool/../b_2.deb", "packages.path"),
            ("path = \"pool/b_2.deb\", size = 5", "path = \"pool/b_2.deb\", size = 0", "packages.size"),
            ("[[linked]]\npackage = \"a\"", "[[linked]]\npackage = \"d\"", "linked"),
            ("[[linked]]", "[[only]]\npackage = \"d\"\npaths = [\"usr\"]\n[[linked]]", "only"),
            ("[[linked]]", "[[only]]\npackage = \"a\"\npaths = []\n[[linked]]", "only"),
            ("[[linked]]", "[[only]]\npackage = \"a\"\npaths = [\"usr/../etc\"]\n[[linked]]", "only"),
            ("[[linked]]", "[[link]]\npath = \"/usr/a\"\ntarget = \"b\"\n[[linked]]", "link, text"),
            ("[[linked]]", "[[text]]\npath = \"../a\"\ntext = \"b\"\n[[linked]]", "link, text"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, LockError::Field { field, .. } if field == expected), "{to}: {error}");
        }
        assert!(matches!(read(&format!("url = \"x\"\n{GOOD}")), Err(LockError::Syntax { .. })));
    }

    #[test]
    fn comments_do_not_change_what_is_built() {
        let named = |text: &str| NamedSet {
            name: "s".into(),
            set: read(text).unwrap(),
            lock_sha256: Sha256Digest::of(text.as_bytes()),
        };
        assert_eq!(named(GOOD).content(), named(&GOOD.replace("reason = \"r\"", "reason = \"s\"")).content());
        assert_ne!(named(GOOD).content(), named(&GOOD.replace("1:2", "1:3")).content());
        let mut seen = vec![named(GOOD).content()];
        for more in [
            "[[only]]\npackage = \"a\"\npaths = [\"usr/a\"]",
            "[[only]]\npackage = \"a\"\npaths = [\"usr/b\"]",
            "[[link]]\npath = \"usr/l\"\ntarget = \"a\"",
            "[[link]]\npath = \"usr/l\"\ntarget = \"b\"",
            "[[text]]\npath = \"usr/l\"\ntext = \"a\"",
        ] {
            let content = named(&format!("{GOOD}\n{more}\n")).content();
            assert!(!seen.contains(&content), "{more}");
            seen.push(content);
        }
        let locks = named(GOOD).locks();
        assert_eq!((locks[0].name.as_str(), locks[0].lock.licence.as_str()), ("s/a", "MIT"));
    }
}
