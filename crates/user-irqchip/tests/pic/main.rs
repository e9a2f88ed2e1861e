// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 8259 pair by itself: priorities, EOIs in all forms, the cascade, spurious interrupts, initialisation, polls, states.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod eoi;
mod initialisation;
mod priorities;
mod registers;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, LoweredBy};
use user_irqchip::Pic;
use vm_device::DevicePio;
use vm_device::bus::PioAddress;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const ELCR: [u16; 2] = [0x4d0, 0x4d1];

const NON_SPECIFIC_EOI: u8 = 0x20;
const SPECIFIC_EOI: u8 = 0x60;
const ROTATE: u8 = 0x80;
const SET_PRIORITY: u8 = 0xc0;
const POLL: u8 = 0x0c;
const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;
const SPECIAL_MASK: u8 = 0x68;
const NO_SPECIAL_MASK: u8 = 0x48;

/// ICW4.
const X86: u8 = 1;
const AUTO_EOI: u8 = 2;
const SPECIAL_FULLY_NESTED: u8 = 0x10;

/// The pair, and a count of the times that INTR has risen.
struct Bench {
    pic: Arc<Pic>,
    rises: Arc<AtomicU32>,
}

impl Bench {
    /// As after power-on.
    fn raw() -> Self {
        let rises = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&rises);
        let pic = Pic::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        Self {
            pic: Arc::new(pic),
            rises,
        }
    }

    /// Initialised as a PC's BIOS does: vectors from 0x08 and 0x70, nothing masked.
    fn new() -> Self {
        Self::with(X86)
    }

    fn with(icw4: u8) -> Self {
        let bench = Self::raw();
        for (chip, base, cascade) in [(MASTER, 0x08, 4), (SLAVE, 0x70, 2)] {
            for (port, value) in [(chip, 0x11), (chip + 1, base), (chip + 1, cascade), (chip + 1, icw4)] {
                bench.outb(port, value);
            }
        }
        bench
    }

    fn outb(&self, port: u16, value: u8) {
        self.pic.pio_write(PioAddress(port), 0, &[value]);
    }

    fn inb(&self, port: u16) -> u8 {
        let mut data = [0xa5];
        self.pic.pio_read(PioAddress(port), 0, &mut data);
        data[0]
    }

    /// The requests, or the inputs in service, of both chips.
    fn read(&self, what: u8) -> [u8; 2] {
        [MASTER, SLAVE].map(|chip| {
            self.outb(chip, what);
            self.inb(chip)
        })
    }

    fn irr(&self) -> [u8; 2] {
        self.read(READ_IRR)
    }

    fn isr(&self) -> [u8; 2] {
        self.read(READ_ISR)
    }

    /// What the processor takes.
    fn take(&self) -> Option<u8> {
        self.pic.intr().then(|| self.pic.acknowledge())
    }

    fn rises(&self) -> u32 {
        self.rises.swap(0, Ordering::Relaxed)
    }

    fn source(&self, irq: u32) -> Arc<dyn LevelSource> {
        self.pic.source(Gsi(irq), "device", LoweredBy::Device).unwrap()
    }

    fn count(&self, subject: EoiScope) -> (Arc<AtomicU32>, EoiGuard) {
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (told, self.pic.subscribe(subject, listener).unwrap())
    }
}
