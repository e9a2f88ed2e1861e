// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The register interfaces of both chips: `cargo +nightly fuzz run registers`, in `crates/user-irqchip`.
#![no_main]

#[path = "../interpreter.rs"]
mod interpreter;

libfuzzer_sys::fuzz_target!(|data: &[u8]| interpreter::run(data));
