// SPDX-License-Identifier: Apache-2.0
//! Kernel modules: loaded once, in an order that the image gives, from one directory of the verified root.
#![allow(unsafe_code, reason = "one system call without a safe wrapper for parameters")]

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    path::Path,
};

use crate::SysError;

/// Loads the modules that the file `order` in `directory` names, one file name a line, in that order. `parameters` gives what a
/// module is told.
///
/// # Errors
/// [`ModulesError`] at the first that does not load; those before it stay loaded.
pub fn load(directory: &Path, parameters: impl Fn(&str) -> String) -> Result<(), ModulesError> {
    for name in order(directory)? {
        insert(&directory.join(&name), &parameters(&name)).map_err(|source| ModulesError::Load { name, source })?;
    }
    Ok(())
}

/// Why not all modules were loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The list is not there, or cannot be read.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The list is empty, too long, or has a line that is no file name of a module.
    #[error("line {line} of the order of modules: 1 to 16 names of a-z, 0-9, - and _ that end with .ko, each once")]
    Order {
        /// Which line, from 1; 0 for the whole list.
        line: usize,
    },
    /// A module was not loaded.
    #[error("module {name} is not loaded: {source}")]
    Load {
        /// Its file name.
        name: String,
        /// What the kernel said.
        source: SysError,
    },
}

fn order(directory: &Path) -> Result<Vec<String>, ModulesError> {
    let mut text = String::new();
    File::open(directory.join("order"))
        .and_then(|file| file.take(MAX_ORDER).read_to_string(&mut text))
        .map_err(SysError::when("read the order of modules"))?;
    let mut names: Vec<String> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if !is_module(line) || names.iter().any(|name| name == line) || names.len() == MAX_MODULES {
            return Err(ModulesError::Order { line: index.saturating_add(1) });
        }
        names.push(line.to_owned());
    }
    if names.is_empty() || !text.ends_with('\n') {
        return Err(ModulesError::Order { line: 0 });
    }
    Ok(names)
}

/// Nothing in such a name leaves the directory.
fn is_module(name: &str) -> bool {
    let plain = |stem: &str| {
        !stem.is_empty()
            && stem.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 64 && name.strip_suffix(".ko").is_some_and(plain)
}

/// Loads one module. What the kernel refuses is the error: unresolved symbols are `ENOENT`, another kernel's module is `ENOEXEC`.
///
/// # Errors
/// [`SysError`].
pub fn insert(path: &Path, parameters: &str) -> Result<(), SysError> {
    let what = "load a module";
    if !fs::symlink_metadata(path).map_err(SysError::when(what))?.is_file() {
        return Err(SysError { what, source: io::Error::other("it is no regular file") });
    }
    let module = File::open(path).map_err(SysError::when(what))?;
    let parameters = CString::new(parameters).map_err(SysError::when(what))?;
    // SAFETY: the descriptor is open, the parameters end with a zero and outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), parameters.as_ptr(), 0) };
    if done < 0 { Err(SysError { what, source: io::Error::last_os_error() }) } else { Ok(()) }
}

const MAX_ORDER: u64 = 4096;
const MAX_MODULES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(text: &str) -> Result<Vec<String>, ModulesError> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), text).unwrap();
        order(directory.path())
    }

    #[test]
    fn the_order_is_the_files() {
        assert_eq!(ordered("nvidia.ko\nnvidia-uvm.ko\n").unwrap(), ["nvidia.ko", "nvidia-uvm.ko"]);
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        for bad in ["../a.ko", "a/b.ko", "/a.ko", ".ko", "a", "a.ko ", "A.ko", "a\0.ko", "", "..ko"] {
            let refused = ordered(&format!("good.ko\n{bad}\n"));
            assert!(matches!(refused, Err(ModulesError::Order { line: 2 })), "{bad:?}: {refused:?}");
        }
        assert!(matches!(ordered("a.ko\na.ko\n"), Err(ModulesError::Order { line: 2 })));
        assert!(matches!(ordered("a.ko"), Err(ModulesError::Order { line: 0 })));
        assert!(matches!(ordered(""), Err(ModulesError::Order { line: 0 })));
        let many: String = (0..17).map(|n| format!("m{n}.ko\n")).collect();
        assert!(matches!(ordered(&many), Err(ModulesError::Order { line: 17 })));
        assert!(matches!(order(Path::new("/nonexistent")), Err(ModulesError::Sys(_))));
    }

    #[test]
    fn what_is_no_module_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), "absent.ko\n").unwrap();
        let refused = load(directory.path(), |_| String::new()).unwrap_err();
        assert!(matches!(&refused, ModulesError::Load { name, .. } if name == "absent.ko"), "{refused}");
        std::os::unix::fs::symlink("/dev/null", directory.path().join("absent.ko")).unwrap();
        assert!(load(directory.path(), |_| String::new()).is_err());
    }
}
