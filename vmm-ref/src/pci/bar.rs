// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The base address registers of a function, as the guest sees them. The device's own keep what the host gave them.

use super::address_map::{IO_WINDOW, MEMORY_WINDOW};

/// The base address registers of a function.
pub const BARS: usize = 6;

/// Bit 0 of a register: an I/O BAR.
const IO: u32 = 1;
/// Bits 1 and 2 of a memory BAR: the register after it has the upper half of the address.
const TYPE: u32 = 0b110;
const TYPE_64: u32 = 0b100;
/// The bits of a register that are no address.
const IO_FLAGS: u32 = 0b11;
const MEMORY_FLAGS: u32 = 0b1111;

/// The two address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Memory.
    Memory,
    /// I/O ports.
    Io,
}

/// Why a device's BARs cannot be shown to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A BAR decodes a power of two.
    #[error("BAR {bar} has {size} bytes, which no BAR has")]
    Size {
        /// The BAR's number.
        bar: u8,
        /// Its size.
        size: u64,
    },
    /// The last BAR has no register for an upper half.
    #[error("BAR {0} is of 64 bits, and no register follows it")]
    NoUpperHalf(u8),
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The BAR's number, that of its lower half.
    pub number: u8,
    /// The address space.
    pub space: Space,
    /// The number of bytes that the BAR decodes, a power of two.
    pub size: u64,
    flags: u32,
    address: u64,
}

impl Bar {
    /// The first and the last address that the BAR decodes; `None` where the bus leads nothing to it. A BAR that the guest
    /// places outside of the bus's window, such as over memory, decodes nothing.
    pub fn range(&self) -> Option<(u64, u64)> {
        let window = match self.space {
            Space::Memory => MEMORY_WINDOW,
            Space::Io => IO_WINDOW,
        };
        let last = self.address.checked_add(self.size - 1)?;
        (window.contains(&self.address) && window.contains(&last)).then_some((self.address, last))
    }
}

/// A register of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Reads 0.
    Unused,
    /// The register, or its lower half, of the BAR at this index.
    Lower(usize),
    /// The upper half.
    Upper(usize),
}

/// The six registers.
#[derive(Clone, Debug)]
pub struct Bars {
    bars: Vec<Bar>,
    registers: [Register; BARS],
}

impl Bars {
    /// The BARs of a device: what its registers read, for their flags, and how many bytes each decodes. All addresses are
    /// 0, as after a reset.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn new(read: [u32; BARS], sizes: [u64; BARS]) -> Result<Self, Malformed> {
        let (mut bars, mut registers) = (Vec::new(), [Register::Unused; BARS]);
        let mut number = 0;
        while number < BARS {
            let (value, size, bar) = (read[number], sizes[number], number as u8);
            number += 1;
            if size == 0 {
                continue;
            }
            let (space, mask, wide) = match value & IO != 0 {
                true => (Space::Io, IO_FLAGS, false),
                false => (Space::Memory, MEMORY_FLAGS, value & TYPE == TYPE_64),
            };
            let most = if wide { 1 << 63 } else { 1 << 31 };
            if !size.is_power_of_two() || size <= u64::from(mask) || size > most {
                return Err(Malformed::Size { bar, size });
            }
            registers[usize::from(bar)] = Register::Lower(bars.len());
            if wide {
                *registers.get_mut(number).ok_or(Malformed::NoUpperHalf(bar))? = Register::Upper(bars.len());
                number += 1;
            }
            bars.push(Bar {
                number: bar,
                space,
                size,
                flags: value & mask,
                address: 0,
            });
        }
        Ok(Self { bars, registers })
    }

    /// The BARs.
    pub fn iter(&self) -> impl Iterator<Item = &Bar> {
        self.bars.iter()
    }

    /// What a register reads.
    pub fn read(&self, register: usize) -> u32 {
        match self.registers.get(register) {
            Some(Register::Lower(index)) => self.bars[*index].address as u32 | self.bars[*index].flags,
            Some(Register::Upper(index)) => (self.bars[*index].address >> 32) as u32,
            Some(Register::Unused) | None => 0,
        }
    }

    /// Writes a register. The bits below the size stay 0, by which the guest learns the size.
    pub fn write(&mut self, register: usize, value: u32) {
        const LOWER: u64 = u32::MAX as u64;
        let (index, address) = match self.registers.get(register) {
            Some(&Register::Lower(index)) => (index, self.bars[index].address & !LOWER | u64::from(value)),
            Some(&Register::Upper(index)) => (index, self.bars[index].address & LOWER | u64::from(value) << 32),
            Some(Register::Unused) | None => return,
        };
        let bar = &mut self.bars[index];
        bar.address = address & !(bar.size - 1);
    }

    /// Sets all addresses to 0, as a reset does.
    pub fn reset(&mut self) {
        self.bars.iter_mut().for_each(|bar| bar.address = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory BAR of 128 KiB, a 64-bit prefetchable one of 8 GiB, an I/O BAR of 64 ports, and none.
    fn bars() -> Bars {
        let read = [0xfeb4_0000, 0xc, 0, 0xc041, 0, 0];
        Bars::new(read, [0x2_0000, 8 << 30, 0, 64, 0, 0]).unwrap()
    }

    #[test]
    fn a_guest_learns_the_sizes() {
        let mut bars = bars();
        (0..BARS).for_each(|register| bars.write(register, u32::MAX));
        let read: Vec<_> = (0..BARS).map(|register| bars.read(register)).collect();
        assert_eq!(read, [0xfffe_0000, 0xc, 0xffff_fffe, 0xffff_ffc1, 0, 0]);
        bars.reset();
        let read: Vec<_> = (0..BARS).map(|register| bars.read(register)).collect();
        assert_eq!(read, [0, 0xc, 0, 1, 0, 0]);
    }

    #[test]
    fn a_bar_decodes_within_its_window_alone() {
        let mut bars = bars();
        let mut range = |register, value| {
            bars.write(register, value);
            let bar = bars.iter().find(|bar| usize::from(bar.number) == register).unwrap();
            bar.range()
        };
        assert_eq!(range(0, 0xe002_0000), Some((0xe002_0000, 0xe003_ffff)));
        // Memory of the guest, the IOAPIC, and nothing at all.
        for outside in [0, 0x10_0000, 0xdffe_0000, 0xfec0_0000, 0xfee0_0000, 0xfffe_0000] {
            assert_eq!(range(0, outside), None, "{outside:#x}");
        }
        assert_eq!(range(3, 0xc041), Some((0xc040, 0xc07f)));
        // The ports of a PC, and ports that a PC does not have.
        for outside in [0x60, 0x3c0, 0xfc0, 0x1_0000] {
            assert_eq!(range(3, outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_device_with_bars_that_no_device_has_is_refused() {
        let sizes = |sizes: &[u64]| {
            let mut all = [0; BARS];
            all[..sizes.len()].copy_from_slice(sizes);
            all
        };
        for (read, size) in [(0, 3), (0, 8), (0, 0x3000), (0, 1 << 32), (1, 2), (4, u64::MAX)] {
            let read = [read, 0, 0, 0, 0, 0];
            assert_eq!(
                Bars::new(read, sizes(&[size])).unwrap_err(),
                Malformed::Size { bar: 0, size }
            );
        }
        assert_eq!(
            Bars::new([0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 0, 4096]).unwrap_err(),
            Malformed::NoUpperHalf(5)
        );
    }
}
