// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bits of the IOAPIC's registers, against the datasheet.

use super::*;

/// Case E1.
#[test]
fn an_entry_reads_as_the_datasheet_lays_it_out() {
    let entry = RedirectionEntry::from_bits(0x3a00_0000_0000_965f);
    assert_eq!(entry.vector(), 0x5f);
    assert_eq!(entry.delivery_mode(), DeliveryMode::Reserved);
    assert!(!entry.is_logical());
    assert_ne!(entry.bits() & RedirectionEntry::DELIVERY_STATUS, 0);
    assert_eq!(entry.bits() & (1 << 13), 0);
    assert!(!entry.remote_irr());
    assert_ne!(entry.bits() & RedirectionEntry::LEVEL, 0);
    assert!(!entry.is_masked());
    assert_eq!(entry.destination(), 0x3a);
}

/// Cases E8 and E9.
#[test]
fn a_message_has_the_destination_in_its_address_and_the_rest_in_its_data() {
    let message = |bits| RedirectionEntry::from_bits(bits).message().unwrap();
    let lowest_priority = message(0xab00_0000_0000_0800 | 1 << 8 | 0x77 | RedirectionEntry::LEVEL);
    assert_eq!((lowest_priority.address, lowest_priority.data), (0xfeea_b004, 0x8177));
    let fixed = message(0x31 | RedirectionEntry::LEVEL);
    assert_eq!((fixed.address, fixed.data), (0xfee0_0000, 0x8031));
    // Destination 0x1234: bits 63:56 and 55:49; bit 48 is no part of it.
    let extended = message(0x3425_0000_0000_0031);
    assert_eq!(extended.address, 0xfee3_4240);
}

#[test]
fn an_illegal_vector_or_mode_is_no_message() {
    for bits in [0x0f, 0x10f, 0x300 | 0x31, 0x600 | 0x31] {
        assert_eq!(RedirectionEntry::from_bits(bits).message(), None, "{bits:#x}");
    }
    // NMI, INIT and ExtINT have no vector of their own.
    assert!(RedirectionEntry::from_bits(0x400).message().is_some());
}

#[test]
fn what_no_local_apic_ends_is_an_edge() {
    let nmi = RedirectionEntry::from_bits(0x400 | RedirectionEntry::LEVEL);
    assert_eq!(nmi.trigger(), Trigger::Edge);
    assert_eq!(nmi.message().unwrap().data, 0x400);
}

#[test]
fn read_only_bits_survive_a_write() {
    let both = RedirectionEntry::READ_ONLY | RedirectionEntry::LEVEL;
    let entry = RedirectionEntry::from_bits(both);
    let level = RedirectionEntry::LEVEL as u32;
    assert_eq!(entry.written(Half::Low, level).bits(), both);
    let edge = entry.written(Half::Low, 0);
    assert_eq!(edge.bits(), RedirectionEntry::DELIVERY_STATUS);
    let high = entry.written(Half::High, 0xffff_ffff);
    assert_eq!(high.bits(), 0xffff_ffff_0000_0000 | both);
    let idle = RedirectionEntry::from_bits(RedirectionEntry::LEVEL);
    let ones = idle.written(Half::Low, 0xffff_ffff);
    assert_eq!(ones.bits() & RedirectionEntry::READ_ONLY, 0);
}

#[test]
fn an_entry_prints_as_a_person_reads_it() {
    let entry = RedirectionEntry::from_bits(0x0300_0000_0000_c831);
    assert_eq!(
        entry.to_string(),
        "vector 0x31, fixed, level, to logical 0x3, in service"
    );
    assert_eq!(
        format!("{:?}", RedirectionEntry::RESET),
        "0x0000000000010000 (vector 0x00, fixed, edge, to physical 0x0, masked)"
    );
}

#[test]
fn every_index_selects_what_the_datasheet_says() {
    assert_eq!(Register::at(0x02), Register::Arbitration);
    assert_eq!(Register::at(0x0f), Register::Reserved);
    assert_eq!(
        Register::at(0x10),
        Register::Entry {
            pin: 0,
            half: Half::Low
        }
    );
    assert_eq!(
        Register::at(0x3f),
        Register::Entry {
            pin: 23,
            half: Half::High
        }
    );
    assert_eq!(version_register(0x20, 24), 0x0017_0020);
}
