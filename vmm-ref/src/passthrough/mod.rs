// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device whose INTx is forwarded to the guest's line: QEMU's `edu`, given to this process by VFIO, or served by another process over
//! vfio-user; or [a model](Model) of such a device.
//!
//! The host makes the device assert, by its own mapping of the BAR; the guest's handler acknowledges it through the BAR that it has
//! been given, and ends the interrupt. What lies between the two is [`vfio_intx`]'s: which of its paths, a registry decides, unless
//! the composition says. [`Swapper`] changes it under way.

mod address;
mod bar;
mod check;
mod edu;
mod forwarding;
mod model;
mod socket;
mod swap;

pub use address::PciAddress;
pub use bar::{Bar, Mapping, Remote};
pub use check::{Unusable, check};
pub use edu::{Edu, EduPin};
pub use forwarding::Forwarding;
pub use model::{Model, ModelPin, PinIrqfd};
pub use socket::SocketPath;
pub use swap::{Account as SwapAccount, Swapper};
