// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The layout of the guest's memory and ports. The guest's program and the host's view both use these constants.

/// Size of the guest's memory in bytes, from address 0: all that real mode reaches without segments.
pub const MEMORY_SIZE: usize = 0x1_0000;

use crate::composition::options::{GIC, MAX_DEVICES};

/// The address of the first bytes of a VFIO device's BAR 0: in the range of a PC's option ROMs, where GS has its base,
/// and on arm64 above the memory.
pub const BAR_ADDRESS: u64 = if GIC { 0x20_0000 } else { 0xe_0000 };

/// The address of port 0 where ports are addresses: on arm64, which has no ports.
pub const PORTS: u64 = 0x900_0000;

/// The registers of the GIC's distributor.
pub const DISTRIBUTOR: u64 = 0x800_0000;

/// The registers of the GIC's redistributors.
pub const REDISTRIBUTORS: u64 = 0x80a_0000;

/// The acknowledge port. The handler writes a byte here before the EOI if its devices need an acknowledgement
/// (`Program::acknowledge`). The write costs an exit, as it would for any device without a shared page.
pub const ACKNOWLEDGE_PORT: u16 = 0x5a0;

/// The port for an unexpected vector: a byte written here reports that the CPU took a vector that nothing in this
/// machine raises.
pub const FAULT_PORT: u16 = 0x5af;

/// The device's doorbell in port space: the guest stores 4 bytes here, with any value. The port is below 0x100, so the
/// instruction contains it, and the timed code loads no register for it.
pub const DOORBELL_PORT: u16 = 0xe0;

/// The device's doorbell in memory space: 4 bytes, any value. FS has its base here.
pub const DOORBELL_ADDRESS: u64 = 0xd000_0000;

/// The batch port: a byte written here reports that a batch of stores to the doorbells is complete and its samples are
/// in memory.
pub const BATCH_PORT: u16 = 0x5a8;

/// Most stores of a batch, to each doorbell.
pub const BATCH_MAX: u32 = 1024;

/// How many kinds of steps a batch times.
pub(super) const TIMED_STEPS: usize = 3;

/// Initial stack pointer, growing down.
pub(super) const STACK: u64 = 0x8000;

/// The address at which the program starts.
pub(in crate::roundtrip) const CODE: u64 = 0x1000;

/// The status page, whose words are 32 bits wide. The guest's words and the host's words lie in different cache lines.
pub(super) const READY: u64 = 0x3000;
pub(super) const HANDLER_RUNS: u64 = 0x3040;
pub(super) const FOUND_NOTHING: u64 = 0x3044;
pub(super) const STRAY: u64 = 0x3048;

/// Stores to make to each doorbell in the next batch. The host writes it, before the guest starts and when a batch is
/// made.
pub(super) const BATCH: u64 = 0x3080;

/// Stores made so far to doorbell `n`. The guest writes it.
pub(super) const fn rung(n: usize) -> u64 {
    0x30c0 + n as u64 * 4
}

/// The options of the program for arm64, and the number of its devices. The host writes them before the guest starts.
#[cfg(target_arch = "aarch64")]
pub(super) const OPTIONS: u64 = 0x30d0;

/// The translation table of the program for arm64.
#[cfg(target_arch = "aarch64")]
pub(in crate::roundtrip) const PAGE_TABLE: u64 = 0xe000;

const DEVICES: u64 = 0x3100;
const DEVICE_STRIDE: u64 = 0x80;

/// Written by device `n`.
pub(super) const fn raised(n: usize) -> u64 {
    DEVICES + n as u64 * DEVICE_STRIDE
}

/// Written by the handler for device `n`.
pub(super) const fn serviced(n: usize) -> u64 {
    raised(n) + DEVICE_STRIDE / 2
}

const _: () = assert!(
    raised(MAX_DEVICES) <= STACK - 0x1000,
    "the stack has room below the status page"
);

const SAMPLES: u64 = 0x9000;

/// How long each step of kind `n` took in the last batch, in ticks of the time-stamp counter. The guest writes it.
pub(super) const fn samples(n: usize) -> u64 {
    SAMPLES + n as u64 * 4 * BATCH_MAX as u64
}

const _: () = assert!(
    SAMPLES >= STACK && samples(TIMED_STEPS) <= MEMORY_SIZE as u64,
    "the samples lie above the stack and in memory"
);
