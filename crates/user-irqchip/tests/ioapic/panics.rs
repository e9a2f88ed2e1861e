// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Row 148: what the chip does when a listener, the output or the hook of a delay panics. The chip ends its own work,
//! and the panic goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, PinMask, Result};
use user_irqchip::{Ioapic, Pic, Router};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, SELECT, Told, WINDOW};

fn panics(act: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("the panic goes on");
    assert_eq!(panic.downcast_ref(), Some(&"the caller's fault"));
}

fn fault() -> Listener {
    Listener::callback(|_| panic!("the caller's fault"))
}

fn count() -> (Arc<AtomicU32>, Listener) {
    let told = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    (told, listener)
}

fn device(bench: &Bench, gsi: u32) -> Arc<dyn LevelSource> {
    bench.ioapic.source(Gsi(gsi), "device", LoweredBy::Device).unwrap()
}

#[test]
fn an_eoi_ends_each_pin_of_the_vector_and_tells_each_listener() {
    let bench = Bench::new();
    for pin in [5, 6] {
        bench.set_entry(pin, LEVEL | 0x31);
    }
    let sources = [5, 6].map(|gsi| device(&bench, gsi));
    for source in &sources {
        source.assert().unwrap();
    }
    let _first = [5, 6].map(|gsi| bench.ioapic.subscribe(Gsi(gsi).into(), fault()).unwrap());
    let (told, listener) = count();
    let _guard = bench.ioapic.subscribe(Gsi(5).into(), listener).unwrap();
    sources[1].deassert().unwrap();
    bench.sink.take();
    panics(|| bench.ioapic.eoi(0x31));
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)], "its line is high");
    assert_eq!(bench.entry(6), LEVEL | 0x31, "not in service any more");
    sources[0].deassert().unwrap();
    panics(|| bench.ioapic.eoi(0x31));
    assert_eq!(bench.entry(5), LEVEL | 0x31);
}

#[test]
fn edge_eois_tell_each_pin() {
    let bench = Bench::new();
    for pin in [5, 6] {
        bench.set_entry(pin, 0x31);
    }
    let _first = bench.ioapic.subscribe(Gsi(5).into(), fault()).unwrap();
    let (told, listener) = count();
    let _guard = bench.ioapic.subscribe(Gsi(6).into(), listener).unwrap();
    panics(|| bench.ioapic.edge_eoi(0x31));
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn an_unmask_sends_the_level_that_waits() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    let _guard = bench.ioapic.subscribe(Gsi(5).into(), fault()).unwrap();
    source.assert().unwrap();
    panics(|| bench.set_entry(5, LEVEL | 0x31));
    assert_eq!(bench.sink.take()[1..], [Told::Sent(5, 0x8031)]);
}

#[test]
fn a_delay_whose_hook_panics_does_not_begin() {
    let bench = Bench::with(Ioapic::builder().on_delayed_eoi(|_| panic!("the caller's fault")));
    bench.set_entry(5, LEVEL | 0x31);
    device(&bench, 5).assert().unwrap();
    let source = device(&bench, 5);
    source.assert().unwrap();
    (1..10_000).for_each(|_| bench.ioapic.eoi(0x31));
    bench.sink.take();
    panics(|| bench.ioapic.eoi(0x31));
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
}

/// An output that panics as often as it is told to, and counts its messages.
#[derive(Debug, Default)]
struct Faulty {
    sends: AtomicBool,
    pins: AtomicBool,
    sent: AtomicU32,
}

impl MsiOutput for Faulty {
    fn send_msi(&self, _: Gsi, _: Msi) -> Result<Delivery> {
        assert!(!self.sends.swap(false, Ordering::Relaxed), "the caller's fault");
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> Result<()> {
        assert!(!self.pins.swap(false, Ordering::Relaxed), "the caller's fault");
        Ok(())
    }
}

fn faulty() -> (Arc<Faulty>, Arc<Ioapic>) {
    let output = Arc::new(Faulty::default());
    let ioapic = Ioapic::builder().build(output.clone()).unwrap();
    (output, Arc::new(ioapic))
}

fn set_low(ioapic: &Ioapic, pin: u32, entry: u64) {
    let base = MmioAddress(Ioapic::BASE);
    ioapic.mmio_write(base, SELECT, &(0x10 + 2 * pin).to_le_bytes());
    ioapic.mmio_write(base, WINDOW, &(entry as u32).to_le_bytes());
}

#[test]
fn a_message_that_was_not_sent_leaves_no_interrupt_in_service() {
    let (output, ioapic) = faulty();
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    set_low(&ioapic, 5, LEVEL | 0x31);
    output.sends.store(true, Ordering::Relaxed);
    panics(|| drop(source.assert()));
    assert_eq!(ioapic.entry(Gsi(5)).unwrap().bits(), LEVEL | 0x31);
    assert_eq!(
        source.assert().unwrap(),
        Delivery::Delivered(1),
        "the assertion has failed"
    );
    assert_eq!(ioapic.entry(Gsi(5)).unwrap().bits(), LEVEL | REMOTE_IRR | 0x31);
}

#[test]
fn the_guests_write_is_kept_when_the_output_panics() {
    let (output, ioapic) = faulty();
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    for entry in [LEVEL | 0x31, MASKED | LEVEL | 0x31] {
        set_low(&ioapic, 5, entry);
    }
    source.assert().unwrap();
    for entry in [LEVEL | 0x31, MASKED | LEVEL | 0x31, LEVEL | 0x42] {
        output.pins.store(true, Ordering::Relaxed);
        panics(|| set_low(&ioapic, 5, entry));
        assert_eq!(ioapic.entry(Gsi(5)).unwrap().bits(), entry);
        assert_eq!(output.sent.load(Ordering::Relaxed), 0, "the output knows no route");
    }
    // The next write tells the output.
    set_low(&ioapic, 5, LEVEL | 0x42);
    assert_eq!(output.sent.load(Ordering::Relaxed), 1);
}

#[test]
fn a_router_drives_both_controllers() {
    let (output, ioapic) = faulty();
    let pic = Arc::new(Pic::new(|| panic!("the caller's fault")));
    let router = Router::pc(Some(Arc::clone(&ioapic)), Some(pic), output.clone()).unwrap();
    set_low(&ioapic, 5, LEVEL | 0x31);
    let source = router.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    panics(|| drop(source.assert()));
    assert_eq!(output.sent.load(Ordering::Relaxed), 1);
}

#[test]
fn a_delay_that_ends_and_a_pin_that_moves_let_the_panic_go_on() {
    let output = Arc::new(Faulty::default());
    let ioapic = Ioapic::builder().on_delayed_eoi(|_| {}).build(output.clone()).unwrap();
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    set_low(&ioapic, 5, LEVEL | 0x31);
    source.assert().unwrap();
    (0..10_000).for_each(|_| ioapic.eoi(0x31));
    output.sends.store(true, Ordering::Relaxed);
    panics(|| ioapic.delayed_eoi());
    assert_eq!(ioapic.reassert(Gsi(5)).unwrap(), Delivery::Delivered(1));
    // In service, and moved to another processor: the output is told at the EOI.
    let base = MmioAddress(Ioapic::BASE);
    ioapic.mmio_write(base, SELECT, &(0x11 + 2 * 5u32).to_le_bytes());
    ioapic.mmio_write(base, WINDOW, &(1u32 << 24).to_le_bytes());
    output.pins.store(true, Ordering::Relaxed);
    panics(|| ioapic.eoi(0x31));
    let sent = output.sent.load(Ordering::Relaxed);
    set_low(&ioapic, 5, LEVEL | 0x31);
    assert_eq!(output.sent.load(Ordering::Relaxed), sent + 1);
}
