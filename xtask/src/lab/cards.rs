// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI cards of the lab that a stock Linux has a driver for, and that assert a level INTx.
//!
//! Each network card has a link of its own, with one neighbour on it: an e1000 that the lab's own Linux drives, on
//! request (neighbours.sh). A neighbour has another pin of the chipset than its card, so that counts of interrupts do
//! not mix. The MAC addresses say which link and which end: 52:54:00:00:LINK:02 is a card, and :01 its neighbour.

use std::ffi::OsString;
use std::path::Path;

use super::arch::Arch;

/// A network card, its PCI slot on bus 0, and the slot of its neighbour.
struct NetworkCard {
    model: &'static str,
    slot: u8,
    neighbour: u8,
}

/// Links 1, 2, and so on. Two e1000 are there to share a GSI. The register window of an rtl8139 is smaller than a page,
/// so that each access traps. An e1000e has MSI-X beside INTx.
const NETWORK_CARDS: [NetworkCard; 4] = [
    NetworkCard {
        model: "e1000",
        slot: 0x0a,
        neighbour: 0x0b,
    },
    NetworkCard {
        model: "e1000",
        slot: 0x0c,
        neighbour: 0x0d,
    },
    NetworkCard {
        model: "rtl8139",
        slot: 0x0e,
        neighbour: 0x0f,
    },
    NetworkCard {
        model: "e1000e",
        slot: 0x12,
        neighbour: 0x13,
    },
];

/// The slot of a UHCI, which has registers in I/O space only. A USB stick with the guest's disk is plugged in.
const UHCI: u8 = 0x14;

/// The slot of the first edu device.
pub const EDU: u8 = 2;

/// QEMU's arguments for `edu` edu devices and for the cards, which the PC has. `disk` is the content of the USB stick.
pub fn arguments(arch: Arch, edu: u8, disk: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    for index in 0..edu {
        words.extend(["-device".into(), format!("edu,addr={:#x}", EDU + index).into()]);
    }
    if arch != Arch::X86_64 {
        return words;
    }
    for (card, link) in NETWORK_CARDS.iter().zip(1..) {
        for (model, slot, end) in [("e1000", card.neighbour, 1), (card.model, card.slot, 2)] {
            let netdev = format!("link{link}.{end}");
            words.extend([
                "-netdev".into(),
                format!("hubport,id={netdev},hubid={link}").into(),
                "-device".into(),
                format!("{model},addr={slot:#x},netdev={netdev},mac=52:54:00:00:{link:02x}:{end:02x},romfile=").into(),
            ]);
        }
    }
    let mut drive = OsString::from("if=none,id=stick,format=raw,readonly=on,file=");
    drive.push(disk);
    words.extend([
        "-device".into(),
        format!("piix3-usb-uhci,id=uhci,addr={UHCI:#x}").into(),
    ]);
    words.extend(["-drive".into(), drive]);
    words.extend(["-device".into(), "usb-storage,bus=uhci.0,drive=stick".into()]);
    words
}

/// The addresses of the devices that are bound to vfio-pci, one a line.
pub fn for_vfio(arch: Arch, edu: u8) -> String {
    let edu = EDU..EDU + edu;
    let cards = NETWORK_CARDS.iter().map(|card| card.slot).chain([UHCI]);
    edu.chain(cards.filter(|_| arch == Arch::X86_64))
        .map(|slot| format!("0000:00:{slot:02x}.0\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_one_device_and_what_is_bound_is_no_neighbour() {
        let words = arguments(Arch::X86_64, 8, Path::new("disk"));
        let mut slots: Vec<&str> = words
            .iter()
            .filter_map(|word| word.to_str()?.split("addr=").nth(1)?.split(',').next())
            .collect();
        assert_eq!(slots.len(), 8 + 2 * NETWORK_CARDS.len() + 1);
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 8 + 2 * NETWORK_CARDS.len() + 1);
        let bound = for_vfio(Arch::X86_64, 8);
        assert_eq!(bound.lines().count(), 8 + NETWORK_CARDS.len() + 1);
        for card in NETWORK_CARDS {
            assert!(!bound.contains(&format!("{:02x}.0", card.neighbour)));
            // The chipset swizzles the pins of slots over four lines.
            assert_ne!(card.slot % 4, card.neighbour % 4);
        }
    }
}
