// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The embedded guest: a real-mode program, or on arm64 one at EL1, that serves level interrupts, and the page of memory through which it and
//! its devices meet.
//!
//! The page makes a round trip exit-free: a device raises a request by adding 1 to its
//! [`Registers::raised`](status::Registers::raised), the handler serves the request by copying that value into
//! [`Registers::serviced`](status::Registers::serviced), and at an EOI the device compares the two to see whether its
//! cause is gone. The handler counts its runs, so that comparing the counts finds lost and spurious interrupts.

pub(crate) mod chips;
pub(crate) mod edu_handler;
#[cfg(target_arch = "aarch64")]
mod gic_program;
pub mod image;
pub mod layout;
pub mod program;
pub mod ringing;
pub mod status;
#[cfg(target_arch = "x86_64")]
pub mod unmask_program;
pub mod word;
