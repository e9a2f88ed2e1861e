// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space of a function, as the guest accesses it.

use std::fmt;

/// The bytes that configuration mechanism #1 reaches.
pub const SIZE: usize = 256;

/// Vendor and device ID.
pub const ID: u8 = 0x00;
/// The command register.
pub const COMMAND: u8 = 0x04;
/// The status register.
pub const STATUS: u8 = 0x06;
/// Revision ID; the class code follows it.
pub const REVISION: u8 = 0x08;
/// The cache line size; the latency timer follows it.
pub const CACHE_LINE: u8 = 0x0c;
/// The header type.
pub const HEADER_TYPE: u8 = 0x0e;
/// The first of six base address registers.
pub const BAR0: u8 = 0x10;
/// The expansion ROM's base address.
pub const ROM: u8 = 0x30;
/// The pointer to the first capability.
pub const CAPABILITIES: u8 = 0x34;
/// The interrupt line, a register for software alone; the interrupt pin follows it.
pub const INTERRUPT_LINE: u8 = 0x3c;
/// The interrupt pin: 1 to 4, or 0 for a function that has none.
pub const INTERRUPT_PIN: u8 = 0x3d;

/// The configuration space of one function.
///
/// Every access is of 1, 2 or 4 bytes, aligned to its size. An access has no errors: what a function does not have reads
/// as it does on hardware, and writes to that have no effect.
pub trait ConfigSpace: fmt::Debug + Send + Sync {
    /// Fills `data` with the registers from byte `offset` on.
    fn read(&self, offset: u8, data: &mut [u8]);

    /// Writes `data` to the registers from byte `offset` on.
    fn write(&self, offset: u8, data: &[u8]);
}
