// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk does that is not as it should be.

use std::fs::{self, File};
use std::path::Path;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_ref::linux::virtio::disk::Disk;

use crate::driver::{DATA, Driver, FLUSH, READ_SECTORS, TestDisk, WRITE_SECTORS};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn what_the_disk_does_not_have_is_an_error_of_the_request() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, false);
    for (what, kind, sector, length, status) in [
        ("the last sector", READ_SECTORS, 7, 512, OK),
        ("the one after it", READ_SECTORS, 8, 512, IO_ERROR),
        ("one half beyond the end", READ_SECTORS, 7, 1024, IO_ERROR),
        ("writing one half beyond the end", WRITE_SECTORS, 7, 1024, IO_ERROR),
        (
            "a sector that overflows",
            READ_SECTORS,
            u64::MAX / 512 + 1,
            512,
            IO_ERROR,
        ),
        ("the last sector there could be", WRITE_SECTORS, u64::MAX, 512, IO_ERROR),
        ("half a sector", READ_SECTORS, 0, 256, IO_ERROR),
        ("a request of another kind", 11, 0, 512, UNSUPPORTED),
        ("nothing", READ_SECTORS, 0, 0, OK),
    ] {
        assert_eq!(driver.request(kind, sector, length), status, "{what}");
        assert!(!driver.device.shared().needs_reset(), "{what}");
    }
    assert_eq!(
        disk.content(),
        TestDisk::of_sectors(8).content(),
        "and nothing was written"
    );
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, true);
    assert_eq!(driver.request(WRITE_SECTORS, 0, 512), IO_ERROR);
    assert_eq!(driver.request(READ_SECTORS, 1, 512), OK);
    assert_eq!(driver.request(FLUSH, 0, 0), OK);
    assert_eq!(disk.content(), TestDisk::of_sectors(8).content());
}

#[test]
fn a_disk_that_shrinks_is_an_error_and_does_not_grow_again() {
    let disk = TestDisk::of_sectors(8);
    let mut driver = Driver::of_disk(&disk, false);
    File::options()
        .write(true)
        .open(&disk.0)
        .unwrap()
        .set_len(4 * 512)
        .unwrap();
    assert_eq!(driver.request(READ_SECTORS, 3, 512), OK);
    assert_eq!(driver.request(READ_SECTORS, 4, 512), IO_ERROR);
    assert_eq!(driver.request(READ_SECTORS, 3, 1024), IO_ERROR);
    driver.memory.write_slice(&[9; 512], GuestAddress(DATA)).unwrap();
    for sector in [0, 6] {
        assert_eq!(
            driver.request(WRITE_SECTORS, sector, 512),
            IO_ERROR,
            "it would have a hole"
        );
    }
    assert_eq!(disk.content(), TestDisk::of_sectors(4).content());
    assert!(!driver.device.shared().needs_reset());
}

#[test]
fn what_is_no_disk_is_refused_with_a_way_out() {
    let refused = |path: &Path, read_only| Disk::open(path, read_only).unwrap_err().to_string();
    let partial = TestDisk::new(&[0; 1000]);
    let error = refused(&partial.0, true);
    assert!(
        error.contains("1000 bytes") && error.contains("truncate -s %512"),
        "{error}"
    );
    let error = refused(&TestDisk::new(&[]).0, true);
    assert!(error.contains("is empty; use a raw disk image"), "{error}");
    let error = refused(&std::env::temp_dir(), true);
    assert!(error.contains("is a directory"), "{error}");
    let error = refused(Path::new("/dev/null"), false);
    assert!(error.contains("neither a file nor a block device"), "{error}");
    let error = refused(Path::new("/nowhere/disk.img"), false);
    assert!(error.starts_with("--disk /nowhere/disk.img: No such file"), "{error}");
    // A program that runs cannot be opened for writing, not even by root.
    let running = fs::canonicalize("/proc/self/exe").unwrap();
    let error = refused(&running, false);
    assert!(error.contains("cannot be written") && error.contains(",ro"), "{error}");
}
