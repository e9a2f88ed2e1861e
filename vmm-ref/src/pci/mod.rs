// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI host for the machine that runs Linux, a PC: one bus, with a host bridge at 00:00.0.
//!
//! The guest reaches the configuration space of each function by configuration mechanism #1 ([`config_ports`]). The ACPI
//! tables describe the bus and its interrupt pins ([`aml`]). A [`function`] is a [`device`] of VFIO or of a vfio-user
//! server. The guest has a [`view`] of its registers, and base address registers ([`bar`]) of the guest's own, which
//! decode addresses in the bus's [`windows`]. With `--msi on` the guest also has the vectors of [`msix`]. [`host`] puts the parts together, and connects each device's INTx to the
//! line of its pin.
//!
//! Sources: PCI Local Bus Specification 3.0 (chapter 3.2.2.3, configuration mechanism #1; chapter 6, configuration
//! space); PCI Firmware Specification 3.0; ACPI 6.5, 6.2.13 (_PRT).

pub mod address_map;
pub mod aml;
pub mod bar;
pub mod config_ports;
pub mod config_space;
pub mod device;
pub mod function;
pub mod host;
pub mod host_bridge;
pub mod line_eois;
pub mod msix;
pub mod path_changer;
#[cfg(test)]
mod tests;
pub mod view;
pub mod windows;
