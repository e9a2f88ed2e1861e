// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that breaks the rules: the device needs a reset, says so, touches nothing more, and works after the reset.

use interrupt_core::Level;

use crate::driver::{
    AVAILABLE, CAN_FLUSH, DATA, Descriptor, Driver, HEADER, INDIRECT, MEMORY, NEEDS_RESET, NEXT, QUEUE_SIZE,
    READ_SECTORS, STATUS, TABLE, TestDisk, USED, VERSION_1, WRITE, register,
};

/// Looks at a device that should need a reset because of `why`, resets it, and sees it work.
fn needs_reset(driver: &mut Driver, what: &str, why: &str) {
    let trouble = driver.device.shared().trouble().map(|trouble| trouble.to_string());
    let trouble = trouble.unwrap_or_else(|| panic!("{what}: it did not mind"));
    assert!(trouble.contains(why), "{what}: {trouble}");
    assert_eq!(driver.get(register::STATUS) & NEEDS_RESET, NEEDS_RESET, "{what}");
    assert_eq!(driver.used_index(), 0, "{what}: nothing was done");
    assert_eq!(driver.level(), Level::High, "{what}: the driver is told");
    assert_eq!(driver.handle(), 2, "{what}: of its configuration");
    assert_eq!(
        driver.request(READ_SECTORS, 0, 512),
        0xff,
        "{what}: and is served no more"
    );
    assert!(driver.set_up(VERSION_1 | CAN_FLUSH), "{what}");
    assert_eq!(driver.get(register::STATUS) & NEEDS_RESET, 0, "{what}");
    assert_eq!(driver.request(READ_SECTORS, 2, 512), 0, "{what}");
    assert_eq!(driver.data(512), [2; 512], "{what}");
}

#[test]
fn chains_that_are_none() {
    let disk = TestDisk::of_sectors(8);
    let header = Descriptor(HEADER, 16, NEXT, 1);
    let status = Descriptor(STATUS, 1, WRITE, 0);
    let read = |address, length| [header, Descriptor(address, length, NEXT | WRITE, 2), status];
    for (what, chain, why) in [
        (
            "a loop of one",
            [Descriptor(HEADER, 16, NEXT, 0), status, status],
            "is a loop",
        ),
        (
            "a loop of three",
            [
                header,
                Descriptor(DATA, 512, NEXT | WRITE, 2),
                Descriptor(STATUS, 1, NEXT | WRITE, 1),
            ],
            "is a loop",
        ),
        (
            "a next one beyond the table",
            [header, Descriptor(DATA, 512, NEXT | WRITE, QUEUE_SIZE), status],
            "leads out of its table",
        ),
        (
            "an address beyond memory",
            read(MEMORY, 512),
            "0x100000 are not in the guest's memory",
        ),
        (
            "an end beyond memory",
            read(MEMORY - 511, 512),
            "not in the guest's memory",
        ),
        (
            "an address that overflows",
            read(u64::MAX - 10, 512),
            "not in the guest's memory",
        ),
        ("an absurd length", read(DATA, u32::MAX), "longer than 4 GiB"),
        (
            "a length of all the memory",
            read(DATA, MEMORY as u32),
            "1048576 bytes at 0x10000",
        ),
        (
            "a header beyond memory",
            [Descriptor(MEMORY - 8, 16, NEXT, 2), status, status],
            "not in the guest's memory",
        ),
        (
            "to read after to write",
            [
                Descriptor(STATUS, 1, NEXT | WRITE, 1),
                Descriptor(HEADER, 16, 0, 0),
                status,
            ],
            "after one to write",
        ),
        (
            "a short header",
            [Descriptor(HEADER, 15, NEXT, 2), status, status],
            "too short for its header",
        ),
        (
            "no status",
            [Descriptor(HEADER, 16, 0, 0), status, status],
            "too short for its status",
        ),
        (
            "a status of no bytes",
            [Descriptor(HEADER, 16, NEXT, 1), Descriptor(STATUS, 0, WRITE, 0), status],
            "too short for its status",
        ),
        (
            "an indirect table of half a descriptor",
            [Descriptor(0x5000, 24, INDIRECT, 0), status, status],
            "not in the table",
        ),
        (
            "an indirect table of none",
            [Descriptor(0x5000, 0, INDIRECT, 0), status, status],
            "not in the table",
        ),
        (
            "an indirect table beyond memory",
            [Descriptor(MEMORY, 64, INDIRECT, 0), status, status],
            "not in the table",
        ),
    ] {
        let mut driver = Driver::of_disk(&disk, true);
        driver.header(READ_SECTORS, 0);
        for (index, descriptor) in chain.into_iter().enumerate() {
            driver.describe(index as u16, descriptor);
        }
        driver.offer(0);
        needs_reset(&mut driver, what, why);
    }
}

#[test]
fn an_indirect_table_in_itself() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    driver.describe(0, Descriptor(0x5000, 32, INDIRECT, 0));
    driver.describe_at(0x5000, Descriptor(HEADER, 16, NEXT, 1));
    driver.describe_at(0x5010, Descriptor(0x5000, 32, INDIRECT, 0));
    driver.offer(0);
    needs_reset(&mut driver, "nested tables", "leads out of its table");
}

#[test]
fn a_head_beyond_the_table() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    driver.offer(QUEUE_SIZE);
    needs_reset(
        &mut driver,
        "a head beyond the table",
        "the descriptor 16 is not in the table",
    );
}

#[test]
fn an_index_that_jumps() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    driver.set_available_index(QUEUE_SIZE + 1);
    driver.device.shared().serve();
    needs_reset(&mut driver, "an index that jumps", "available ring");
}

#[test]
fn queues_that_are_none() {
    let disk = TestDisk::of_sectors(8);
    let beyond = MEMORY as u32;
    for (what, register, value, why) in [
        ("no power of two", register::QUEUE_SIZE, 3, "size"),
        ("larger than it may be", register::QUEUE_SIZE, 512, "size"),
        ("of an absurd size", register::QUEUE_SIZE, u32::MAX, "size"),
        (
            "a table out of line",
            register::DESCRIPTORS,
            TABLE as u32 + 1,
            "alignment",
        ),
        (
            "a ring out of line",
            register::AVAILABLE,
            AVAILABLE as u32 + 1,
            "alignment",
        ),
        ("a used ring out of line", register::USED, USED as u32 + 2, "alignment"),
        (
            "a table beyond memory",
            register::DESCRIPTORS,
            beyond - 16,
            "not in the guest's memory",
        ),
        (
            "a ring beyond memory",
            register::AVAILABLE,
            beyond,
            "not in the guest's memory",
        ),
        (
            "a used ring beyond memory",
            register::USED,
            beyond - 4,
            "not in the guest's memory",
        ),
        (
            "a table above 4 GiB",
            register::DESCRIPTORS + 4,
            1,
            "not in the guest's memory",
        ),
        ("no ring", register::AVAILABLE, 0, "not in the guest's memory"),
    ] {
        let mut driver = Driver::of_disk(&disk, true);
        driver.set(register::STATUS, 0);
        for half in [0, 1] {
            driver.set(register::DRIVER_FEATURES_SELECT, half);
            driver.set(register::DRIVER_FEATURES, (VERSION_1 >> (32 * half)) as u32);
        }
        driver.set(register::STATUS, 3 | 8);
        for (place, address) in [
            (register::DESCRIPTORS, TABLE),
            (register::AVAILABLE, AVAILABLE),
            (register::USED, USED),
        ] {
            driver.set(place, address as u32);
        }
        driver.set(register, value);
        driver.set(register::QUEUE_READY, 1);
        driver.set(register::STATUS, 3 | 8 | 4);
        needs_reset(&mut driver, what, why);
    }
}
