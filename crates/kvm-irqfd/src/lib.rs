// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level and edge interrupts on KVM.
//!
//! [`KvmInterrupts`] takes a VM's `VmFd` and hands out
//!
//! * [`ResampleSource`]: a level source whose trigger is an irqfd and whose line KVM lowers at the EOI;
//! * [`IrqLineSource`]: a level source over KVM_IRQ_LINE;
//! * [`SplitSource`]: a level source on a split irqchip, for which [`KvmInterrupts`] is also the userspace IOAPIC's
//!   [`MsiOutput`](interrupt_core::MsiOutput);
//! * [`EdgeIrqfd`]: a pulse on a pin, or an MSI;
//! * an EOI notifier, for one source by its key or for a GSI whoever drives it. It is the
//!   [`EoiNotifier`](interrupt_core::EoiNotifier) that [`KvmInterrupts`] itself is;
//! * [`Routing`]: a change of the GSI routing table;
//! * [`KvmVfio`]: the KVM-VFIO device, with the forwarding that was proposed for it.
//!
//! KVM accepts much that then does not work: a GSI that leads nowhere, a resample irqfd on an MSI, an edge irqfd and a level on
//! one GSI, a deassign of something that was never assigned. What it would get wrong is refused here with a typed [`Error`].
//!
//! On aarch64 the controller is a GIC: GSI *n* is SPI *n*, interrupt ID 32+*n*, and whatever is about a split irqchip is refused by
//! KVM. There the vGIC has to be initialised first; KVM answers EAGAIN before that, and so does this crate.
//!
//! No thread is started. What has to be done in this process at an EOI is done by whoever calls [`KvmInterrupts::dispatch`].
//! /proc has to be mounted: the identity of an eventfd is read from /proc/self/fdinfo when it is bound.
//!
//! # Example
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use std::sync::Arc;
//! use interrupt_core::{EoiNotifier, Gsi, LevelSource, Listener};
//! use kvm_irqfd::{Irqchip, KvmInterrupts, WaitMode, Waiter};
//! use rustix::event::{EventfdFlags, eventfd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
//! vm.create_irq_chip()?;
//! let interrupts = KvmInterrupts::new(Arc::new(vm))?;
//! assert_eq!(interrupts.irqchip(), Irqchip::Full);
//!
//! // A device's line, and an eventfd that KVM signals when the guest has ended the interrupt.
//! let line = interrupts.resample_source(Gsi(11), "serial")?;
//! let eoi = eventfd(0, EventfdFlags::CLOEXEC)?;
//! let guard = interrupts.subscribe(line.key().into(), Listener::fd(eoi.try_clone()?))?;
//!
//! line.assert()?;
//! Waiter::new(WaitMode::Adaptive).wait(eoi.as_fd())?; // the guest's EOI
//! # drop(guard);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]
mod dispatch;
mod edge;
mod error;
mod event;
pub mod eventfd;
mod interrupts;
mod irq_line;
mod irqchip;
mod irqfds;
mod kvm_vfio;
mod resample;
mod routes;
mod routing;
mod split;
#[cfg(feature = "event-manager")]
mod subscriber;
#[cfg(feature = "vm-superio")]
mod superio;
mod wait;

pub use edge::EdgeIrqfd;
pub use error::{Error, Result};
pub use interrupts::{GsiCounts, KvmInterrupts};
pub use irq_line::{IrqLinePin, IrqLineSource};
pub use irqchip::Irqchip;
pub use irqfds::Use;
pub use kvm_vfio::{HostForwarded, KvmVfio};
pub use resample::ResampleSource;
#[cfg(target_arch = "aarch64")]
pub use routes::GIC_SPIS;
pub use routes::{Chip, MAX_ROUTES, Route, Routes};
pub use routing::{Committed, Routing};
pub use split::{EoiBroadcast, SPLIT_PINS, SplitSource, enable_split_irqchip, set_eoi_broadcast};
#[cfg(feature = "vm-superio")]
pub use superio::LevelTrigger;
pub use wait::{WaitMode, Waiter};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
