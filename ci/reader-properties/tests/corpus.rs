// SPDX-License-Identifier: Apache-2.0
//! The committed corpus and its neighbours, through every reader's promises: what continuous integration can do
//! without a fuzzer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::{Path, PathBuf};

use reader_properties::{ALL, Property, seeds};

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Changes that a fuzzer would try first: cut, doubled, a bit or byte changed, bytes put in. The same at every run.
fn neighbours(bytes: &[u8], each: usize, mut visit: impl FnMut(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below.max(1)).unwrap()).unwrap()
    };
    let step = bytes.len().div_ceil(each).max(1);
    (0..bytes.len()).step_by(step).for_each(|len| visit(&bytes[..len]));
    visit(&[bytes, bytes].concat());
    visit(&[bytes, &[0]].concat());
    for _ in 0..each {
        let mut changed = bytes.to_vec();
        let at = random(changed.len());
        match random(3) {
            0 => changed[at] ^= 1 << random(8),
            1 => changed[at] = [0, 0x7f, 0x80, 0xff][random(4)],
            _ => drop(changed.splice(at..at, [0xff; 4])),
        }
        visit(&changed);
    }
}

#[test]
fn the_corpus_and_its_neighbours_keep_every_promise() {
    for (target, property) in ALL {
        let files = corpus(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        // Where signatures are made and verified each try costs some milliseconds.
        let each = match target {
            "bundle" => 60,
            "verification" => 40,
            "explanation" => 6,
            "gpu" | "archive" | "rules" => 60,
            _ => 200,
        };
        for (path, bytes) in files {
            println!("{}", path.display());
            property(&bytes);
            neighbours(&bytes, each, |changed| _ = property(changed));
        }
    }
}

#[test]
fn every_seed_is_accepted_and_stands_in_the_corpus() {
    let property = |target: &str| -> Property { ALL.iter().find(|(name, _)| *name == target).unwrap().1 };
    for seed in seeds::all() {
        assert!(property(seed.target)(&seed.bytes), "{}/{} is not accepted", seed.target, seed.name);
        let committed = corpus(seed.target);
        let found = committed.iter().find(|(path, _)| path.file_name().unwrap() == seed.name);
        let (_, bytes) = found.unwrap_or_else(|| panic!("{}/{} is missing", seed.target, seed.name));
        assert!(*bytes == seed.bytes, "{}/{} is out of date: write the seeds again", seed.target, seed.name);
    }
}

#[test]
fn the_corpus_stays_small() {
    let files: Vec<_> = ALL.iter().flat_map(|(target, _)| corpus(target)).collect();
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(files.len() <= 120 && bytes <= 200 * 1024, "{} files, {bytes} bytes", files.len());
}
