// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device whose INTx is forwarded to the guest's line: QEMU's `edu`, given to this process by VFIO or served by
//! another process over vfio-user, or a [model] of such a device.
//!
//! The host makes the device assert, by its own mapping of the BAR. The guest's handler acknowledges the device through
//! the BAR that it has been given, and writes the EOI. [`vfio_intx`] carries the interrupt and the EOI
//! ([`forwarding`]).

pub mod bar;
pub mod edu;
pub mod edu_registers;
pub mod forwarding;
pub mod mapping;
pub mod model;
pub mod open;
pub mod path_changes;
pub mod preflight;
