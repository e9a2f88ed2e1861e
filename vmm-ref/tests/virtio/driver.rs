// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of our own, which may break the rules.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use interrupt_core::testing::RecordingPin;
use interrupt_core::{Gsi, Level, LevelInterrupt, Line, LoweredBy};
use vm_device::DeviceMmio as _;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_ref::linux::virtio::backend::Backend;
use vmm_ref::linux::virtio::block::Block;
use vmm_ref::linux::virtio::disk::Disk;
use vmm_ref::linux::virtio::mmio::Mmio;
use vmm_sys_util::eventfd::EventFd;

pub const MEMORY: u64 = 0x10_0000;
pub const TABLE: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const HEADER: u64 = 0x4000;
pub const STATUS: u64 = 0x4100;
pub const DATA: u64 = 0x1_0000;
pub const QUEUE_SIZE: u16 = 16;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const READ_SECTORS: u32 = 0;
pub const WRITE_SECTORS: u32 = 1;
pub const FLUSH: u32 = 4;

/// The features that a driver of version 1 chooses at least, and the one for flushes.
pub const VERSION_1: u64 = 1 << 32;
pub const CAN_FLUSH: u64 = 1 << 9;

/// Register offsets (section 4.2.2).
pub mod register {
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS: u64 = 0x80;
    pub const AVAILABLE: u64 = 0x90;
    pub const USED: u64 = 0xa0;
    pub const CAPACITY: u64 = 0x100;
}

pub const FEATURES_OK: u32 = 8;
pub const DRIVER_OK: u32 = 4;
pub const NEEDS_RESET: u32 = 0x40;

/// A descriptor as it is in the table.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub u64, pub u32, pub u16, pub u16);

/// A device, and what a driver knows of it.
pub struct Driver {
    pub memory: Arc<GuestMemoryMmap>,
    pub device: Arc<Mmio>,
    pub line: Arc<Line<RecordingPin>>,
    available: u16,
}

impl Driver {
    pub fn of(backend: Box<dyn Backend>) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let line = Line::new(Gsi(16), RecordingPin::default());
        let device_line = LevelInterrupt::new(Arc::new(line.source("device", LoweredBy::Eoi)), &*line).unwrap();
        let kick = Arc::new(EventFd::new(0).unwrap());
        Self {
            device: Mmio::new(Arc::clone(&memory), device_line, kick, backend),
            memory,
            line,
            available: 0,
        }
    }

    /// A block device on a disk, set up.
    pub fn of_disk(disk: &TestDisk, read_only: bool) -> Self {
        let mut driver = Self::of(Box::new(Block::new(Disk::open(&disk.0, read_only).unwrap())));
        driver.set_up(VERSION_1 | CAN_FLUSH);
        driver
    }

    pub fn get(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.device.mmio_read(MmioAddress(0), register, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn set(&self, register: u64, value: u32) {
        self.device.mmio_write(MmioAddress(0), register, &value.to_le_bytes());
    }

    /// Reset to DRIVER_OK; whether the device took the features.
    pub fn set_up(&mut self, features: u64) -> bool {
        self.set(register::STATUS, 0);
        self.available = 0;
        for ring in [AVAILABLE, USED] {
            self.memory.write_slice(&[0; 0x200], GuestAddress(ring)).unwrap();
        }
        for half in [0, 1] {
            self.set(register::DRIVER_FEATURES_SELECT, half);
            self.set(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.set(register::STATUS, 3 | FEATURES_OK);
        self.set(register::QUEUE_SIZE, QUEUE_SIZE.into());
        self.set(register::DESCRIPTORS, TABLE as u32);
        self.set(register::AVAILABLE, AVAILABLE as u32);
        self.set(register::USED, USED as u32);
        self.set(register::QUEUE_READY, 1);
        let taken = self.get(register::STATUS) & FEATURES_OK != 0;
        self.set(register::STATUS, 3 | FEATURES_OK | DRIVER_OK);
        taken
    }

    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.describe_at(TABLE + u64::from(index) * 16, descriptor);
    }

    pub fn describe_at(&self, at: u64, Descriptor(address, length, flags, next): Descriptor) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Puts the chain at `head` into the ring, and has the device serve it.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
        self.device.shared().serve();
    }

    pub fn set_available_index(&self, index: u16) {
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// The requests that the device has done.
    pub fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// How many bytes the device says that it wrote for request `number`.
    pub fn used_length(&self, number: u16) -> u32 {
        let slot = USED + 4 + u64::from(number % QUEUE_SIZE) * 8;
        self.memory.read_obj(GuestAddress(slot + 4)).unwrap()
    }

    pub fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(0xff_u8, GuestAddress(STATUS)).unwrap();
    }

    /// A request with `length` bytes at [`DATA`]; the status that it ends with.
    pub fn request(&mut self, kind: u32, sector: u64, length: u32) -> u8 {
        self.header(kind, sector);
        let data_flags = if kind == WRITE_SECTORS { NEXT } else { NEXT | WRITE };
        self.describe(0, Descriptor(HEADER, 16, NEXT, if length == 0 { 2 } else { 1 }));
        self.describe(1, Descriptor(DATA, length, data_flags, 2));
        self.describe(2, Descriptor(STATUS, 1, WRITE, 0));
        self.offer(0);
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    pub fn data(&self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }

    pub fn level(&self) -> Level {
        self.line.level()
    }

    /// The guest's handler: reads the status and acknowledges what it says.
    pub fn handle(&self) -> u32 {
        let causes = self.get(register::INTERRUPT_STATUS);
        self.set(register::INTERRUPT_ACKNOWLEDGE, causes);
        causes
    }
}

/// A file that goes with the test.
pub struct TestDisk(pub PathBuf);

impl TestDisk {
    pub fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vmm-ref-disk-{}-{number}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    /// Of so many sectors, each byte that of its sector.
    pub fn of_sectors(sectors: u8) -> Self {
        let content: Vec<u8> = (0..sectors).flat_map(|sector| [sector; 512]).collect();
        Self::new(&content)
    }

    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.0).unwrap()
    }
}

impl Drop for TestDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
