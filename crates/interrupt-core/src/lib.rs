// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vocabulary of a VMM's interrupts: what a device, an interrupt controller and a forwarder say to each other.
//!
//! Three things that are usually bundled are kept apart here, so that each can be exchanged without the others noticing:
//!
//! * a [`LevelSource`] holds, or does not hold, a line;
//! * an [`EoiNotifier`] tells whoever asked that a line was sampled;
//! * a forwarder carries a device's interrupt to a line and the line's EOI back to the device. The device shows it a
//!   [`forward::DeviceInterrupt`].
//!
//! A [`forward::Registry`] finds the best forwarder by itself: devices' interrupts and guests' lines register in any order, and are
//! connected by the best path that both can do.
//!
//! The traits are object-safe, `Send` and `Sync`; a VMM keeps them as `Arc<dyn ..>`. Nothing here knows a hypervisor, starts a
//! thread or needs an async runtime. [`Line`] joins several sources on one pin, and [`testing`] has a test double of each
//! trait.
//!
//! # What an EOI is
//!
//! Everywhere in this workspace, *EOI* is the moment at which **the guest** ends an interrupt **at its interrupt
//! controller**: its write to the LAPIC's EOI register, to the IOAPIC's, or of OCW2 to an 8259 (for an 8259 with auto-EOI, the
//! acknowledge cycle). It is not the injection, not the start of the handler, and not the device's own acknowledge register.
//!
//! * **The line is low already.** When a listener is told, what the EOI lowers has been lowered
//!   ([`LoweredBy::Eoi`]), so that a listener which asserts produces a new interrupt, and none is swallowed.
//! * **Being told means "state your level now"**, and never "your interrupt was serviced". A listener answers by
//!   asserting its source if its cause persists, and by nothing otherwise. It is told of EOIs that were for another sharer of
//!   its line, for another pin with the same vector, for a pin that is masked or idle, and, with KVM since Linux 6.4, at an
//!   unmask.
//! * **An extra one is harmless** by that rule. A listener that counts interrupts must count elsewhere.
//! * **One that is missed is not harmless**: a listener must not lose its answer to a race of its own. A source that asserts
//!   *before* the EOI is lowered with the others, and told; one that asserts *after* being told makes a new interrupt. There
//!   is no moment between the two.
//! * **A signal that arrives while the interrupt is disabled** is a matter of level. While a pin is masked or in
//!   service, an assertion waits in the line. While a device's interrupt is masked, the device keeps its level and signals at
//!   the unmask if the level still holds then. An edge has no level to keep: a masked edge is lost, as on hardware.
//!
//! # Example
//!
//! A device that is written against the traits alone. Which controller its line ends at, and whether the EOI comes
//! from the kernel or from a model, is for the VMM to choose.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use interrupt_core::{EoiGuard, EoiNotifier, Gsi, Level, LevelSource, Line, Listener, LoweredBy, Result};
//! use interrupt_core::testing::RecordingPin;
//!
//! /// Wants one interrupt for each request.
//! struct Device {
//!     line: Arc<dyn LevelSource>,
//!     requests: AtomicU32,
//! }
//!
//! impl Device {
//!     fn request(&self) -> Result<()> {
//!         self.requests.fetch_add(1, Ordering::Relaxed);
//!         self.line.assert().map(drop)
//!     }
//!     /// The answer to an EOI: asserts again while there is a cause.
//!     fn state_level(&self) {
//!         if self.requests.load(Ordering::Relaxed) > 0 {
//!             self.line.assert().ok();
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let line = Line::new(Gsi(11), RecordingPin::default());
//! let device = Arc::new(Device {
//!     line: Arc::new(line.source("device", LoweredBy::Eoi)),
//!     requests: AtomicU32::new(0),
//! });
//! let listener = Arc::clone(&device);
//! let _guard: EoiGuard = line.subscribe(
//!     device.line.key().into(),
//!     Listener::callback(move |_| listener.state_level()),
//! )?;
//!
//! device.request()?;
//! device.request()?;
//! device.requests.fetch_sub(1, Ordering::Relaxed); // the guest's handler serves one of the two
//! assert_eq!(line.eoi()?, Level::High, "the other one is still there");
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod eoi;
mod error;
pub mod forward;
mod gsi;
mod irqchip;
mod level;
mod line;
mod msi;
mod pin;
mod source;
mod sync;
pub mod testing;

pub use eoi::{EoiGuard, EoiNotifier, EoiScope, Listener, Listeners};
pub use error::{Error, Result};
pub use gsi::Gsi;
pub use irqchip::Irqchip;
pub use level::{Delivery, Level, LoweredBy};
pub use line::{Line, LineCounts, LineSource};
pub use msi::{Msi, MsiOutput};
pub use pin::Pin;
pub use source::{LevelSource, SourceKey};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
