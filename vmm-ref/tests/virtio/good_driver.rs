// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that keeps the rules.

use interrupt_core::Level;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_ref::linux::virtio::entropy::Entropy;

use crate::driver::{
    CAN_FLUSH, DATA, Descriptor, Driver, FLUSH, HEADER, INDIRECT, NEXT, READ_SECTORS, STATUS, TestDisk, VERSION_1,
    WRITE, WRITE_SECTORS, register,
};

#[test]
fn what_is_read_is_what_is_on_the_disk() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    assert_eq!(driver.get(register::CAPACITY), 8);
    assert_eq!(driver.request(READ_SECTORS, 3, 1024), 0);
    assert_eq!(driver.data(1024), [[3; 512], [4; 512]].concat());
    assert_eq!(
        (driver.used_index(), driver.used_length(0)),
        (1, 1025),
        "the data and the status"
    );
}

#[test]
fn what_is_written_is_on_the_disk_before_the_driver_is_told() {
    let disk = TestDisk::of_sectors(8);
    for features in [VERSION_1 | CAN_FLUSH, VERSION_1] {
        let mut driver = Driver::of_disk(&disk, false);
        driver.set_up(features);
        let content = [features as u8 ^ 0x55; 1024];
        driver.memory.write_slice(&content, GuestAddress(DATA)).unwrap();
        assert_eq!(driver.request(WRITE_SECTORS, 6, 1024), 0);
        assert_eq!(disk.content()[6 * 512..], content);
        assert_eq!(driver.request(FLUSH, 0, 0), 0);
        assert_eq!(disk.content().len(), 8 * 512);
    }
}

#[test]
fn the_line_is_high_from_the_request_to_its_acknowledgement() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    assert_eq!(driver.level(), Level::Low);
    driver.request(READ_SECTORS, 0, 512);
    assert_eq!(driver.level(), Level::High);
    driver.request(READ_SECTORS, 0, 512);
    assert_eq!(driver.handle(), 1);
    assert_eq!(driver.level(), Level::Low);
    assert_eq!(driver.handle(), 0, "nothing is left of it");
    let counts = driver.device.shared().interrupt().counts();
    assert_eq!(
        (counts.raised, counts.errors),
        (1, 0),
        "the second request found the line high"
    );
}

#[test]
fn a_reset_lowers_the_line() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    driver.request(READ_SECTORS, 0, 512);
    driver.set(register::STATUS, 0);
    assert_eq!(driver.level(), Level::Low);
    assert_eq!(driver.get(register::STATUS), 0);
    driver.set_up(VERSION_1);
    assert_eq!(driver.request(READ_SECTORS, 1, 512), 0, "and it works again");
}

#[test]
fn a_header_in_pieces_and_an_indirect_table_are_as_good() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    let table = 0x5000;
    driver.header(READ_SECTORS, 5);
    driver.describe_at(table, Descriptor(HEADER, 7, NEXT, 1));
    driver.describe_at(table + 16, Descriptor(HEADER + 7, 9, NEXT, 2));
    driver.describe_at(table + 32, Descriptor(DATA, 100, NEXT | WRITE, 3));
    driver.describe_at(table + 48, Descriptor(DATA + 100, 412, NEXT | WRITE, 4));
    driver.describe_at(table + 64, Descriptor(STATUS, 1, WRITE, 0));
    driver.describe(0, Descriptor(table, 5 * 16, INDIRECT, 0));
    driver.offer(0);
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
    assert_eq!(driver.data(512), [5; 512]);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    for half in [0, 1] {
        driver.set(register::DEVICE_FEATURES_SELECT, half);
        assert_ne!(driver.get(register::DEVICE_FEATURES), 0);
    }
    assert!(driver.set_up(VERSION_1));
    assert!(!driver.set_up(CAN_FLUSH), "a driver of an earlier version");
    assert!(!driver.set_up(VERSION_1 | 1 << 40));
    assert_eq!(driver.request(READ_SECTORS, 0, 512), 0xff, "the device has not started");
}

#[test]
fn random_bytes_are_written_and_counted() {
    let mut driver = Driver::of(Box::new(Entropy));
    driver.set_up(VERSION_1);
    driver.describe(0, Descriptor(DATA, 64, WRITE, 0));
    driver.offer(0);
    assert_eq!(driver.used_length(0), 64);
    let first = driver.data(64);
    assert_ne!(first, [0; 64]);
    driver.offer(0);
    assert_ne!(driver.data(64), first);
    driver.describe(0, Descriptor(DATA, 0x8_0000, WRITE, 0));
    driver.offer(0);
    assert_eq!(driver.used_length(2), 4096, "no more at once");
}
