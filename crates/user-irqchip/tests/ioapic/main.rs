// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC by itself: registers, what it tells its output, saved states, and what its listeners may do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod listeners;
mod output;
mod panics;
mod registers;
mod split;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use interrupt_core::{Delivery, Error, Gsi, Msi, MsiOutput, PinMask, Result};
use user_irqchip::{Ioapic, IoapicBuilder};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const LEVEL: u64 = 0x8000;
const REMOTE_IRR: u64 = 0x4000;
const MASKED: u64 = 0x1_0000;

/// Something that the chip told its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Sent(u32, u32),
    Routed(u32, Option<(u64, u32)>),
}

/// A pin as it was programmed: address and data, and whether it is masked.
type Programmed = (Option<(u64, u32)>, bool);

/// An output that records what it is told, in order.
#[derive(Debug, Default)]
struct Sink {
    told: Mutex<Vec<Told>>,
    /// How many processors take a message; `None` makes sending fail.
    takers: Mutex<Option<Option<u32>>>,
    refuse_pins: Mutex<bool>,
    /// The pins as they were programmed last.
    pins: Mutex<BTreeMap<u32, Programmed>>,
    /// Changes of masks: pin, and its mask now.
    masks: Mutex<Vec<(u32, PinMask)>>,
}

impl Sink {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn set_takers(&self, takers: Option<u32>) {
        *self.takers.lock().unwrap() = Some(takers);
    }

    fn refuse_pins(&self, refuse: bool) {
        *self.refuse_pins.lock().unwrap() = refuse;
    }
}

fn refusal(operation: &'static str, gsi: Gsi) -> Error {
    Error::Os {
        operation,
        gsi,
        source: std::io::Error::from_raw_os_error(5),
    }
}

impl MsiOutput for Sink {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> Result<Delivery> {
        match self.takers.lock().unwrap().unwrap_or(Some(1)) {
            None => Err(refusal("deliver", gsi)),
            Some(takers) => {
                self.told.lock().unwrap().push(Told::Sent(gsi.0, message.data));
                Ok(Delivery::Delivered(takers))
            }
        }
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()> {
        if *self.refuse_pins.lock().unwrap() {
            return Err(refusal("set_pin", gsi));
        }
        let message = message.map(|message| (message.address, message.data));
        let masked = mask.is_masked();
        let mut pins = self.pins.lock().unwrap();
        let (old_message, old_masked) = pins.insert(gsi.0, (message, masked)).unwrap_or((None, true));
        assert_ne!(
            (old_message, old_masked),
            (message, masked),
            "{gsi} is told of nothing new"
        );
        if message != old_message {
            self.told.lock().unwrap().push(Told::Routed(gsi.0, message));
        }
        if masked != old_masked {
            self.masks.lock().unwrap().push((gsi.0, mask));
        }
        Ok(())
    }
}

/// The chip, its output, and a guest that writes its registers.
struct Bench {
    ioapic: Arc<Ioapic>,
    sink: Arc<Sink>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Ioapic::builder())
    }

    fn with(builder: IoapicBuilder) -> Self {
        let sink = Arc::new(Sink::default());
        Self {
            ioapic: Arc::new(builder.build(sink.clone()).unwrap()),
            sink,
        }
    }

    fn write_bytes(&self, offset: u64, data: &[u8]) {
        self.ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, data);
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) {
        self.ioapic.mmio_read(MmioAddress(Ioapic::BASE), offset, data);
    }

    fn write(&self, offset: u64, value: u32) {
        self.write_bytes(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.read_bytes(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_register(&self, index: u32, value: u32) {
        self.write(SELECT, index);
        self.write(WINDOW, value);
    }

    fn read_register(&self, index: u32) -> u32 {
        self.write(SELECT, index);
        self.read(WINDOW)
    }

    fn set_entry(&self, pin: u32, entry: u64) {
        self.write_register(0x11 + 2 * pin, (entry >> 32) as u32);
        self.set_low(pin, entry);
    }

    fn set_low(&self, pin: u32, entry: u64) {
        self.write_register(0x10 + 2 * pin, entry as u32);
    }

    fn entry(&self, pin: u32) -> u64 {
        let low = self.read_register(0x10 + 2 * pin);
        let high = self.read_register(0x11 + 2 * pin);
        let entry = u64::from(low) | u64::from(high) << 32;
        assert_eq!(self.ioapic.entry(Gsi(pin)).unwrap().bits(), entry);
        entry
    }
}
