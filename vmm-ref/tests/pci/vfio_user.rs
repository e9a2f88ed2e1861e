// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory and a device's registers, at a vfio-user server.

#[path = "../../../crates/vfio-intx/examples/vfio-user-edu/edu.rs"]
#[allow(dead_code, reason = "the server, and not its device")]
mod edu;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread;

use edu::Intx;
use testkit::harness::Suite;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_ref::linux::prepare::allocate;
use vmm_ref::pci::device::PciDevice as _;
use vmm_ref::pci::device::vfio_user::VfioUser;

pub fn tests(suite: Suite) -> Suite {
    suite
        .test("the_memory_of_a_linux_guest_is_the_servers", &[], shares_memory)
        .test("memory_in_no_file_is_refused", &[], keeps_memory)
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vmm-ref-pci-{name}-{}.sock", std::process::id()))
}

/// The guest's memory is the server's memory, below and above the gap, and its registers are the device's.
fn shares_memory() {
    const ABOVE: u64 = 0x1_0000_0000;
    let path = socket("shares");
    let server = edu::server(&path, Intx::Level).unwrap();
    let thread = thread::spawn(move || {
        let mut card = Mapped::default();
        server.run(&mut card).unwrap();
        card
    });
    let address = path.to_str().unwrap().parse().unwrap();
    let memory = allocate(4 << 30, true).unwrap();
    let device = VfioUser::connect(&address, &memory).unwrap();
    for (at, text) in [(0x1000, b"below"), (ABOVE + 0x1000, b"above")] {
        memory.write_slice(text, GuestAddress(at)).unwrap();
    }
    let sizes: Vec<_> = (0..6).map(|bar| device.bar_size(bar).unwrap()).collect();
    assert_eq!(sizes, [1 << 20, 0, 0, 0, 0, 0]);
    assert!(device.areas(0).is_empty(), "every access is a message");
    device.reset().unwrap();
    drop(device);
    let card = thread.join().unwrap();
    assert_eq!(card.resets, 1);
    let read = |at: u64| {
        let holds = |(_, start, size, _): &&(u64, u64, u64, File)| (*start..start + size).contains(&at);
        let (offset, start, _, file) = card.maps.iter().find(holds).unwrap();
        let mut text = [0; 5];
        file.read_exact_at(&mut text, offset + at - start).unwrap();
        text
    };
    assert_eq!((&read(0x1000), &read(ABOVE + 0x1000)), (b"below", b"above"));
}

/// A server cannot have memory that is in no file.
fn keeps_memory() {
    let path = socket("keeps");
    let server = edu::server(&path, Intx::Level).unwrap();
    let thread = thread::spawn(move || server.run(&mut Mapped::default()).unwrap());
    let address = path.to_str().unwrap().parse().unwrap();
    let error = VfioUser::connect(&address, &allocate(1 << 20, false).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("the guest's memory is in no file"),
        "{error}"
    );
    thread.join().unwrap();
}

/// A device that keeps what it is told of the guest's memory: offset in the file, address, size, file.
#[derive(Debug, Default)]
struct Mapped {
    maps: Vec<(u64, u64, u64, File)>,
    resets: usize,
}

impl ServerBackend for Mapped {
    fn region_read(&mut self, _: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn dma_map(&mut self, flags: DmaMapFlags, offset: u64, at: u64, size: u64, fd: Option<File>) -> io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        self.maps.push((offset, at, size, fd.unwrap()));
        Ok(())
    }
    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> io::Result<()> {
        self.resets += 1;
        Ok(())
    }
    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}
