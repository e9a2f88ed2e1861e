// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state in which a kernel starts: the loaded kernel, its parameters, the ACPI tables, and a processor in 64-bit
//! mode.

pub mod acpi;
pub mod cpu_state;
pub mod kernel;
pub mod memory_map;
pub mod parameters;
