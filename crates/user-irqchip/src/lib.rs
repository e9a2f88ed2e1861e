// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A userspace IOAPIC and 8259 pair that tell of EOIs.
//!
//! * [`Ioapic`]: for a split irqchip, or for a machine without KVM. It sends messages to an
//!   [`MsiOutput`](interrupt_core::MsiOutput).
//! * `IrqfdPins` (feature `irqfd`): such an output over the irqfds and routes that a VMM has already.
//! * [`Pic`]: a pair of 8259s. It raises INTR, and the processor acknowledges.
//! * [`Router`]: for a machine with both, whose GSIs lead to pins of either.
//!
//! Devices see [`LevelSource`](interrupt_core::LevelSource)s and [`EoiNotifier`](interrupt_core::EoiNotifier)s, the
//! same as with the kernel's controllers. The guest sees registers, on vm-device's bus traits. The crate starts no
//! thread, reads no clock, and holds no lock while the caller's code runs, except in
//! [`MsiOutput::set_pin`](interrupt_core::MsiOutput::set_pin).
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

#[cfg(feature = "vmm-sys-util")]
mod borrowed_event_fd;
mod bus;
mod counter;
mod error;
#[cfg(feature = "serde")]
mod format;
pub mod ioapic;
#[cfg(feature = "irqfd")]
mod irqfd_pins;
pub mod pic;
mod pulse;
mod router;
mod sync;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

#[cfg(feature = "vmm-sys-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "vmm-sys-util")))]
pub use borrowed_event_fd::BorrowedEventFd;
pub use error::{ConfigError, Route, RouteError, StateError};
pub use ioapic::{Ioapic, IoapicBuilder, IoapicState, SavedPin, Version};
#[cfg(feature = "irqfd")]
#[cfg_attr(docsrs, doc(cfg(feature = "irqfd")))]
pub use irqfd_pins::IrqfdPins;
pub use pic::{Pic, PicState};
pub use router::Router;

/// The doctests compile and run the README's examples too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
