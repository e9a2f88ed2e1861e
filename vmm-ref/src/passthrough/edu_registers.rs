// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of QEMU's `edu` device, and the size of the part that the guest reaches.

/// The most bytes of a BAR that the guest reaches: a segment of real mode.
pub const BAR_SIZE: usize = 0x1_0000;

// QEMU, docs/specs/edu.rst: offsets into BAR 0, 32 bits wide.
/// Reads as the version in the upper half, and [`ID_EDU`] in the lowest byte.
pub(crate) const ID: usize = 0x00;
pub(crate) const ID_EDU: u32 = 0xed;
/// The interrupt status.
pub(crate) const STATUS: usize = 0x24;
/// Sets the bits written in the status.
pub(crate) const RAISE: usize = 0x60;
/// Clears the bits written in the status.
pub(crate) const ACKNOWLEDGE: usize = 0x64;
