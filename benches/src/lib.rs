// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Round trips of interrupts, measured so that a sceptic can check the figures. Each [composition](ways) of this
//! workspace is measured in turns with its [floor], the same round trip in bare ioctls and eventfds in the same
//! process. A negative control runs before each group. [System calls, context switches and allocations](counters) are
//! counted with each.
//!
//! The program of this package writes the results as a [page]. The files of `benches/` are benchmarks for criterion.

pub mod compare;
pub mod counters;
pub mod digits;
pub mod floor;
pub mod measure;
pub mod micro;
pub mod nic;
pub mod operations;
pub mod page;
pub mod results;
pub mod scaling;
pub mod targets;
pub mod waiting;
pub mod ways;

/// A figure, or why there is none.
pub type Result<T> = anyhow::Result<T>;
