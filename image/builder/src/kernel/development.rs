// SPDX-License-Identifier: Apache-2.0
//! Keeps what compiling modules for a kernel takes: its headers, configuration, symbol versions, makefiles and the tools that
//! its build made; none of its objects and hardly any of its source.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Component, Path};

use crate::files::{self, FileError};

/// Writes that part of the built tree at `tree` as a tar file.
///
/// # Errors
/// [`FileError`].
pub(super) fn pack(tree: &Path, archive: &Path) -> Result<(), FileError> {
    let at = |e| FileError::at(archive, e);
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, File::create(archive).map_err(at)?));
    for path in files::list_files(tree)?.iter().filter(|path| is_wanted(path)) {
        builder.append_path_with_name(tree.join(path), path).map_err(at)?;
    }
    builder.into_inner().and_then(|mut writer| writer.flush()).map_err(at)
}

/// Unpacks such a file into an empty directory.
///
/// # Errors
/// [`FileError`].
pub(crate) fn unpack(archive: &Path, tree: &Path) -> Result<(), FileError> {
    let at = |e| FileError::at(archive, e);
    let file = io::BufReader::with_capacity(1 << 20, File::open(archive).map_err(at)?);
    tar::Archive::new(file).unpack(tree).map_err(at)
}

fn is_wanted(path: &Path) -> bool {
    let Some(Component::Normal(first)) = path.components().next() else { return false };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let made = path.extension().is_some_and(|e| ["o", "a", "ko", "cmd", "bin"].iter().any(|kind| e == *kind));
    let large = ["vmlinux", "vmlinux.relocs", "bzImage"].contains(&&*name);
    let top = path.components().count() == 1;
    !made && !large && (top || TREES.iter().any(|tree| first == *tree) || path == Path::new(OBJTOOL))
}

/// Changes when this file keeps something else.
pub(super) const VERSION: &str = "development/1";
const TREES: [&str; 3] = ["arch", "include", "scripts"];
/// Checks each object of a module.
const OBJTOOL: &str = "tools/objtool/objtool";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_tools_are_kept_and_objects_are_not() {
        let (tree, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = ["Makefile", "Module.symvers", "include/a.h", "scripts/mod/modpost", "tools/objtool/objtool"];
        let left = ["vmlinux", "vmlinux.o", "drivers/x.c", "scripts/mod/modpost.o", "scripts/.a.cmd", "tools/a/b"];
        for path in kept.iter().chain(&left) {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let archive = out.path().join("d.tar");
        pack(tree.path(), &archive).unwrap();
        let unpacked = out.path().join("d");
        unpack(&archive, &unpacked).unwrap();
        let found = files::list_files(&unpacked).unwrap();
        assert_eq!(found, kept.map(Path::new));
    }
}
