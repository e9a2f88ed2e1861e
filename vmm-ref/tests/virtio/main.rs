// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio devices as a driver meets them: its accesses to the registers and its rings in memory, without a guest
//! and without KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod any_driver;
mod bad_driver;
mod disk;
mod driver;
mod good_driver;
