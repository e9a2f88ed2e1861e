// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's driver of an ITS: tables in memory, and the commands that map an event of a device to an LPI.
//!
//! Registers, commands and tables are those of the GIC architecture specification, ARM IHI 0069, chapters 5 and 12. KVM's
//! tables have pages of 64 KiB (arch/arm64/kvm/vgic/vgic-its.c).

use crate::gic::{ITS, REDISTRIBUTOR};
use crate::gic_machine::GicMachine;

/// Where a device writes its messages: GITS_TRANSLATER.
pub const TRANSLATER: u64 = ITS + 0x1_0040;
/// The first interrupt ID of an LPI.
pub const FIRST_LPI: u32 = 8192;

const CONFIGURATION: u64 = 0x1_0000;
const PENDING: u64 = 0x2_0000;
const DEVICES: u64 = 0x3_0000;
const COLLECTIONS: u64 = 0x4_0000;
const QUEUE: u64 = 0x5_0000;
const TRANSLATIONS: u64 = 0x6_0000;

const VALID: u64 = 1 << 63;

impl GicMachine {
    /// Turns on the LPIs of the CPU and the ITS at [`ITS`], and maps event 0 of `device` to [`FIRST_LPI`].
    pub fn map_lpi(&mut self, device: u32) {
        const PRIORITY_AND_ENABLED: u8 = 0xa0 | 1;
        const ID_BITS: u64 = 16;
        self.write(CONFIGURATION, &[PRIORITY_AND_ENABLED]);
        self.store_long(REDISTRIBUTOR + 0x70, CONFIGURATION | (ID_BITS - 1)); // GICR_PROPBASER
        self.store_long(REDISTRIBUTOR + 0x78, PENDING); // GICR_PENDBASER
        self.store(REDISTRIBUTOR, 1); // GICR_CTLR: LPIs on

        self.store_long(ITS + 0x100, VALID | DEVICES); // GITS_BASER0
        self.store_long(ITS + 0x108, VALID | COLLECTIONS); // GITS_BASER1
        self.store_long(ITS + 0x80, VALID | QUEUE); // GITS_CBASER
        self.store(ITS, 1); // GITS_CTLR: on

        let device = u64::from(device) << 32;
        let event_0_to_lpi = u64::from(FIRST_LPI) << 32;
        let commands = [
            [device | 0x08, 0, VALID | TRANSLATIONS, 0], // MAPD: one bit of event ID
            [0x09, 0, VALID, 0],                         // MAPC: collection 0 to CPU 0
            [device | 0x0a, event_0_to_lpi, 0, 0],       // MAPTI: in collection 0
        ];
        let bytes: Vec<u8> = commands
            .as_flattened()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        self.write(QUEUE, &bytes);
        self.store_long(ITS + 0x88, bytes.len() as u64); // GITS_CWRITER
        assert_eq!(
            self.load(ITS + 0x90),
            bytes.len() as u32,
            "GITS_CREADR: the commands are done"
        );
    }
}
