// SPDX-License-Identifier: Apache-2.0
//! Writes the first inputs of every fuzz target below a directory: `cargo run -p reader-properties --bin seeds ci/fuzz/corpus`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let Some(root) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds DIRECTORY");
        std::process::exit(64);
    };
    for seed in reader_properties::seeds::all() {
        let directory = root.join(seed.target);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(seed.name), &seed.bytes)?;
    }
    Ok(())
}
