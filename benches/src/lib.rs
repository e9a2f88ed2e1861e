// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Round trips of interrupts, measured so that a sceptic can believe the figures: beside each [composition](ways) of
//! this workspace its [floor], the same written out in bare ioctls and eventfds, in the same process and in turns;
//! before each its negative control; and with each what else it costs: [system calls, context switches and
//! allocations](counters).
//!
//! The program of this package makes a [page] of it. The files of `benches/` are criterion's.

pub mod compare;
pub mod counters;
pub mod floor;
pub mod measure;
pub mod micro;
pub mod operations;
pub mod page;
pub mod results;
pub mod scaling;
pub mod targets;
pub mod waiting;
pub mod ways;

/// A figure, or why there is none.
pub type Result<T> = anyhow::Result<T>;
