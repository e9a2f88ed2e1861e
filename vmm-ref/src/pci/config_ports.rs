// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration mechanism #1: the ports CONFIG_ADDRESS (0xcf8) and CONFIG_DATA (0xcfc).
//!
//! A write of 4 bytes to CONFIG_ADDRESS selects a function and 4 of its bytes, and the 4 ports of CONFIG_DATA are those
//! bytes. An access that is no access of this mechanism is left to the bus, where no device claims it: a read returns
//! ones, and a write has no effect. That is so for other accesses to CONFIG_ADDRESS, for accesses to CONFIG_DATA that are
//! not aligned or while the address has its enable bit clear, and for functions that do not exist.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::config_space::ConfigSpace;

/// CONFIG_ADDRESS. CONFIG_DATA follows it.
pub const PORT: u16 = 0xcf8;
/// The number of ports.
pub const PORTS: u16 = 8;

/// CONFIG_DATA, as an offset from [`PORT`].
const DATA: u16 = 4;

/// The bits of CONFIG_ADDRESS. The others are reserved, and read 0.
const ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;
/// The reserved bits in which AMD's processors take the upper bits of a register above 256. This bus has no such
/// registers, and Linux tries.
const EXTENDED: u32 = 0x7f00_0000;

/// The ports, and the functions of bus 0.
pub struct ConfigPorts {
    address: AtomicU32,
    /// By device number. Each device has function 0 alone.
    functions: BTreeMap<u8, Arc<dyn ConfigSpace>>,
}

impl ConfigPorts {
    /// The ports of a bus with these functions, by device number. A guest cannot name numbers from 32 on.
    pub fn new(functions: BTreeMap<u8, Arc<dyn ConfigSpace>>) -> Self {
        Self {
            address: AtomicU32::new(0),
            functions,
        }
    }

    /// The function and the byte that an access of `size` bytes at `port` of CONFIG_DATA reaches.
    fn target(&self, port: u16, size: usize) -> Option<(&dyn ConfigSpace, u8)> {
        let byte = port.checked_sub(DATA)?;
        if !matches!(size, 1 | 2 | 4) || usize::from(byte) % size != 0 {
            return None;
        }
        let address = self.address.load(Ordering::Relaxed);
        let (bus, device, function) = (address >> 16 & 0xff, address >> 11 & 0x1f, address >> 8 & 7);
        if address & (ENABLE | EXTENDED) != ENABLE || bus != 0 || function != 0 {
            return None;
        }
        let space = self.functions.get(&(device as u8))?;
        // At most 0xfc + 3.
        Some((&**space, (address & 0xfc) as u8 + byte as u8))
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, _: PioAddress, port: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if port == 0 && data.len() == 4 {
            data.copy_from_slice(&(self.address.load(Ordering::Relaxed) & ADDRESS_BITS).to_le_bytes());
        } else if let Some((function, offset)) = self.target(port, data.len()) {
            function.read(offset, data);
        }
    }

    fn pio_write(&self, _: PioAddress, port: PioAddressOffset, data: &[u8]) {
        match (port, data) {
            (0, &[b0, b1, b2, b3]) => {
                self.address
                    .store(u32::from_le_bytes([b0, b1, b2, b3]), Ordering::Relaxed);
            }
            _ => {
                if let Some((function, offset)) = self.target(port, data.len()) {
                    function.write(offset, data);
                }
            }
        }
    }
}

impl fmt::Debug for ConfigPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration space of {} functions", self.functions.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::pci::host_bridge::HostBridge;

    /// 256 bytes that keep what is written, and count how often they are accessed in a wrong way.
    #[derive(Debug)]
    struct Memory(Mutex<[u8; 256]>);

    impl ConfigSpace for Memory {
        fn read(&self, offset: u8, data: &mut [u8]) {
            let offset = usize::from(offset);
            assert!(matches!(data.len(), 1 | 2 | 4) && offset % data.len() == 0);
            data.copy_from_slice(&self.0.lock().unwrap()[offset..offset + data.len()]);
        }

        fn write(&self, offset: u8, data: &[u8]) {
            let offset = usize::from(offset);
            assert!(matches!(data.len(), 1 | 2 | 4) && offset % data.len() == 0);
            self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn ports() -> ConfigPorts {
        let bridge: Arc<dyn ConfigSpace> = Arc::new(HostBridge);
        let memory: Arc<dyn ConfigSpace> = Arc::new(Memory(Mutex::new([0; 256])));
        ConfigPorts::new([(0, bridge), (1, memory)].into())
    }

    fn select(ports: &ConfigPorts, address: u32) {
        ports.pio_write(PioAddress(PORT), 0, &address.to_le_bytes());
    }

    fn read<const SIZE: usize>(ports: &ConfigPorts, port: u16) -> [u8; SIZE] {
        let mut data = [0x55; SIZE];
        ports.pio_read(PioAddress(PORT), port, &mut data);
        data
    }

    const DEVICE_1: u32 = ENABLE | 1 << 11;

    #[test]
    fn the_first_function_is_a_host_bridge() {
        let ports = ports();
        select(&ports, ENABLE | 8);
        assert_eq!(read::<2>(&ports, DATA + 2), [0x00, 0x06]);
        select(&ports, ENABLE);
        assert_eq!(read::<4>(&ports, DATA), [0x86, 0x80, 0x57, 0x0d]);
        assert_eq!(read::<4>(&ports, 0), ENABLE.to_le_bytes());
    }

    #[test]
    fn each_width_reaches_its_bytes() {
        let ports = ports();
        select(&ports, DEVICE_1 | 0x40);
        ports.pio_write(PioAddress(PORT), DATA, &[1, 2, 3, 4]);
        ports.pio_write(PioAddress(PORT), DATA + 2, &[5, 6]);
        ports.pio_write(PioAddress(PORT), DATA + 1, &[7]);
        assert_eq!(read::<4>(&ports, DATA), [1, 7, 5, 6]);
        assert_eq!(read::<2>(&ports, DATA + 2), [5, 6]);
        assert_eq!(read::<1>(&ports, DATA + 3), [6]);
    }

    #[test]
    fn what_is_no_access_of_the_mechanism_reads_ones_and_writes_nothing() {
        let ports = ports();
        select(&ports, DEVICE_1);
        // CONFIG_ADDRESS in pieces.
        assert_eq!(read::<2>(&ports, 0), [0xff; 2]);
        ports.pio_write(PioAddress(PORT), 0, &[0, 0]);
        ports.pio_write(PioAddress(PORT), 3, &[0]);
        assert_eq!(read::<4>(&ports, 0), DEVICE_1.to_le_bytes());
        // Not aligned, and across two registers.
        ports.pio_write(PioAddress(PORT), DATA + 1, &[9, 9]);
        ports.pio_write(PioAddress(PORT), 2, &[9; 4]);
        assert_eq!(read::<2>(&ports, DATA + 1), [0xff; 2]);
        assert_eq!(read::<4>(&ports, DATA), [0; 4]);
        // More bytes than a register has.
        assert_eq!(read::<8>(&ports, DATA), [0xff; 8]);
        // No enable bit, a register above 256, another bus, another function, no such device.
        for address in [
            1 << 11,
            DEVICE_1 | 1 << 24,
            DEVICE_1 | 1 << 16,
            DEVICE_1 | 1 << 8,
            ENABLE | 2 << 11,
            ENABLE | 31 << 11,
        ] {
            select(&ports, address);
            assert_eq!(read::<4>(&ports, DATA), [0xff; 4], "{address:#x}");
        }
        // The reserved bits of the address, of which the PCI specification says nothing but that they read 0.
        select(&ports, u32::MAX);
        assert_eq!(read::<4>(&ports, 0), ADDRESS_BITS.to_le_bytes());
    }

    proptest! {
        /// Accesses of any width at any port change no more than the bytes that they name.
        #[test]
        fn any_access_is_harmless(accesses in prop::collection::vec((0..PORTS, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 1..64)) {
            let ports = ports();
            for (port, mut data, write) in accesses {
                if write {
                    ports.pio_write(PioAddress(PORT), port, &data);
                } else {
                    ports.pio_read(PioAddress(PORT), port, &mut data);
                }
            }
            select(&ports, ENABLE);
            prop_assert_eq!(read::<4>(&ports, DATA), [0x86, 0x80, 0x57, 0x0d]);
        }
    }
}
