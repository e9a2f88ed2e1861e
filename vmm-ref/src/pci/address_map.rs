// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The addresses and the GSIs of the PCI bus.

use std::ops::RangeInclusive;

use interrupt_core::Gsi;

/// The device numbers of a bus.
pub const DEVICES: usize = 32;

/// The memory that BARs can decode: from above the virtio devices to below the IOAPIC.
pub const MEMORY_WINDOW: RangeInclusive<u64> = 0xe000_0000..=0xfebf_ffff;

/// The ports that BARs can decode: those above the fixed ports of a PC.
pub const IO_WINDOW: RangeInclusive<u64> = 0x1000..=0xffff;

/// The first GSI of the PCI pins.
pub const FIRST_GSI: Gsi = Gsi(20);

/// The number of GSIs of the PCI pins.
pub const GSIS: u32 = 4;

/// The GSI of a function's interrupt pin (1 to 4, INTA to INTD). A bus rotates the pins of its devices, so that the
/// first pins of four neighbours have four GSIs (PCI Local Bus Specification 3.0, 2.2.6, implementation note). The
/// devices of a GSI share it.
pub fn gsi(device: u8, pin: u8) -> Gsi {
    Gsi(FIRST_GSI.0 + (u32::from(device) + u32::from(pin) + GSIS - 1) % GSIS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_rotate_from_device_to_device() {
        let of = |device| [1, 2, 3, 4].map(|pin| gsi(device, pin).0);
        assert_eq!(of(0), [20, 21, 22, 23]);
        assert_eq!(of(1), [21, 22, 23, 20]);
        assert_eq!(of(4), of(0));
        assert_eq!(of(31), [23, 20, 21, 22]);
    }
}
