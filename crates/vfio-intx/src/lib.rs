// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI device's INTx, forwarded from VFIO to a guest's line, and the line's EOI back to the device.
//!
//! * [`Intx`] is the VMM's handle of one device's INTx, and the producer's end of a
//!   [`Connection`](interrupt_core::forward::Connection), which decides by which path INTx goes to its line.
//! * [`Relay`] is what an event loop runs: it carries interrupts and EOIs while no direct path does.
//! * The device's end is an [`interrupt_core::forward::DeviceInterrupt`]: `VfioIntx` (feature `vfio`) for a VFIO
//!   device's file descriptor, `VfioUserIntx` (feature `vfio-user`) for a device of a vfio-user server, `ClientIntx`
//!   (feature `vfio-user-client`) for one behind a `vfio_user::Client`, `ModelIntx` (feature `testing`) for tests.
//!
//! # An interrupt that comes while something changes
//!
//! INTx is a level: as long as the device asserts, an interrupt that could not be carried further is signalled again at
//! the next unmask, and every change of wiring ends with an unmask. A signal that was under way through the old wires
//! is dropped there. A device that does not mask itself has no such level; its signals are kept until they can be
//! carried.
//!
//! A processor that has been sent an interrupt (a LAPIC with the vector in its IRR) takes the interrupt also after the
//! line has fallen, as on hardware.
//!
//! # Sources
//!
//! Linux, `drivers/vfio/pci/vfio_pci_intrs.c` and `virt/kvm/eventfd.c`; the order of steps is that of QEMU's
//! `hw/vfio/pci.c`.
//!
//! # Example
//!
//! See the README, and [`GuestLine`](interrupt_core::forward::GuestLine) for the guest's end on KVM.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod carrier;
mod device;
mod direct;
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
#[cfg(feature = "testing")]
pub use device::model::ModelIntx;
#[cfg(feature = "vfio")]
pub use device::vfio::VfioIntx;
#[cfg(feature = "vfio-user")]
pub use device::vfio_user::VfioUserIntx;
#[cfg(feature = "vfio-user-client")]
pub use device::vfio_user_client::ClientIntx;
pub use direct::DirectIntx;
pub use error::{Error, Result};
pub use intx::Intx;
pub use relay::Relay;
pub use saved::IntxState;
pub use status::{Reason, State, Status};

/// The README's examples, compiled.
#[cfg(all(doctest, feature = "event-manager", feature = "testing", feature = "vfio"))]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
struct Readme;
