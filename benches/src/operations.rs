// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Single operations on the userspace controllers: timed by criterion, and counted in instructions.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use interrupt_core::{Delivery, EoiNotifier as _, Gsi, Listener, LoweredBy, Msi, MsiOutput, PinMask};
use rustix::event::EventfdFlags;
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio as _, DevicePio as _};

use crate::Result;

/// One operation, prepared to run a given number of times.
pub type Ready = Box<dyn FnMut(u64) -> Result<()>>;

/// The closure contains the loop, so that the time excludes the call of the closure.
fn repeat(mut operation: impl FnMut() -> Result<()> + 'static) -> Result<Ready> {
    Ok(Box::new(move |count| (0..count).try_for_each(|_| operation())))
}

/// An operation: its name, which begins with the controller's name, and the function that prepares it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The name: controller and operation.
    pub name: &'static str,
    make: fn() -> Result<Ready>,
}

impl Operation {
    /// Prepares the operation.
    ///
    /// # Errors
    /// The errors of building a controller.
    pub fn ready(&self) -> Result<Ready> {
        (self.make)()
    }

    /// The operation of a name.
    pub fn of(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|operation| operation.name == name)
    }
}

/// All operations. A pair of operations that undo each other counts as one.
pub const ALL: [Operation; 10] = [
    Operation {
        name: "ioapic/assert, EOI, listener",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Taker))?);
            let source = chip.source(Gsi(PIN), "device", LoweredBy::Eoi)?;
            let guard = chip.subscribe(source.key().into(), counting())?;
            repeat(move || {
                let _ = &guard;
                source.assert()?;
                chip.eoi(VECTOR);
                Ok(())
            })
        },
    },
    // The work of crosvm's IOAPIC for one interrupt: a write to the pin's irqfd, and a write to the device's resample
    // eventfd.
    Operation {
        name: "ioapic/assert to eventfd, EOI, resample to eventfd",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Irqfd(eventfd()?)))?);
            let source = chip.source(Gsi(PIN), "device", LoweredBy::Eoi)?;
            let guard = chip.subscribe(source.key().into(), Listener::fd(eventfd()?))?;
            repeat(move || {
                let _ = &guard;
                source.assert()?;
                chip.eoi(VECTOR);
                Ok(())
            })
        },
    },
    // The same work after a write to the device's own eventfd, which this process reads: three writes and one read.
    Operation {
        name: "ioapic/device's eventfd to eventfd, EOI, resample to eventfd",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Irqfd(eventfd()?)))?);
            let source = chip.source(Gsi(PIN), "device", LoweredBy::Eoi)?;
            let guard = chip.subscribe(source.key().into(), Listener::fd(eventfd()?))?;
            let trigger = eventfd()?;
            repeat(move || {
                let _ = &guard;
                rustix::io::write(&trigger, &1u64.to_ne_bytes())?;
                rustix::io::read(&trigger, &mut [0; 8])?;
                source.assert()?;
                chip.eoi(VECTOR);
                Ok(())
            })
        },
    },
    Operation {
        name: "ioapic/assert, deliver, deassert",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Taker))?);
            // Edge-triggered, so that each rise is delivered without an EOI in between.
            write(&chip, 0x10, VECTOR.into());
            let source = chip.source(Gsi(PIN), "device", LoweredBy::Device)?;
            repeat(move || {
                source.assert()?;
                source.deassert()?;
                Ok(())
            })
        },
    },
    Operation {
        name: "ioapic/EOI of an unrelated vector",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Taker))?);
            repeat(move || {
                chip.eoi(black_box(0x99));
                Ok(())
            })
        },
    },
    Operation {
        name: "ioapic/mask, unmask",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Taker))?);
            repeat(move || {
                write(&chip, 0x10, black_box(ENTRY | MASKED));
                write(&chip, 0x10, black_box(ENTRY));
                Ok(())
            })
        },
    },
    Operation {
        name: "ioapic/change of vector, and back",
        make: || {
            let chip = programmed(Ioapic::builder().build(Arc::new(Taker))?);
            repeat(move || {
                write(&chip, 0x10, black_box(ENTRY + 0x40));
                write(&chip, 0x10, black_box(ENTRY));
                Ok(())
            })
        },
    },
    Operation {
        name: "8259/assert, INTA, EOI, listener",
        make: || {
            let pic = Pic::new(|| {});
            pic.pio_write(PioAddress(0x4d0), 0, &[1 << PIN]);
            let source = pic.source(Gsi(PIN), "device", LoweredBy::Eoi)?;
            let guard = pic.subscribe(source.key().into(), counting())?;
            repeat(move || {
                let _ = &guard;
                source.assert()?;
                black_box(pic.acknowledge());
                pic.pio_write(PioAddress(0x20), 0, &[0x20]);
                Ok(())
            })
        },
    },
    Operation {
        name: "8259/EOI of nothing",
        make: || {
            let pic = Pic::new(|| {});
            repeat(move || {
                pic.pio_write(PioAddress(0x20), 0, black_box(&[0x20]));
                Ok(())
            })
        },
    },
    Operation {
        name: "8259/mask, unmask",
        make: || {
            let pic = Pic::new(|| {});
            repeat(move || {
                pic.pio_write(PioAddress(0x21), 0, black_box(&[1 << PIN]));
                pic.pio_write(PioAddress(0x21), 0, black_box(&[0]));
                Ok(())
            })
        },
    },
];

/// Accepts every message and discards it.
#[derive(Debug)]
pub struct Taker;

impl MsiOutput for Taker {
    fn send_msi(&self, _: Gsi, message: Msi) -> interrupt_core::Result<Delivery> {
        black_box(message);
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> interrupt_core::Result<()> {
        Ok(())
    }
}

/// Signals an eventfd for each message, as an output with an irqfd for each message does.
#[derive(Debug)]
struct Irqfd(OwnedFd);

impl MsiOutput for Irqfd {
    fn send_msi(&self, gsi: Gsi, _: Msi) -> interrupt_core::Result<Delivery> {
        let written = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        written.map_err(|errno| interrupt_core::Error::Os {
            operation: "write(irqfd)",
            gsi,
            source: errno.into(),
        })?;
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> interrupt_core::Result<()> {
        Ok(())
    }
}

fn eventfd() -> Result<OwnedFd> {
    Ok(rustix::event::eventfd(
        0,
        EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
    )?)
}

const PIN: u32 = 5;
/// The vector of pin 5 of a [`programmed`] chip.
const VECTOR: u8 = 0x31;
const LEVEL: u32 = 1 << 15;
const ENTRY: u32 = LEVEL | VECTOR as u32;
const MASKED: u32 = 1 << 16;

fn write(ioapic: &Ioapic, offset: u64, value: u32) {
    ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
}

/// The chip with all pins programmed as a guest programs them: level-triggered, each with its own vector. The index
/// register is left on pin 5.
pub fn programmed(chip: Ioapic) -> Ioapic {
    for pin in (0..64).chain([PIN]) {
        write(&chip, 0x00, 0x10 + 2 * pin);
        write(&chip, 0x10, ENTRY - PIN + pin);
    }
    chip
}

/// The vector of a pin of a [`programmed`] chip.
pub fn vector(pin: u32) -> u8 {
    (u32::from(VECTOR) - PIN + pin) as u8
}

/// A listener in this process.
pub fn counting() -> Listener {
    let told = Arc::new(AtomicU64::new(0));
    Listener::callback(move |_| {
        told.fetch_add(1, Ordering::Relaxed);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each timed operation has the effect of its name: the test checks the outcome on a chip that is made in the same
    /// way.
    #[test]
    fn every_operation_can_be_repeated() {
        for operation in &ALL {
            let mut ready = operation.ready().unwrap();
            ready(100).unwrap();
        }
    }

    #[test]
    fn the_round_goes_all_the_way() {
        let chip = programmed(Ioapic::builder().build(Arc::new(Taker)).unwrap());
        let source = chip.source(Gsi(PIN), "device", LoweredBy::Eoi).unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let _guard = chip.subscribe(source.key().into(), listener).unwrap();
        for _ in 0..10 {
            assert_eq!(source.assert().unwrap(), Delivery::Delivered(1));
            chip.eoi(VECTOR);
        }
        assert_eq!(told.load(Ordering::Relaxed), 10);
        chip.eoi(vector(PIN + 1));
        assert_eq!(told.load(Ordering::Relaxed), 10, "another pin's vector");
    }
}
