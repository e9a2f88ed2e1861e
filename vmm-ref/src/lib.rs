// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A reference VMM. A device raises a level interrupt, the guest's handler serves it and writes an EOI, and the device
//! learns of the EOI. This crate puts the workspace's other crates together so that this happens on KVM, and counts and
//! times it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`composition`] | the options, and which of them go together |
//! | [`vm`] | the parts of both machines: the VM, its interrupt controllers, the threads of its processors |
//! | [`passthrough`] | a device whose INTx is forwarded to the guest |
//! | [`roundtrip`] | round trips through a small guest of our own, counted and timed |
//! | [`linux`] | a stock Linux as the guest |
//! | [`pci`] | a PCI host: the bus of the machine that runs Linux |
//! | [`probe`] | the host's capabilities, each found by a trial |
//! | [`report`] | the output, as lines and as JSON |
//!
//! The embedded device ([`roundtrip::device`]) is written against `interrupt-core` alone. It is the same in every
//! composition.

pub mod cli;
pub mod commands;
pub mod composition;
pub mod error;
pub mod explain;
pub mod host;
pub mod latency;
pub mod linux;
pub mod passthrough;
#[cfg(target_arch = "x86_64")]
pub mod pci;
pub mod probe;
pub mod report;
pub mod roundtrip;
pub mod vm;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;

/// The workspace's README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
struct WorkspaceReadme;
