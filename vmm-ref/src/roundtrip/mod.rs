// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Round trips of level interrupts through a small guest of our own, counted and timed.
//!
//! [`run`](run::run) puts the parts of a composition together ([`parts`]), makes the traffic ([`traffic`]) and counts
//! the results ([`summary`]).

pub mod device;
pub mod doorbell;
#[cfg(target_arch = "aarch64")]
mod el1;
pub mod eoi_wait;
pub mod guest;
pub mod machine;
pub mod negative_control;
pub mod parts;
#[cfg(target_arch = "x86_64")]
mod real_mode;
pub mod run;
pub mod soft;
pub mod summary;
pub mod swapper;
pub mod traffic;
