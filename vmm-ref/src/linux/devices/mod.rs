// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine that runs Linux, except the virtio devices, and the address of each device.

pub mod console;
pub mod guest_counts;
pub mod power;
pub mod terminal;
pub mod wiring;
