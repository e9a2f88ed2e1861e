// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The layout of the guest's physical memory, its ports and its GSIs.

use interrupt_core::Gsi;
use vm_memory::GuestAddress;

/// The boot CPU's global descriptor table.
pub const GDT: u64 = 0x500;
/// The boot parameters ("zero page"), one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// The boot CPU's stack grows down from here.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The boot CPU's page tables: PML4, one page-directory-pointer table, and page directories, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, at most [`COMMAND_LINE_MAX`] bytes with its end mark.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line that the kernel accepts, in bytes with its end mark.
pub const COMMAND_LINE_MAX: usize = 2048;
/// The end of conventional memory.
pub const LOW_END: u64 = 0xa_0000;
/// ACPI tables begin with the root pointer, which a kernel looks for from here to [`HIGH_START`].
pub const ACPI: u64 = 0xe_0000;
/// The reset vector. A processor starts here after a reset, and a kernel jumps here to reset the machine through the
/// BIOS.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The first byte above the first MiB: a bzImage is loaded here.
pub const HIGH_START: u64 = 0x10_0000;
/// Low memory ends here and continues at [`ABOVE_GAP`]. Devices are in between.
pub const GAP_START: u64 = 0xc000_0000;
/// The start of the memory above the gap.
pub const ABOVE_GAP: u64 = 0x1_0000_0000;

/// The virtio devices' windows, one page each.
pub const VIRTIO_WINDOWS: u64 = 0xd000_0000;
/// The distance between two windows.
pub const VIRTIO_WINDOW: u64 = 0x1000;

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// The keyboard controller, whose command port is at offset 4.
pub const I8042: u16 = 0x60;
/// The port of the exit status: the run ends with the byte that the guest wrote here. QEMU's isa-debug-exit is usually
/// at this port.
pub const EXIT_STATUS_PORT: u16 = 0xf4;
/// ACPI's sleep control register, and the sleep status register after it.
pub const SLEEP_CONTROL: u16 = 0x600;

/// The serial port's line, as on every PC.
pub const SERIAL_GSI: Gsi = Gsi(4);
/// The line of the first virtio device, and of all with `--share-irq`. No 8259 shares the pins from here on.
pub const FIRST_VIRTIO_GSI: Gsi = Gsi(16);
/// The lines of the virtio devices, from [`FIRST_VIRTIO_GSI`] on. The PCI pins have the lines that follow. With more
/// devices than lines, devices share.
pub const VIRTIO_GSIS: usize = 4;
/// The most virtio devices.
pub const VIRTIO_DEVICES: usize = 8;

/// The guest's memory as ranges of address and size, in bytes. `size` is a multiple of the page size.
pub fn memory_ranges(size: u64) -> Vec<(GuestAddress, usize)> {
    // A `usize` has 64 bits here: KVM's x86 guests need a 64-bit host.
    let mut ranges = vec![(GuestAddress(0), size.min(GAP_START) as usize)];
    if size > GAP_START {
        ranges.push((GuestAddress(ABOVE_GAP), (size - GAP_START) as usize));
    }
    ranges
}

/// The guest's usable memory as ranges of address and size, for the e820 map.
pub fn usable_ranges(size: u64) -> Vec<(u64, u64)> {
    let mut usable = vec![
        (0, LOW_END),
        (HIGH_START, size.min(GAP_START).saturating_sub(HIGH_START)),
    ];
    if size > GAP_START {
        usable.push((ABOVE_GAP, size - GAP_START));
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(memory_ranges(GIB), [(GuestAddress(0), 1 << 30)]);
        assert_eq!(
            memory_ranges(4 * GIB),
            [(GuestAddress(0), 3 << 30), (GuestAddress(ABOVE_GAP), 1 << 30)]
        );
        for size in [GIB, 3 * GIB, 4 * GIB] {
            let usable: u64 = usable_ranges(size).iter().map(|(_, size)| size).sum();
            assert_eq!(usable, size - (HIGH_START - LOW_END), "all but the hole below 1 MiB");
        }
    }
}
