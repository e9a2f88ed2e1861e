// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI bus in the DSDT: its windows (_CRS) and the GSIs of its interrupt pins (_PRT).
//!
//! The _PRT names GSIs and no link devices, so that no guest has to program a router. A _PRT cannot state polarity and
//! trigger mode; for such a GSI Linux assumes level-triggered and active-low, as PCI pins are. The IOAPICs of KVM and of
//! this workspace have no polarity: a line is asserted or not, and the bit that Linux sets changes nothing.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, PackageBuilder, ResourceTemplate,
};

use super::address_map::{DEVICES, IO_WINDOW, MEMORY_WINDOW, gsi};
use super::config_ports::{PORT, PORTS};

/// Any function of a device, in an address of a _PRT.
const ANY_FUNCTION: u32 = 0xffff;

/// The AML of the bus.
pub fn bus() -> Vec<u8> {
    let zero: u8 = 0;
    let id = EISAName::new("PNP0A03");
    // All bounds are in the types' ranges: the windows are below 64 KiB and below 4 GiB.
    let ports = AddressSpace::new_io(*IO_WINDOW.start() as u16, *IO_WINDOW.end() as u16, None);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        *MEMORY_WINDOW.start() as u32,
        *MEMORY_WINDOW.end() as u32,
        None,
    );
    let mut code = Vec::new();
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &id),
            &Name::new("_UID".into(), &zero),
            &Name::new("_ADR".into(), &zero),
            &Name::new("_BBN".into(), &zero),
            &Name::new("_SEG".into(), &zero),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::<u16>::new_bus_number(0, 0),
                    &IO::new(PORT, PORT, 1, PORTS as u8),
                    &ports,
                    &memory,
                ]),
            ),
            &Name::new("_PRT".into(), &pins()),
        ],
    )
    .to_aml_bytes(&mut code);
    code
}

// A package has room for 255 elements.
const _: () = assert!((DEVICES - 1) * 4 <= 255);

/// The GSI of each pin of each device.
fn pins() -> PackageBuilder {
    let (no_link, mut entries) = (0_u8, PackageBuilder::new());
    for device in 1..DEVICES as u8 {
        for pin in 1..=4_u8 {
            let address = u32::from(device) << 16 | ANY_FUNCTION;
            let (pin_number, gsi) = (pin - 1, gsi(device, pin).0);
            entries.add_element(&Package::new(vec![&address, &pin_number, &no_link, &gsi]));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_have_the_gsis_of_the_swizzle() {
        let code = bus();
        // A package of 4: DWord address, pin, 0 (no link), byte GSI.
        let entry = |device: u8, pin: u8, gsi: u8| {
            let pin = if pin > 1 { vec![0x0a, pin] } else { vec![pin] };
            [&[0x04, 0x0c, 0xff, 0xff, device, 0][..], &pin, &[0x00, 0x0a, gsi]].concat()
        };
        for (device, pin, gsi) in [(1, 0, 21), (1, 3, 20), (2, 0, 22), (4, 0, 20), (31, 1, 20)] {
            let entry = entry(device, pin, gsi);
            assert!(code.windows(entry.len()).any(|bytes| bytes == entry), "{device} {pin}");
        }
    }
}
