// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Benchmarks, one file for each crate, under `benches/`. Run one with `cargo bench -p benches --bench ioevent`.
