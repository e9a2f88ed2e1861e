// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI device's INTx, forwarded from VFIO to a guest's line, and the line's EOI back to the device.
//!
//! * [`Intx`] is the state machine of one device: disabled, [relay](State::Relay), [kernel loop](State::KernelLoop) or
//!   [split kick](State::SplitKick), and every way between them.
//! * [`GuestLine`] is the guest's end: an [`interrupt_core::LevelSource`], an [`interrupt_core::EoiNotifier`], and where they are.
//!   By which path INTx goes there is decided by [`interrupt_core::forward::decide`].
//! * An `Intx` is a [`Producer`](interrupt_core::forward::Producer): in a [`Registry`](interrupt_core::forward::Registry) it is
//!   connected to its line by itself, whichever of the two comes first.
//! * [`Relay`] is what an event loop runs: it carries interrupts and EOIs while no direct path does.
//! * The device's end is an [`interrupt_core::forward::DeviceInterrupt`]: `VfioIntx` (feature `vfio`) for a VFIO device's file
//!   descriptor, [`ModelIntx`] for no hardware at all, or your own.
//!
//! # When an interrupt comes while something changes
//!
//! INTx is a level: as long as the device asserts, an interrupt that could not be carried further is signalled again at the next
//! unmask, and every change of state ends with one. A signal that was under way through the old wires is dropped there. A device
//! that does not mask itself has no such level; its signals are kept until there is somebody to carry them to.
//!
//! A processor that has been sent an interrupt (a LAPIC with the vector in its IRR) takes it also after the line has fallen, as on
//! hardware.
//!
//! # Sources
//!
//! Linux, `drivers/vfio/pci/vfio_pci_intrs.c` and `virt/kvm/eventfd.c`; the order of steps is that of QEMU's `hw/vfio/pci.c`.
//!
//! # Example
//!
//! See [`GuestLine`] for the guest's end on KVM, and the README for a VMM's INTx code before and after.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod device;
mod error;
mod eventfd;
mod intx;
mod relay;
mod saved;
mod state_machine;
mod status;
#[cfg(feature = "event-manager")]
mod subscriber;

pub use device::irq_set;
pub use device::model::ModelIntx;
#[cfg(feature = "vfio")]
pub use device::vfio::VfioIntx;
#[cfg(feature = "vfio-user")]
pub use device::vfio_user::VfioUserIntx;
pub use error::{Error, Result};
pub use intx::Intx;
pub use relay::Relay;
pub use saved::IntxState;
pub use status::{Reason, State, Status};

/// The README's examples, compiled.
#[cfg(all(doctest, feature = "vfio", feature = "event-manager"))]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
