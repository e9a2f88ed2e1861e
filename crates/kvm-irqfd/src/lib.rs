// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level and edge interrupts on KVM.
//!
//! [`KvmInterrupts`] takes a VM's `VmFd` and hands out
//!
//! * level sources, as [`LevelSource`](interrupt_core::LevelSource): on a resample irqfd, whose line KVM lowers at the
//!   EOI; on KVM_IRQ_LINE; and on a split irqchip, for which [`KvmInterrupts`] is also the userspace IOAPIC's
//!   [`MsiOutput`](interrupt_core::MsiOutput);
//! * [`EdgeIrqfd`]: a pulse on a pin, or an MSI, with a mask that keeps what is signalled meanwhile;
//! * an EOI notifier, for one source by its key, or for a GSI and all sources of the GSI: [`KvmInterrupts`] itself is the
//!   [`EoiNotifier`](interrupt_core::EoiNotifier);
//! * [`Routing`]: a change of the GSI routing table;
//! * [`KvmVfio`]: the KVM-VFIO device, with the forwarding that was proposed for it.
//!
//! KVM accepts much that then does not work: a GSI that leads nowhere, a resample irqfd on an MSI, an edge irqfd and a
//! level on one GSI, a deassign of something that was never assigned. What KVM would get wrong is refused here with a
//! typed [`Error`].
//!
//! On aarch64 the controller is a GIC: GSI *n* is SPI *n*, interrupt ID 32+*n*, and whatever is about a split irqchip
//! is refused. The order is: the vCPUs; the vGIC, initialised (`GicV3::create` does that); then [`KvmInterrupts`]. Before
//! the initialisation KVM answers EAGAIN, which is [`Reason::NotInitialised`]. A level source is for an SPI that the
//! guest configures as level-triggered: KVM reports no EOI of an edge-triggered one.
//!
//! No thread is started. What has to be done in this process at an EOI is done by the thread that calls
//! [`KvmInterrupts::dispatch`].
//!
//! # Example
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use std::sync::Arc;
//! use interrupt_core::{EoiNotifier, Gsi, Irqchip, Listener};
//! use kvm_irqfd::{KvmInterrupts, WaitMode, Waiter};
//! use rustix::event::{EventfdFlags, eventfd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
//! vm.create_irq_chip()?;
//! let interrupts = KvmInterrupts::new(Arc::new(vm))?;
//! assert_eq!(interrupts.irqchip(), Irqchip::Kernel);
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
mod books;
mod chip;
mod error;
#[cfg(feature = "event-manager")]
mod event_manager;
#[cfg(test)]
mod explorer;
#[cfg(target_arch = "aarch64")]
mod gic;
mod interrupts;
mod kernel;
mod kind;
mod line;
mod routes;
mod split;
mod vfio;

pub use chip::Chip;
pub use error::{Error, Reason, Result};
#[cfg(target_arch = "aarch64")]
pub use gic::GicV3;
pub use interrupts::KvmInterrupts;
pub use interrupts::routing::{Committed, Routing};
pub use interrupts::source::EdgeIrqfd;
pub use kernel::eventfd;
pub use kernel::irqchip::SPLIT_PINS;
pub use kernel::wait::{WaitMode, Waiter};
pub use kind::BindingKind;
pub use line::GsiCounts;
#[cfg(target_arch = "aarch64")]
pub use routes::GIC_SPIS;
pub use routes::{MAX_ROUTES, Route, Routes};
pub use split::{EoiBroadcast, enable_split_irqchip, set_eoi_broadcast};
pub use vfio::KvmVfio;
pub use vfio::host_forward::HostForwarded;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
