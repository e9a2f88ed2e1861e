// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI device outside of this process, whose INTx goes to the guest's line: QEMU's `edu`, given to this process by VFIO, or served by
//! another process over vfio-user.
//!
//! The host makes the device assert, by its own mapping of the BAR; the guest's handler acknowledges it through the BAR that it has
//! been given, and ends the interrupt. What lies between the two is [`vfio_intx`]'s: which of its paths, the composition says.

mod address;
mod bar;
mod check;
mod edu;
mod forwarding;
mod socket;

pub use address::PciAddress;
pub use bar::{Bar, Mapping, Remote};
pub use check::{Unusable, check};
pub use edu::{Edu, EduPin};
pub(crate) use forwarding::ByGsi;
pub use forwarding::Forwarding;
pub use socket::SocketPath;
