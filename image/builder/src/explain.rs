// SPDX-License-Identifier: Apache-2.0
//! Turns errors into `{code, field, detail, fix}` for users and for `--json`.

use types::Refusal;

use crate::audit::AuditError;
use crate::build_root::RootError;
use crate::cache::CacheError;
use crate::command::ToolError;
use crate::crates::CratesError;
use crate::disk::{ContentsError, DiskError, RecipeError};
use crate::fetch::FetchError;
use crate::files::FileError;
use crate::host_tool::HostToolError;
use crate::image::BuildError;
use crate::inputs::InputsError;
use crate::kernel::KernelError;
use crate::lock_update::UpdateError;
use crate::locks::LockError;
use crate::model::ModelError;
use crate::modules::ModulesError;
use crate::newc::NewcError;
use crate::profile::ProfileError;
use crate::runtime::RuntimeError;
use crate::rust::RustError;
use crate::sbom::SbomError;
use crate::unpack::UnpackError;
use crate::workspace::WorkspaceError;

/// An error that can say what it is about and what would help.
pub trait Explain {
    /// Code, field, detail and fix.
    fn refusal(&self) -> Refusal;

    /// All independent reasons, where there are several.
    fn reasons(&self) -> Vec<Refusal> {
        vec![self.refusal()]
    }

    /// What `--json` prints besides the reasons.
    fn document(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    /// Whether something was judged and refused (exit code 2), rather than having failed on the way (1).
    fn is_refusal(&self) -> bool {
        REFUSED.contains(&self.refusal().code.as_str())
    }
}

impl Explain for FetchError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::NoMirror | Self::BadMirror(_) => {
                ("no_debian_mirror", "mirror", "name one with --debian-mirror or CHRYSALIS_DEBIAN_MIRROR")
            }
            Self::Unreachable { input, .. } => (
                "network_unreachable",
                input.as_str(),
                "check the network and the machine's proxy settings, then run again",
            ),
            Self::NotFound { input, .. } => {
                ("input_not_found", input.as_str(), "name a mirror that still carries this version, or bump the lock")
            }
            Self::TooLong { input, .. } => ("size_exceeded", input.as_str(), BAD_BYTES),
            Self::TooShort { input, .. } => ("input_truncated", input.as_str(), "run again"),
            Self::DigestMismatch { input, .. } => ("digest_mismatch", input.as_str(), BAD_BYTES),
            Self::Tool(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for ToolError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Missing { tool, fix } => Refusal::new("tool_missing", tool, self.to_string(), *fix),
            Self::Run { tool, .. } => Refusal::new("tool_failed", tool, self.to_string(), "see the detail"),
            Self::NoRoom { tool, .. } => Refusal::new("no_build_root", tool, self.to_string(), ALLOW_NAMESPACES),
            Self::Failed { tool, .. } => {
                let full = self.to_string().contains("No space left on device");
                let (code, fix) =
                    if full { ("disk_full", FREE_SPACE) } else { ("tool_failed", "see the tool's last lines") };
                Refusal::new(code, tool, self.to_string(), fix)
            }
        }
    }
}

impl Explain for CacheError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::NoDirectory => Refusal::new("no_cache", "cache", self.to_string(), "set CHRYSALIS_CACHE"),
            Self::File(e) => e.refusal(),
        }
    }
}

impl Explain for FileError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::DiskFull { path } => Refusal::new("disk_full", &path.to_string_lossy(), self.to_string(), FREE_SPACE),
            Self::Io { path, .. } => Refusal::new(
                "file_error",
                &path.to_string_lossy(),
                self.to_string(),
                "check the path and its permissions",
            ),
        }
    }
}

impl Explain for LockError {
    fn refusal(&self) -> Refusal {
        let field = match self {
            Self::File(e) => return e.refusal(),
            Self::Syntax { .. } => "lock",
            Self::Field { field, .. } => field,
        };
        Refusal::new("lock_refused", field, self.to_string(), "correct the lock file")
    }
}

impl Explain for ProfileError {
    fn refusal(&self) -> Refusal {
        let (code, field) = match self {
            Self::File(e) => return e.refusal(),
            Self::Unknown { .. } => ("profile_unknown", "profile"),
            Self::Syntax { .. } => ("profile_refused", "profile"),
            Self::Field { field, .. } => ("profile_refused", *field),
        };
        Refusal::new(code, field, self.to_string(), "name a known profile, or correct its file")
    }
}

impl Explain for UnpackError {
    fn refusal(&self) -> Refusal {
        let (code, field) = match self {
            Self::File(e) => return e.refusal(),
            Self::Format { .. } => ("package_format", "package"),
            Self::NoMember { member, .. } => ("member_missing", member.as_str()),
            Self::MemberMismatch { member, .. } => ("digest_mismatch", member.as_str()),
        };
        Refusal::new(code, field, self.to_string(), "correct the lock file, or report the package")
    }
}

impl Explain for KernelError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::FragmentLine { fragment, .. } => ("kernel_fragment", fragment.clone(), "correct the line"),
            Self::UnknownOptions(names) => {
                ("kernel_option_unknown", names.join(","), "remove or rename the option in the fragment")
            }
            Self::OptionsDiffer(list) => {
                let names: Vec<_> = list.iter().map(|d| d.option.as_str()).collect();
                ("kernel_option_differs", names.join(","), "want what the option depends on, or drop what selects it")
            }
            Self::Requirement(_) => (
                "kernel_option_required",
                "required".to_owned(),
                "state the option in a fragment; state or drop the exception in required.toml, with a reason",
            ),
            Self::Root(e) => return e.refusal(),
            Self::Unpack(e) => return e.refusal(),
            Self::Tool(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, &field, self.to_string(), fix)
    }
}

impl Explain for WorkspaceError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::File(e) => e.refusal(),
            Self::Tool(e) => e.refusal(),
            _ => Refusal::new("workspace", "workspace", self.to_string(), "run inside a complete source tree"),
        }
    }
}

impl Explain for RuntimeError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::SourcesChanged => ("sources_changed", "sources", "run again when nobody edits them"),
            Self::NotStatic { program, .. } => ("not_static", program.as_str(), "link its libraries statically"),
            Self::NotLoadable { program, .. } => ("not_loadable", program.as_str(), "link it as the build root does"),
            Self::Workspace(e) => return e.refusal(),
            Self::Root(e) => return e.refusal(),
            Self::Rust(e) => return e.refusal(),
            Self::Crates(e) => return e.refusal(),
            Self::Tool(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for RootError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Lock(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Unpack(e) => e.refusal(),
            Self::Cache(e) => e.refusal(),
        }
    }
}

impl Explain for RustError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Lock(e) => return e.refusal(),
            Self::Workspace(e) => return e.refusal(),
            Self::File(e) => return e.refusal(),
            Self::NoComponent { component, .. } => {
                ("toolchain_incomplete", component.as_str(), "install the toolchain of rust-toolchain.toml with rustup")
            }
            Self::Manifest { component, .. } => ("toolchain_differs", component.as_str(), REINSTALL_RUST),
            Self::Differs { .. } => ("toolchain_differs", "rust", REINSTALL_RUST),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for CratesError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Lock(_) => ("lock_refused", "Cargo.lock", "correct Cargo.lock"),
            Self::Source { package } => {
                ("lock_refused", package.as_str(), "use a package of the registry, or one of this tree")
            }
            Self::Missing { package } => {
                ("digest_mismatch", package.as_str(), "remove the package from cargo's cache, or use another mirror")
            }
            Self::Unpack(e) => return e.refusal(),
            Self::Tool(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for NewcError {
    fn refusal(&self) -> Refusal {
        Refusal::new("initrd_refused", "initrd", self.to_string(), "correct the profile")
    }
}

impl Explain for ModelError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Lock(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Unpack(e) => e.refusal(),
            Self::Cache(e) => e.refusal(),
        }
    }
}

impl Explain for HostToolError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Unknown { .. } => {
                Refusal::new("host_tool_unknown", "name", self.to_string(), "see the files in image/host-tools")
            }
            Self::Unpack(e) => e.refusal(),
            Self::Lock(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Tool(e) => e.refusal(),
            Self::Workspace(e) => e.refusal(),
            Self::Cache(e) => e.refusal(),
        }
    }
}

impl Explain for BuildError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Workspace(e) => e.refusal(),
            Self::Profile(e) => e.refusal(),
            Self::Lock(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Unpack(e) => e.refusal(),
            Self::Root(e) => e.refusal(),
            Self::Model(e) => e.refusal(),
            Self::Kernel(e) => e.refusal(),
            Self::Runtime(e) => e.refusal(),
            Self::Crates(e) => e.refusal(),
            Self::Sbom(e) => e.refusal(),
            Self::Newc(e) => e.refusal(),
            Self::Disk(e) => e.refusal(),
            Self::Unmeasurable(_) => Refusal::new(
                "image_unmeasurable",
                "image",
                self.to_string(),
                "take firmware that the calculator knows (docs/measurements.md), and correct the command line",
            ),
            Self::Compression(_) => {
                Refusal::new("initrd_refused", "initrd", self.to_string(), "give the machine more memory")
            }
            Self::Cache(e) => e.refusal(),
        }
    }
}

impl Explain for ModulesError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::NoModules => ("profile_refused", "kernel", "name a fragment with CONFIG_MODULES=y"),
            Self::NoSession { module, .. } => {
                ("module_refused", module.as_str(), "give the kernel the algorithms that its fragment for GPUs lists")
            }
            Self::Root(e) => return e.refusal(),
            Self::Unpack(e) => return e.refusal(),
            Self::Tool(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for RecipeError {
    fn refusal(&self) -> Refusal {
        let field = match self {
            Self::File(e) => return e.refusal(),
            Self::Lock(e) => return e.refusal(),
            Self::Syntax { .. } => "root",
            Self::NoPackage { package, .. } | Self::Unused { package, .. } => package,
            Self::Name(name) | Self::Base(name) => name,
        };
        Refusal::new("root_refused", field, self.to_string(), "correct the file in image/roots, or its lock")
    }
}

impl Explain for ContentsError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Path(path) | Self::Duplicate(path) => ("root_refused", path, "correct the file in image/roots"),
            Self::LibraryMissing { library, .. } => {
                ("library_missing", library, "add the library to the lock and to the file in image/roots")
            }
            Self::LoaderMissing { loader, .. } => {
                ("library_missing", loader, "add the loader to the lock and to the file in image/roots")
            }
            Self::NotLoadable { file, .. } => ("not_loadable", file, "take another file, or report the package"),
            Self::Module(name) => ("module_missing", name, "name each module once in the file in image/roots"),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for DiskError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Recipe(e) => e.refusal(),
            Self::Contents(e) => e.refusal(),
            Self::Modules(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Unpack(e) => e.refusal(),
            Self::Root(e) => e.refusal(),
            Self::Tool(e) => e.refusal(),
            Self::Cache(e) => e.refusal(),
            Self::Said { tool, .. } => Refusal::new("tool_failed", tool, self.to_string(), "bump the lock gpu-tools"),
        }
    }
}

impl Explain for SbomError {
    fn refusal(&self) -> Refusal {
        Refusal::new(
            "sbom_failed",
            "dependencies",
            self.to_string(),
            "remove the cache's directory programs, build again",
        )
    }
}

impl Explain for InputsError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Lock(e) => return e.refusal(),
            Self::Crates(e) => return e.refusal(),
            Self::Fetch(e) => return e.refusal(),
            Self::Cache(e) => return e.refusal(),
            Self::Unknown(name) => ("input_unknown", name.as_str(), "see `image inputs`"),
            Self::Format { .. } => ("archive_refused", "archive", OTHER_ARCHIVE),
            Self::DigestMismatch { .. } => ("digest_mismatch", "archive", OTHER_ARCHIVE),
            Self::Incomplete { first, .. } => ("archive_incomplete", first.as_str(), OTHER_ARCHIVE),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for AuditError {
    fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Published { .. } => {
                ("published_refused", "against", "name an image's directory, a statement or a bundle")
            }
            Self::Inconsistent { file, .. } => ("digest_mismatch", file.as_str(), "fetch the published files again"),
            Self::NotBuilt(_) => ("not_built", "built", "build it with `image build`"),
            Self::Cache(e) => return e.refusal(),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl Explain for UpdateError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Lock(e) => e.refusal(),
            Self::Fetch(e) => e.refusal(),
            Self::Unpack(e) => e.refusal(),
            Self::Tool(e) => e.refusal(),
            Self::Rust(e) => e.refusal(),
            Self::File(e) => e.refusal(),
            Self::Apt(_) => {
                Refusal::new("apt_failed", "apt", self.to_string(), "check the suite and the packages it names")
            }
            Self::NoLine { field, .. } => Refusal::new("lock_refused", field, self.to_string(), "write the line"),
        }
    }
}

/// Codes that stand for a judgement about bytes or settings.
const REFUSED: [&str; 23] = [
    "digest_mismatch",
    "size_exceeded",
    "member_missing",
    "package_format",
    "lock_refused",
    "profile_refused",
    "kernel_fragment",
    "kernel_option_unknown",
    "kernel_option_differs",
    "kernel_option_required",
    "not_static",
    "not_loadable",
    "library_missing",
    "module_missing",
    "module_refused",
    "root_refused",
    "toolchain_differs",
    "archive_refused",
    "archive_incomplete",
    "published_refused",
    "image_differs",
    "initrd_refused",
    "image_unmeasurable",
];
const BAD_BYTES: &str = "use another mirror; if several agree, the lock is wrong";
const ALLOW_NAMESPACES: &str = "allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), \
     or run as root; in a container, give it CAP_SYS_ADMIN";
const REINSTALL_RUST: &str =
    "install the toolchain of rust-toolchain.toml with rustup, unchanged; if it is, the lock is wrong";
const OTHER_ARCHIVE: &str = "use the archive of this very source tree, as `image inputs export` writes it";
const FREE_SPACE: &str = "free some space (a first build needs about 4 GB in the cache), then run again";

#[cfg(test)]
mod tests {
    use types::Sha256Digest;

    use super::*;

    #[test]
    fn judgements_are_told_from_failures() {
        let mismatch = FetchError::DigestMismatch {
            input: "ovmf".into(),
            expected: Sha256Digest::ZERO,
            found: Sha256Digest::of(b"x"),
        };
        assert!(BuildError::from(mismatch).is_refusal());
        let unreachable = FetchError::Unreachable { input: "ovmf".into(), detail: "x".into() };
        assert_eq!(unreachable.refusal().code, "network_unreachable");
        assert!(!BuildError::from(unreachable).is_refusal());
        let full = FileError::DiskFull { path: "/x".into() };
        assert_eq!(BuildError::from(full).refusal().code, "disk_full");
    }

    #[test]
    fn a_tool_that_filled_the_disk_says_so() {
        let tail = "cc: error: No space left on device".to_owned();
        let error = ToolError::Failed { tool: "make".into(), status: "exit code 2".into(), tail };
        assert_eq!(error.refusal().code, "disk_full");
    }
}
