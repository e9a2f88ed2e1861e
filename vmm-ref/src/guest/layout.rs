// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are in the guest's memory and port space. The program and the host's view of it are both made from these.

/// Size of the guest's memory in bytes, from address 0: all that real mode reaches without segments.
pub const MEMORY_SIZE: usize = 0x1_0000;

/// Most devices that the status page has room for.
pub const MAX_DEVICES: usize = 16;

/// The handler writes a byte here before the EOI, when its devices want to hear of it ([`super::Program::acknowledge`]). The
/// exit that this costs is what a device without a shared page has to pay.
pub const ACKNOWLEDGE_PORT: u16 = 0x5a0;

/// A byte written here says that the CPU took a vector that nothing in this machine raises.
pub const FAULT_PORT: u16 = 0x5af;

/// Initial stack pointer, growing down.
pub(super) const STACK: u64 = 0x8000;

/// Where the program starts.
pub(super) const CODE: u64 = 0x1000;

/// The status page, whose words are 32 bits wide. What the guest writes and what the host writes lie in different cache lines.
pub(super) const READY: u64 = 0x3000;
pub(super) const HANDLER_RUNS: u64 = 0x3040;
pub(super) const FOUND_NOTHING: u64 = 0x3044;
pub(super) const STRAY: u64 = 0x3048;

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
