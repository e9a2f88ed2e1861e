// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host bridge at 00:00.0.
//!
//! The bridge does nothing. It is there because a kernel without DMI tables looks for a host bridge on bus 0 before it
//! trusts configuration mechanism #1 (Linux, arch/x86/pci/direct.c).

use super::config_space::{ConfigSpace, ID, REVISION, SIZE};

/// Vendor and device ID of Intel's virtual host bridge, as cloud-hypervisor and firecracker have them. Linux has no
/// driver and no quirk for them.
const ID_VALUE: u32 = 0x0d57_8086;

/// Class 06, subclass 00: host bridge. Programming interface and revision 0.
const CLASS: u32 = 0x0600_0000;

/// The host bridge: constants, without a BAR, a capability or an interrupt pin.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostBridge;

impl ConfigSpace for HostBridge {
    fn read(&self, offset: u8, data: &mut [u8]) {
        let mut registers = [0; SIZE];
        for (register, value) in [(ID, ID_VALUE), (REVISION, CLASS)] {
            registers[usize::from(register)..][..4].copy_from_slice(&value.to_le_bytes());
        }
        for (byte, register) in data.iter_mut().zip(&registers[usize::from(offset)..]) {
            *byte = *register;
        }
    }

    fn write(&self, _: u8, _: &[u8]) {}
}
