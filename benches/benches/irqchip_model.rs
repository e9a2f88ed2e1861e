// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the userspace IOAPIC and 8259 pair cost, on one processor, without the system calls around them.
//!
//! * `ioapic/assert, EOI, listener`: one interrupt all the way round: a level source asserts, a message is sent, the guest
//!   ends it, the line is lowered, and one listener in this process is told. The limit is 150 ns.
//! * `ioapic/EOI of an unrelated vector`: what every other EOI of the machine pays. The limit is 5 ns.
//! * `ioapic/mask, unmask`: two writes of an entry's low half through the data window. The limit is 100 ns for each.
//! * `8259/assert, INTA, EOI, listener`: the same round on the 8259 pair.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, Result};
use user_irqchip::Ioapic;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

/// Takes every message, and does nothing with it.
#[derive(Debug)]
struct Taker;

impl MsiOutput for Taker {
    fn deliver(&self, _: Gsi, message: Msi) -> Result<Delivery> {
        black_box(message);
        Ok(Delivery::Delivered(1))
    }

    fn set_route(&self, _: Gsi, _: Option<Msi>) -> Result<()> {
        Ok(())
    }

    fn set_masked(&self, _: Gsi, _: bool) -> Result<()> {
        Ok(())
    }
}

const PIN: u32 = 5;
const VECTOR: u8 = 0x31;
const ENTRY: u32 = 0x8000 | VECTOR as u32;
const MASKED: u32 = 1 << 16;

fn write(ioapic: &Ioapic, offset: u64, value: u32) {
    ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
}

/// Every pin programmed, as a guest leaves them: with a vector of its own.
fn programmed() -> Ioapic {
    let ioapic = Ioapic::builder().build(Arc::new(Taker)).unwrap();
    for pin in 0..24 {
        write(&ioapic, 0x00, 0x10 + 2 * pin);
        write(&ioapic, 0x10, ENTRY - PIN + pin);
    }
    write(&ioapic, 0x00, 0x10 + 2 * PIN);
    ioapic
}

fn count(told: &Arc<AtomicU64>) -> Listener {
    let told = Arc::clone(told);
    Listener::callback(move |_| {
        told.fetch_add(1, Ordering::Relaxed);
    })
}

fn ioapic(c: &mut Criterion) {
    let mut group = c.benchmark_group("ioapic");
    let chip = programmed();
    let source = chip.source(Gsi(PIN), "device", LoweredBy::Eoi).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let guard = chip.subscribe(source.key().into(), count(&told)).unwrap();
    let mut rounds = 0;
    group.bench_function("assert, EOI, listener", |b| {
        b.iter(|| {
            rounds += 1;
            source.assert().unwrap();
            chip.eoi(VECTOR);
        });
    });
    assert_eq!(told.load(Ordering::Relaxed), rounds, "every round went all the way");
    drop(guard);

    group.bench_function("EOI of an unrelated vector", |b| b.iter(|| chip.eoi(black_box(0x99))));
    group.bench_function("mask, unmask", |b| {
        b.iter(|| {
            write(&chip, 0x10, black_box(ENTRY | MASKED));
            write(&chip, 0x10, black_box(ENTRY));
        });
    });
    assert_eq!(chip.entry(Gsi(PIN)).unwrap().bits(), u64::from(ENTRY));
    group.finish();
}

criterion_group!(benches, ioapic);
criterion_main!(benches);
