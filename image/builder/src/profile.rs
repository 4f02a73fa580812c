// SPDX-License-Identifier: Apache-2.0
//! Profiles: what stands in an image, path by path, and how it is compiled. One TOML file each, in `image/profiles`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::files::{self, FileError};

/// Why a profile was refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of that name.
    #[error("there is no profile {name:?}; known: {}", known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The profiles of this tree.
        known: Vec<String>,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not TOML of the expected shape.
    #[error("profile {path}: {source}")]
    Syntax {
        /// The profile's file.
        path: PathBuf,
        /// The parser's reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A field breaks a rule.
    #[error("profile {path}, field {field}: {rule}")]
    Field {
        /// The profile's file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// One profile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name; equal to the file's.
    pub name: String,
    /// What it is for, in one line.
    pub purpose: String,
    /// The kernel's command line, ASCII, one space between words.
    pub command_line: String,
    /// Kernel configuration fragments, in order.
    pub kernel: Vec<String>,
    /// How the programs are compiled.
    pub compile: Compile,
    /// Directories of the root, parents first.
    pub directories: Vec<String>,
    /// Device nodes of the root.
    #[serde(rename = "device")]
    pub devices: Vec<Device>,
    /// Symbolic links of the root.
    #[serde(default, rename = "link")]
    pub links: Vec<Link>,
    /// Programs of the root.
    #[serde(rename = "program")]
    pub programs: Vec<Program>,
    /// The verified disk with a second root, and the kernel's modules in it: a file of `image/roots`.
    #[serde(default)]
    pub disk: Option<String>,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Absolute path.
    pub path: String,
    /// Where it leads: an absolute path.
    pub target: String,
}

/// Compiler settings of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compile {
    /// rustc's `target-cpu`: the least processor that the image runs on.
    pub target_cpu: String,
    /// Instruction sets of the inference library, each on or off by name (`GGML_<NAME>`).
    pub ggml: BTreeMap<String, bool>,
}

impl Compile {
    /// The same for processors with AVX2 and without AVX-512: no image is compiled so, but what is measured and tried on such
    /// a machine.
    #[must_use]
    pub fn without_avx512(mut self) -> Self {
        "x86-64-v3".clone_into(&mut self.target_cpu);
        for (name, on) in &mut self.ggml {
            *on &= !name.starts_with("AVX512");
        }
        self
    }
}

/// A character device node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path.
    pub path: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions, octal.
    pub mode: String,
}

/// A program of this workspace and its place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The package.
    pub package: String,
    /// Its binary, where that has another name.
    #[serde(default)]
    pub binary: Option<String>,
    /// Absolute path in the image.
    pub path: String,
}

impl Profile {
    /// Reads the profile `name` from `directory`.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn read(directory: &Path, name: &str) -> Result<Self, ProfileError> {
        let known = names(directory)?;
        if !known.iter().any(|k| k == name) {
            return Err(ProfileError::Unknown { name: name.to_owned(), known });
        }
        let path = directory.join(format!("{name}.toml"));
        let text = String::from_utf8_lossy(&files::read_capped(&path, MAX_PROFILE)?).into_owned();
        parse(&path, name, &text)
    }
}

impl Program {
    /// The name of the binary.
    #[must_use]
    pub fn binary(&self) -> &str {
        self.binary.as_deref().unwrap_or(&self.package)
    }
}

impl Device {
    /// The permissions as a number, or `None` when they are not octal permission bits.
    #[must_use]
    pub fn permissions(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|m| *m <= 0o777)
    }
}

/// The profiles in `directory`, sorted.
///
/// # Errors
/// [`ProfileError::File`].
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, ProfileError> {
    let files = files::list_files(directory)?;
    let profiles = files.iter().filter(|f| f.extension().is_some_and(|e| e == "toml"));
    let mut names: Vec<_> = profiles.filter_map(|f| Some(f.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort_unstable();
    Ok(names)
}

fn parse(path: &Path, name: &str, text: &str) -> Result<Profile, ProfileError> {
    let refuse = |field, rule| Err(ProfileError::Field { path: path.to_owned(), field, rule });
    let profile: Profile =
        toml::from_str(text).map_err(|e| ProfileError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
    let line = &profile.command_line;
    if profile.name != name {
        return refuse("name", "must be the file's name");
    }
    let normal = line.split(' ').all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic()));
    if !normal || line.len() > MAX_COMMAND_LINE {
        return refuse("command_line", "must be printable ASCII words with one space between");
    }
    if !line.split(' ').any(|word| word == format!("chrysalis.profile={name}")) {
        return refuse("command_line", "must name the profile: it is measured");
    }
    if line.split(' ').any(|word| word.starts_with(ROOT_WORD)) {
        return refuse("command_line", "must not name the disk's root hash: the build adds it");
    }
    if profile.devices.iter().any(|d| d.permissions().is_none()) {
        return refuse("device.mode", "must be octal permissions");
    }
    if !profile.programs.iter().any(|p| p.path == "/init") {
        return refuse("program", "one must stand at /init");
    }
    Ok(profile)
}

/// Begins the word of the command line that names the disk's root hash.
pub(crate) const ROOT_WORD: &str = "chrysalis.root=";
const MAX_PROFILE: u64 = 64 << 10;
/// `COMMAND_LINE_SIZE` of Linux on x86 is 2048, with the NUL and what firmware adds.
const MAX_COMMAND_LINE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles")
    }

    #[test]
    fn the_repository_profiles_are_good() {
        assert_eq!(names(&directory()).unwrap(), ["cpu", "debug", "gpu", "gpu-sim", "sim"]);
        for name in names(&directory()).unwrap() {
            Profile::read(&directory(), &name).unwrap();
        }
    }

    #[test]
    fn without_avx512_all_else_stays() {
        let compile = Profile::read(&directory(), "cpu").unwrap().compile;
        let without = compile.clone().without_avx512();
        assert_eq!((compile.target_cpu.as_str(), without.target_cpu.as_str()), ("icelake-server", "x86-64-v3"));
        let differ =
            compile.ggml.iter().filter(|(name, on)| without.ggml[*name] != **on).map(|(name, _)| name.as_str());
        assert_eq!(differ.collect::<Vec<_>>(), ["AVX512", "AVX512_VBMI", "AVX512_VNNI"]);
        assert!(without.ggml["AVX2"] && without.ggml.len() == compile.ggml.len());
    }

    #[test]
    fn production_has_no_console_and_nothing_simulated() {
        for (name, fragments) in [("cpu", &["base.config"][..]), ("gpu", &["base.config", "gpu.config"])] {
            let profile = Profile::read(&directory(), name).unwrap();
            assert!(!profile.command_line.contains("console=") && !profile.command_line.contains("simulated"));
            assert!(profile.devices.iter().all(|d| d.path != "/dev/console"));
            assert!(profile.programs.iter().all(|p| !p.package.contains("sim")));
            assert_eq!(profile.kernel, fragments);
        }
    }

    #[test]
    fn simulated_profiles_differ_from_production_in_what_they_must() {
        for (production, simulated) in [("cpu", "sim"), ("gpu", "gpu-sim")] {
            let read = |name| Profile::read(&directory(), name).unwrap();
            let (production, simulated) = (read(production), read(simulated));
            let links = |profile: &Profile| (profile.links.clone(), profile.directories.clone());
            assert_eq!(links(&production), links(&simulated));
            // The engine for GPUs takes hours to compile and would find none where GPUs are simulated.
            let disk = simulated.disk.as_deref().map(|disk| disk.replace("nvidia", "cuda"));
            assert_eq!(production.disk, disk);
            let fragments = [production.kernel.as_slice(), &["emulation.config".to_owned()]].concat();
            assert_eq!(simulated.kernel, fragments);
            let words = production.command_line.replace(&production.name, &simulated.name);
            assert_eq!(simulated.command_line, format!("{words} chrysalis.tee=simulated"));
        }
    }

    #[test]
    fn bad_profiles_are_named() {
        let text = std::fs::read_to_string(directory().join("sim.toml")).unwrap();
        let path = Path::new("sim.toml");
        parse(path, "sim", &text).unwrap();
        for (from, to, expected) in [
            ("name = \"sim\"", "name = \"x\"", "name"),
            ("panic=-1 quiet", "panic=-1  quiet", "command_line"),
            ("chrysalis.profile=sim", "chrysalis.profile=cpu", "command_line"),
            ("panic=-1 quiet", "panic=-1 chrysalis.root=0:0:1 quiet", "command_line"),
            ("mode = \"0666\"", "mode = \"0866\"", "device.mode"),
            ("path = \"/init\"", "path = \"/sbin/init\"", "program"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = parse(path, "sim", &text.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, ProfileError::Field { field, .. } if field == expected), "{to}: {error}");
        }
        let extra = format!("shell = true\n{text}");
        assert!(matches!(parse(path, "sim", &extra), Err(ProfileError::Syntax { .. })));
        assert!(matches!(Profile::read(&directory(), "../x"), Err(ProfileError::Unknown { .. })));
    }
}
