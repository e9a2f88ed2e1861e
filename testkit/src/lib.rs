// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Support for the workspace's tests that need a real KVM.
//!
//! * [`harness`], [`need`]: a suite of named trials. A trial is skipped, with a counted reason, if the host does not
//!   meet its needs
//! * `machine`, `program`: a VM with one real-mode vCPU and the interrupt controllers a test asks for,
//!   on x86_64
//! * `gic`, `gic_machine`, `gic_its`: a VM with a vGIC, one vCPU that makes one access at a time, and its driver of an
//!   ITS, on aarch64
//! * [`responder`]: a guest that ends each interrupt
//! * [`ioctl`]: bare ioctls with arbitrary arguments
//! * [`counter`]: eventfd counters, read without a sleep
//! * [`lab`]: the number of repetitions in the emulated PC
//! * [`alloc`], [`process`]: heap allocations, open fds and system calls, counted
//! * [`seccomp`]: a thread that may make few system calls, as a VMM's vCPU
//!
//! These parts are for tests: they panic when the machine does not behave as a test needs.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in test support a panic is the failure of the test that called it"
)]

pub mod alloc;
pub mod conformance;
pub mod counter;
#[cfg(target_arch = "aarch64")]
pub mod gic;
#[cfg(target_arch = "aarch64")]
pub mod gic_its;
#[cfg(target_arch = "aarch64")]
pub mod gic_machine;
pub mod harness;
pub mod ioctl;
#[cfg(target_arch = "x86_64")]
pub mod kernel_rig;
pub mod lab;
#[cfg(target_arch = "x86_64")]
pub mod machine;
pub mod need;
pub mod patience;
pub mod process;
#[cfg(target_arch = "x86_64")]
pub mod program;
pub mod progress;
#[cfg_attr(target_arch = "aarch64", path = "gic_responder.rs")]
pub mod responder;
pub mod rig;
pub mod seccomp;
