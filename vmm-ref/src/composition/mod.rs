// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run is put together from: the options, and which of them go together.

pub mod check;
pub mod options;
pub mod pci_address;
pub mod socket_path;
