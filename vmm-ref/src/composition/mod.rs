// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The composition of a run: its options, and which options fit together.

pub mod check;
pub mod options;
pub mod pci_address;
pub mod socket_path;
