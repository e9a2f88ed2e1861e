// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A userspace IOAPIC and 8259 pair that tell of EOIs.
//!
//! * [`Ioapic`]: for a split irqchip, or for a machine without KVM. It sends messages to an
//!   [`MsiOutput`](interrupt_core::MsiOutput).
//! * [`Pic`]: a pair of 8259s. It raises INTR, and the processor acknowledges.
//! * [`router::Router`]: for a machine with both, whose GSIs lead to pins of either.
//! * [`lapic::LocalApics`]: what an IOAPIC needs of local APICs, where KVM has none.
//!
//! To devices they are [`LevelSource`](interrupt_core::LevelSource)s and
//! [`EoiNotifier`](interrupt_core::EoiNotifier)s, and cannot be told from the kernel's. To the guest they are registers, on
//! vm-device's bus traits. No thread is started, nothing reads a clock, and no lock is held while anything of the caller's
//! runs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod bus;
mod counter;
mod error;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod router;
mod sync;

pub use error::{ConfigError, RouteError, StateError};
pub use ioapic::{Ioapic, IoapicBuilder, IoapicSource, IoapicState};
pub use pic::{Pic, PicSource, PicState};

/// The README's examples are compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
