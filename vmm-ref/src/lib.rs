// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A reference VMM: boots a small real-mode guest on KVM and carries the level interrupts of its devices all the way round, from
//! the device's assertion through the guest's handler to the EOI that the device is told of.
//!
//! It is the place where the workspace's crates are put together. [`composition`] says what can be, [`parts`] does it, [`run`]
//! counts what came of it. The device ([`device`]) is written against `interrupt-core` alone and is the same in all of them.

pub mod cli;
pub mod commands;
pub mod composition;
pub mod controllers;
pub mod device;
pub mod doorbell;
pub mod eoi;
pub mod error;
pub mod explain;
pub mod guest;
pub mod host;
pub mod inject;
pub mod latency;
pub mod linux;
pub mod machine;
pub mod observe;
pub mod parts;
pub mod passthrough;
pub mod probe;
pub mod report;
pub mod run;
pub mod soft;
pub mod traffic;
pub mod vcpu;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
