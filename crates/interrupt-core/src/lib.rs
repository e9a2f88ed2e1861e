// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vocabulary of a VMM's interrupts: what devices, interrupt controllers and forwarders say to each other.
//!
//! A device holds a [`LevelInterrupt`]. The VMM makes it from a [`LevelSource`] and an [`EoiNotifier`], and so chooses
//! the interrupt controller and the way in which EOIs come back; the device does not change.
//!
//! ```
//! use std::sync::Arc;
//! use interrupt_core::{Gsi, Level, LevelInterrupt, Line, LoweredBy, Result, testing::RecordingPin};
//!
//! /// Wants one interrupt for each request that it has received.
//! struct Device {
//!     interrupt: LevelInterrupt,
//!     requests: u32,
//! }
//!
//! impl Device {
//!     const REQUEST: u32 = 1 << 0;
//!
//!     fn receive(&mut self) -> Result<()> {
//!         self.requests += 1;
//!         self.interrupt.raise(Self::REQUEST)
//!     }
//!
//!     /// The guest's driver takes one request.
//!     fn take(&mut self) -> Result<()> {
//!         self.requests -= 1;
//!         if self.requests == 0 {
//!             self.interrupt.clear(Self::REQUEST)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! // A line of a controller in this process. With KVM, source and notifier come from its backend instead.
//! let line = Line::new(Gsi(11), RecordingPin::default());
//! let source = Arc::new(line.source("device", LoweredBy::Eoi));
//! let mut device = Device { interrupt: LevelInterrupt::new(source, &*line)?, requests: 0 };
//!
//! device.receive()?;
//! device.receive()?;
//! device.take()?;
//! assert_eq!(line.eoi()?, Level::High, "one request is left, so the interrupt was asserted again");
//! device.take()?;
//! assert_eq!(line.eoi()?, Level::Low);
//! # Ok(())
//! # }
//! ```
//!
//! # The three parts
//!
//! Most VMMs bundle three things that this crate keeps apart, so that each can be exchanged alone:
//!
//! * a level source ([`LevelSource`]) is one device's contribution to a line;
//! * an EOI notifier ([`EoiNotifier`]) tells its listeners that the guest has ended the interrupt of a line;
//! * a forwarder ([`forward`]) carries a physical device's interrupt to a line, and the line's EOI back to the device.
//!
//! The traits are object-safe, `Send` and `Sync`; a VMM keeps them as `Arc<dyn ..>`. This crate knows no hypervisor,
//! starts no thread and needs no async runtime. Those who write an interrupt controller implement [`Pin`], and use a
//! [`Line`] for each pin: the wired-OR of its sources, and the listeners of its EOIs. The feature `testing` has a test
//! double of each trait, in the module of that name.
//!
//! # What an EOI is
//!
//! In this workspace *EOI* is the moment at which **the guest** ends an interrupt **at its interrupt controller**: the
//! guest's write to the LAPIC's EOI register, to the IOAPIC's EOI register, or of OCW2 to an 8259 (for an 8259 with
//! auto-EOI, the acknowledge cycle). EOI does not mean the injection, the start of the guest's handler, or a write to
//! the device's own acknowledge register.
//!
//! * **The line is low already.** The contributions that an EOI lowers ([`LoweredBy::Eoi`]) are lowered before any
//!   listener is told. A listener that asserts makes a new interrupt.
//! * **The notification means "state your level now".** A listener asserts its source if the cause persists, and does
//!   nothing otherwise. Listeners are also told of EOIs that another source of the line, or another pin with the same
//!   vector, has caused, and of EOIs of a masked or idle pin. KVM since Linux 6.3 also notifies at an unmask.
//! * **An extra notification is harmless** by that rule. Do not count interrupts by notifications.
//! * **A missing notification is an error**, and this workspace has no race that loses one. A source that asserts
//!   before the EOI is lowered by the EOI, and told; a source that asserts after it was told makes a new interrupt.
//! * **A level that is asserted while the interrupt is masked or in service** waits in the line. While a physical
//!   device's interrupt is masked, the device keeps its level, and signals at the unmask if the level still holds then.
//!   An edge has no level to keep: an edge at a masked pin is lost, as on hardware.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod eoi;
mod error;
mod every_step;
pub mod forward;
mod gsi;
mod irqchip;
mod irqfds;
mod key;
mod level;
mod level_interrupt;
mod line;
mod msi;
mod pin;
mod source;
mod sync;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod wired_or;

pub use eoi::{EoiGuard, EoiNotifier, Listener, Listeners};
pub use error::{Error, Result};
pub use every_step::EveryStep;
pub use gsi::Gsi;
pub use irqchip::Irqchip;
pub use irqfds::Irqfds;
pub use key::{EoiScope, SourceKey};
pub use level::{Delivery, Level, LoweredBy};
pub use level_interrupt::{InterruptCounts, LevelInterrupt};
pub use line::{Line, LineInput, LineSource};
pub use msi::{Msi, MsiOutput, PinMask};
pub use pin::Pin;
pub use source::LevelSource;
pub use wired_or::{LineCounts, WiredOr};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;

/// The model checks are among the library's own tests, so that the model checker is no dependency of the library.
#[cfg(all(loom, test))]
#[path = "../tests/loom/mod.rs"]
mod model_checks;
