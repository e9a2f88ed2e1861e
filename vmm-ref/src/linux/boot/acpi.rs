// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ACPI tables: the processors, the IOAPIC, the line of each device, the PCI bus, and the power registers.
//!
//! The machine is of the hardware-reduced kind (ACPI 6.5, 4.1): no 8259, no PIT and no fixed power-management
//! registers, but a sleep control register. Each device of the DSDT declares its line **level-triggered and
//! active-high**, by an Extended Interrupt descriptor (ACPI 6.5, 6.4.3.6), which Linux follows. Without the descriptor
//! Linux would assume an ISA edge. The lines of PCI devices are in the bus's _PRT ([`pci::aml`]).

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use interrupt_core::Gsi;
use user_irqchip::Ioapic;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::error::boot_error::BootError;
use crate::linux::boot::memory_map::{ACPI, COM1, I8042, RESET_VECTOR, SERIAL_GSI, SLEEP_CONTROL};
use crate::pci;

const OEM: [u8; 6] = *b"VMMREF";
const OEM_TABLE: [u8; 8] = *b"LINUX   ";
const OEM_REVISION: u32 = 1;

const LAPIC_BASE: u32 = 0xfee0_0000;

/// IA-PC boot architecture flags: no VGA, no CMOS clock. Bit 1 is clear: no keyboard controller. Linux then looks for no
/// keyboard. The controller's reset command works nevertheless.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// The flag by which no guest enables MSI.
const NO_MSI: u16 = 1 << 3;

/// The sleep type that switches the machine off (sleep control register, ACPI 6.5, 4.8.3.7).
pub const S5: u8 = 5;
/// The bit that enters the sleep state of the sleep type.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// The lowest bit of the sleep type.
pub const SLEEP_TYPE_SHIFT: u8 = 2;

/// The keyboard controller's command port, as an offset from its first port, and the command that resets the machine.
const RESET_PORT: u16 = 4;
const RESET: u8 = 0xfe;

/// A virtio device as the DSDT describes it.
#[derive(Clone, Copy, Debug)]
pub struct VirtioDevice {
    /// The first address of its window.
    pub window: u64,
    /// The size of the window in bytes.
    pub size: u64,
    /// The device's line.
    pub gsi: Gsi,
    /// Whether other devices share the line.
    pub shared: bool,
}

/// Writes the tables for `cpus` processors and these devices. With `msi` the guest may use messages of PCI devices.
///
/// # Errors
/// [`BootError::BootParameters`] when the tables do not fit into their range.
pub fn write_tables(memory: &GuestMemoryMmap, cpus: u8, devices: &[VirtioDevice], msi: bool) -> Result<(), BootError> {
    // The root pointer has the first address. The other tables are placed behind it.
    let mut next = ACPI + (Rsdp::len() as u64).next_multiple_of(64);
    let mut put = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(64);
        if next > RESET_VECTOR {
            return Err(BootError::BootParameters(
                "the ACPI tables do not fit below the reset vector".to_owned(),
            ));
        }
        write(memory, at, &bytes).map(|()| at)
    };
    let dsdt = put(&dsdt(devices))?;
    let fadt = put(&fadt(dsdt, msi))?;
    let madt = put(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    write(memory, ACPI, &rsdp)
}

fn write(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|error| BootError::BootParameters(error.to_string()))
}

fn fadt(dsdt: u64, msi: bool) -> acpi_tables::fadt::FADT {
    let register = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = (BOOT_ARCH | if msi { 0 } else { NO_MSI }).into();
    fadt.reset_reg = register(I8042 + RESET_PORT);
    fadt.reset_value = RESET;
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_CONTROL + 1);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(LAPIC_BASE),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // This IOAPIC has all GSIs from 0 on. Its ID follows the IDs of the processors.
    madt.add_structure(IoApic::new(cpus, Ioapic::BASE as u32, 0));
    madt
}

fn dsdt(devices: &[VirtioDevice]) -> Sdt {
    let mut code = Vec::new();
    let s5: u8 = S5;
    let zero: u8 = 0;
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&s5, &zero, &zero, &zero])).to_aml_bytes(&mut code);

    let serial_id = aml::EISAName::new("PNP0501");
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &serial_id),
            &aml::Name::new("_UID".into(), &zero),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(COM1, COM1, 1, 8), &level_high(SERIAL_GSI, false)]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);

    for (number, device) in devices.iter().enumerate() {
        let uid = number as u32;
        aml::Device::new(
            // At most 8 devices, so that one digit names each.
            format!("_SB_.VIO{number}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &uid),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Memory32Fixed::new(true, device.window as u32, device.size as u32),
                        &level_high(device.gsi, device.shared),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(&mut code);
    }
    code.extend(pci::aml::bus());
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

fn level_high(gsi: Gsi, shared: bool) -> aml::Interrupt {
    let (consumer, edge_triggered, active_low) = (true, false, false);
    aml::Interrupt::new(consumer, edge_triggered, active_low, shared, gsi.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::boot::memory_map::HIGH_START;

    #[test]
    fn every_line_is_declared_level_and_high() {
        let device = |gsi, shared| VirtioDevice {
            window: 0xd000_0000,
            size: 0x200,
            gsi: Gsi(gsi),
            shared,
        };
        let table = dsdt(&[device(16, false), device(16, true)]);
        let descriptors: Vec<&[u8]> = table
            .as_slice()
            .windows(9)
            .filter(|bytes| bytes.starts_with(&[0x89, 6, 0]))
            .collect();
        // Flags: bit 0 consumer, bit 1 edge, bit 2 active-low, bit 3 shared.
        assert_eq!(
            descriptors,
            [
                &[0x89, 6, 0, 0b0001, 1, 4, 0, 0, 0][..],
                &[0x89, 6, 0, 0b0001, 1, 16, 0, 0, 0],
                &[0x89, 6, 0, 0b1001, 1, 16, 0, 0, 0],
            ]
        );
    }

    #[test]
    fn the_tables_are_where_a_kernel_looks_and_sum_up_to_zero() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), HIGH_START as usize)]).unwrap();
        write_tables(&memory, 4, &[], false).unwrap();
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let table = |at: u64| {
            let length = u32::from_le_bytes(read(at + 4, 4).try_into().unwrap());
            let bytes = read(at, length as usize);
            assert_eq!(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
            bytes
        };
        let quad = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let rsdp = read(ACPI, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(quad(&rsdp, 24));
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let (fadt, madt) = (table(quad(&xsdt, 36)), table(quad(&xsdt, 44)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        assert_eq!(&table(quad(&fadt, 140))[..4], b"DSDT");
    }
}
