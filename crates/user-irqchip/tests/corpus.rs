// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fuzz target's corpus, and inputs of chance beside it, as a plain test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../fuzz/interpreter.rs"]
mod interpreter;

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_runs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/registers");
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        interpreter::run(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 20, "{inputs} inputs in {}", directory.display());
}

#[test]
fn inputs_of_chance_run() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for _ in 0..5000 {
        let input: Vec<u8> = (0..64).flat_map(|_| random()).collect();
        interpreter::run(&input);
    }
}
