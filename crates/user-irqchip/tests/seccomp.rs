// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of a vCPU's thread, of which a VMM's seccomp filter has a list.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use interrupt_core::{EoiNotifier, Gsi, Irqfds, Listener, LoweredBy, Msi};
use rustix::event::{EventfdFlags, eventfd};
use user_irqchip::{Ioapic, IrqfdPins};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

/// A hypervisor whose own calls are none.
struct Silent;

impl Irqfds for Silent {
    fn bind(&self, _: BorrowedFd<'_>, _: Gsi) -> io::Result<()> {
        Ok(())
    }
    fn unbind(&self, _: BorrowedFd<'_>, _: Gsi) -> io::Result<()> {
        Ok(())
    }
    fn route(&self, _: Gsi, _: Msi) -> io::Result<()> {
        Ok(())
    }
}

fn write(ioapic: &Ioapic, register: u32, value: u32) {
    let base = MmioAddress(Ioapic::BASE);
    ioapic.mmio_write(base, 0, &register.to_le_bytes());
    ioapic.mmio_write(base, 0x10, &value.to_le_bytes());
}

#[test]
fn a_vcpu_writes_preads_and_polls_eventfds_and_no_more() {
    let pins = Arc::new(IrqfdPins::new(Arc::new(Silent), Gsi(0), 24).unwrap());
    let ioapic = Ioapic::builder().build(pins.clone()).unwrap();
    let in_process = ioapic.source(Gsi(5), "serial", LoweredBy::Device).unwrap();
    let by_irqfd = pins.source(Gsi(5), "disk").unwrap();
    let told = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let listener = Listener::fd(told.try_clone().unwrap());
    let _told = ioapic.subscribe(Gsi(5).into(), listener).unwrap();
    testkit::seccomp::with_only(&[libc::SYS_write, libc::SYS_preadv2, libc::SYS_ppoll], || {
        for low in [0x8031, 0x1_8031, 0x8032, 0x0031] {
            write(&ioapic, 0x10 + 2 * 5, low);
            in_process.assert().unwrap();
            by_irqfd.assert().unwrap();
            ioapic.eoi(0x31);
            by_irqfd.force_deassert().unwrap();
            in_process.deassert().unwrap();
        }
    });
    assert!(rustix::io::read(&told, &mut [0; 8]).is_ok(), "told of an EOI");
}
