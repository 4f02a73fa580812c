// SPDX-License-Identifier: Apache-2.0
//! A real model, all-MiniLM-L6-v2, against numbers of an implementation of our own in double precision (numpy).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use embedder::Embedder;
use engine_process::Worker as _;
use engine_protocol::{Input, Work};
use std::path::PathBuf;
use support::embed;

const TEXTS: [&str; 4] = [
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping by the window.",
    "Quarterly revenue grew by 14 percent, said the board.",
    "unaffable embeddings",
];

/// The first values of each vector.
const FIRST: [[f64; 6]; 4] = [
    [0.107_489, -0.011_250, -0.033_663, 0.145_238, -0.040_093, 0.034_265],
    [0.048_062, 0.030_502, -0.049_074, 0.061_133, 0.017_138, 0.034_490],
    [0.062_824, -0.032_028, -0.046_205, -0.048_636, -0.017_476, -0.019_488],
    [-0.019_173, -0.067_168, 0.017_996, 0.027_954, 0.066_950, 0.039_047],
];

/// Cosines between them.
const COSINES: [[f64; 4]; 4] = [
    [1.0, 0.657_174, -0.050_835, 0.028_806],
    [0.657_174, 1.0, 0.082_688, 0.016_433],
    [-0.050_835, 0.082_688, 1.0, -0.041_150],
    [0.028_806, 0.016_433, -0.041_150, 1.0],
];

/// Its directory; without one the test says that it is skipped.
fn directory() -> Option<PathBuf> {
    let named = std::env::var_os("CHRYSALIS_TEST_EMBEDDING_MODEL").map(PathBuf::from);
    let found = named.filter(|path| path.join("model.safetensors").is_file());
    if found.is_none() {
        println!("SKIPPED: vectors of all-MiniLM-L6-v2 (no CHRYSALIS_TEST_EMBEDDING_MODEL)");
    }
    found
}

#[test]
fn vectors_of_a_real_model_are_those_of_another_implementation() {
    let Some(directory) = directory() else { return };
    let mut model = Embedder::load(&directory, 512).unwrap();
    assert_eq!(model.facts().work, Work::Embed { dimensions: 384 });
    let inputs = TEXTS.map(|text| Input::Text(text.into()));
    let (vectors, tokens) = embed(&mut model, &inputs).unwrap();
    assert_eq!(tokens, 11 + 11 + 13 + 9);
    for (vector, first) in vectors.iter().zip(FIRST) {
        for (found, expected) in vector.iter().zip(first) {
            assert!((f64::from(*found) - expected).abs() < 5e-6, "{found} {expected}");
        }
    }
    for (a, row) in vectors.iter().zip(COSINES) {
        for (b, expected) in vectors.iter().zip(row) {
            let cosine: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((cosine - expected).abs() < 1e-5, "{cosine} {expected}");
        }
    }
    // Alone as in company, bit by bit; and a long text beside them.
    let long = Input::Text("a long text about nothing at all ".repeat(60));
    let (mixed, _) = embed(&mut model, &[inputs[2].clone(), long, inputs[0].clone()]).unwrap();
    assert_eq!((&mixed[0], &mixed[2]), (&vectors[2], &vectors[0]));
}
