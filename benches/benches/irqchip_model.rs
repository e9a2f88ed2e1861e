// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the userspace IOAPIC and 8259 pair cost, on one processor, without the system calls around them.
//!
//! * `ioapic/assert, EOI, listener`: one interrupt all the way round: a level source asserts, a message is sent, the guest
//!   ends it, the line is lowered, and one listener in this process is told. The limit is 150 ns.
//! * `ioapic/EOI of an unrelated vector`: what every other EOI of the machine pays. The limit is 5 ns.
//! * `ioapic/mask, unmask`: two writes of an entry's low half through the data window. The limit is 100 ns for each.
//! * `8259/assert, INTA, EOI, listener`: the same round on the 8259 pair.
//!
//! What is measured is the thread's time on a processor, so that a busy machine does not count in.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, Result};
use rustix::time::{ClockId, clock_gettime};
use user_irqchip::{Ioapic, Pic};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

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

/// The time that this thread spends on a processor.
struct CpuTime;

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn ioapic(c: &mut Criterion<CpuTime>) {
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

fn pic(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("8259");
    let pic = Pic::new(|| {});
    pic.pio_write(PioAddress(0x4d0), 0, &[1 << PIN]);
    let source = pic.source(Gsi(PIN), "device", LoweredBy::Eoi).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let _guard = pic.subscribe(source.key().into(), count(&told)).unwrap();
    let mut rounds = 0;
    group.bench_function("assert, INTA, EOI, listener", |b| {
        b.iter(|| {
            rounds += 1;
            source.assert().unwrap();
            black_box(pic.acknowledge());
            pic.pio_write(PioAddress(0x20), 0, &[0x20]);
        });
    });
    assert_eq!(told.load(Ordering::Relaxed), rounds, "every round went all the way");
    assert_eq!(pic.counts().spurious, 0);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = ioapic, pic
}
criterion_main!(benches);
