// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the output is told: messages, and routes only when they change.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, Listener, LoweredBy, Msi, MsiOutput, PinMask, Result};
use user_irqchip::Ioapic;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, Told};

fn device(bench: &Bench, gsi: u32) -> Arc<dyn LevelSource> {
    bench.ioapic.source(Gsi(gsi), "device", LoweredBy::Device).unwrap()
}

/// Case E10: an entry that is masked, with vector 0, is no route.
#[test]
fn a_masked_entry_is_not_routed() {
    let bench = Bench::new();
    bench.set_entry(5, MASKED);
    bench.set_entry(5, MASKED | LEVEL | 0x31);
    assert_eq!(bench.sink.take(), []);
}

/// Cases E8, E9 and E12: one change for each new address or data, and none for a mask, an unmask or the same entry again.
#[test]
fn a_route_changes_only_with_address_or_data() {
    let bench = Bench::new();
    bench.set_entry(5, LEVEL | 0x31);
    assert_eq!(bench.sink.take(), [Told::Routed(5, Some((0xfee0_0000, 0x8031)))]);
    for entry in [
        LEVEL | 0x31,
        MASKED | LEVEL | 0x31,
        LEVEL | 0x31,
        LEVEL | 1 << 13 | 0x31,
    ] {
        bench.set_entry(5, entry);
        assert_eq!(bench.sink.take(), [], "{entry:#x}");
    }
    // Lowest priority, logical, to 0xab; moved behind the mask, as a guest does that writes two halves.
    bench.set_low(5, MASKED);
    bench.set_entry(5, MASKED | 0xab00_0000_0000_8177);
    bench.set_low(5, 0x8177);
    assert_eq!(bench.sink.take(), [Told::Routed(5, Some((0xfeea_b000, 0x8177)))]);
    bench.set_low(5, 0x8177 | 1 << 11);
    assert_eq!(bench.sink.take(), [Told::Routed(5, Some((0xfeea_b004, 0x8177)))]);
}

/// What guests do that have no EOI register: mask and edge, and back. It costs no change of routes.
#[test]
fn a_pseudo_eoi_changes_no_route() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    bench.set_entry(5, LEVEL | 0x31);
    source.assert().unwrap();
    source.deassert().unwrap();
    bench.sink.take();
    bench.set_low(5, MASKED | 0x31);
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(bench.entry(5), LEVEL | 0x31);
    assert_eq!(bench.sink.take(), []);
}

/// Case L9: the route is set before the first message.
#[test]
fn a_line_that_is_high_at_the_first_unmask_is_sent_by_the_new_route() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    assert_eq!(source.assert().unwrap(), Delivery::Pending);
    bench.set_entry(5, LEVEL | 0x31);
    let route = Told::Routed(5, Some((0xfee0_0000, 0x8031)));
    assert_eq!(bench.sink.take(), [route, Told::Sent(5, 0x8031)]);
    assert_eq!(bench.entry(5), LEVEL | REMOTE_IRR | 0x31);
}

#[test]
fn an_illegal_entry_sends_nothing_and_is_counted() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    // A vector below 16, then reserved delivery modes.
    for (n, entry) in (1..).zip([LEVEL | 0x0f, 0x0f, LEVEL | 0x331, 0x631]) {
        bench.set_low(5, entry);
        assert_eq!(source.assert().unwrap(), Delivery::Pending);
        source.deassert().unwrap();
        assert_eq!(bench.entry(5), entry, "no remote IRR");
        assert_eq!(bench.ioapic.counts().illegal_entries, n);
    }
    assert_eq!(bench.sink.take(), []);
    // The edge that was dropped is not sent later.
    bench.set_low(5, 0x31);
    assert_eq!(bench.sink.take(), [Told::Routed(5, Some((0xfee0_0000, 0x31)))]);
    // A legal entry that becomes illegal loses its route.
    bench.set_low(5, 0x01);
    assert_eq!(bench.sink.take(), [Told::Routed(5, None)]);
}

/// A destination that does not exist: remote IRR stays clear, and the level is tried again when it is stated again.
#[test]
fn a_message_that_nobody_takes_does_not_wait_for_an_eoi() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    bench.set_entry(5, 0x7700_0000_0000_0000 | LEVEL | 0x31);
    bench.sink.set_takers(Some(0));
    assert_eq!(source.assert().unwrap(), Delivery::Delivered(0));
    assert_eq!(bench.entry(5), 0x7700_0000_0000_0000 | LEVEL | 0x31);
    assert_eq!(bench.ioapic.counts().refused_messages, 1);
    bench.sink.set_takers(Some(1));
    assert_eq!(bench.ioapic.reassert(Gsi(5)).unwrap(), Delivery::Delivered(1));
    assert_eq!(bench.entry(5), 0x7700_0000_0000_0000 | LEVEL | REMOTE_IRR | 0x31);
}

#[test]
fn an_error_goes_to_the_source_that_asserts_and_is_counted_elsewhere() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    bench.set_entry(5, LEVEL | 0x31);
    bench.sink.set_takers(None);
    assert_eq!(source.assert().unwrap_err().errno(), Some(5));
    assert_eq!(
        (bench.entry(5), bench.ioapic.levels()),
        (LEVEL | 0x31, 0),
        "the source does not assert"
    );
    assert_eq!(bench.ioapic.counts().send_errors, 0);

    bench.sink.set_takers(Some(1));
    source.assert().unwrap();
    bench.sink.set_takers(None);
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.ioapic.counts().send_errors, 1);
    assert_eq!(
        (bench.entry(5), bench.ioapic.levels()),
        (LEVEL | 0x31, 1 << 5),
        "the level waits"
    );
    bench.sink.set_takers(Some(1));
    bench.sink.take();
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
}

/// A route that the output would not be told: nothing is sent by the old one, and nothing is lost.
#[test]
fn a_pin_without_its_route_waits_for_the_next_write() {
    for (entry, message) in [(LEVEL | 0x32, 0x8032), (0x32, 0x32)] {
        let bench = Bench::new();
        let source = device(&bench, 5);
        bench.set_entry(5, LEVEL | 0x31);
        bench.sink.take();
        bench.sink.refuse_pins(true);
        bench.set_low(5, entry);
        assert_eq!(bench.ioapic.counts().route_errors, 1);
        assert_eq!(source.assert().unwrap(), Delivery::Pending);
        assert_eq!(bench.sink.take(), []);
        bench.sink.refuse_pins(false);
        bench.set_low(5, entry);
        let route = Told::Routed(5, Some((0xfee0_0000, message)));
        assert_eq!(bench.sink.take(), [route, Told::Sent(5, message)]);
    }
}

/// No device waits for the guest's next write of the entry: its next assertion has the output told again.
#[test]
fn an_assertion_on_a_refused_pin_tells_the_output_again() {
    for (entry, message) in [(LEVEL | 0x32, 0x8032), (0x32, 0x32)] {
        for unmasks in [false, true] {
            let bench = Bench::new();
            let source = device(&bench, 5);
            bench.set_entry(5, LEVEL | 0x31);
            if unmasks {
                bench.set_low(5, MASKED | entry);
            }
            bench.sink.take();
            bench.sink.refuse_pins(true);
            bench.set_low(5, entry);
            assert_eq!(source.assert().unwrap(), Delivery::Pending);
            assert_eq!((bench.sink.take(), bench.ioapic.counts().route_errors), (vec![], 2));
            source.deassert().unwrap();
            bench.sink.refuse_pins(false);
            assert_eq!(source.assert().unwrap(), Delivery::Pending);
            let route = Told::Routed(5, Some((0xfee0_0000, message)));
            assert_eq!(bench.sink.take(), [route, Told::Sent(5, message)], "unmasks: {unmasks}");
            source.deassert().unwrap();
            bench.ioapic.eoi(0x32);
            assert_eq!(source.assert().unwrap(), Delivery::Delivered(1));
        }
    }
}

/// The datasheet has interrupts that no local APIC ends treated as edges.
#[test]
fn an_nmi_is_an_edge_even_on_a_level_pin() {
    let bench = Bench::new();
    let source = device(&bench, 5);
    bench.set_entry(5, LEVEL | 0x400);
    bench.sink.take();
    for _ in 0..2 {
        source.assert().unwrap();
        source.deassert().unwrap();
    }
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x400); 2]);
    assert_eq!(bench.entry(5), LEVEL | 0x400);
}

/// An output whose receiver ends the interrupt while it is delivered, and which finds no lock held then.
#[derive(Debug, Default)]
struct EndsAtOnce(OnceLock<Arc<Ioapic>>);

impl MsiOutput for EndsAtOnce {
    fn send_msi(&self, _: Gsi, message: Msi) -> Result<Delivery> {
        self.0.get().unwrap().eoi(message.data as u8);
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_interrupt_may_be_ended_while_it_is_delivered() {
    let output = Arc::new(EndsAtOnce::default());
    let ioapic = Arc::new(Ioapic::builder().build(output.clone()).unwrap());
    output.0.set(Arc::clone(&ioapic)).unwrap();
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _guard = ioapic.subscribe(source.key().into(), listener).unwrap();
    let write = |offset, value: u32| {
        ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
    };
    write(0x00, 0x10 + 2 * 5);
    write(0x10, 0x8031);
    for _ in 0..3 {
        source.assert().unwrap();
    }
    assert_eq!(told.load(Ordering::Relaxed), 3);
    assert_eq!(ioapic.entry(Gsi(5)).unwrap().bits(), LEVEL | 0x31);
}

#[test]
fn the_output_is_told_of_a_mask_when_it_changes() {
    let bench = Bench::new();
    let masks = || std::mem::take(&mut *bench.sink.masks.lock().unwrap());
    bench.set_entry(5, LEVEL | 0x31);
    assert_eq!(masks(), [(5, PinMask::Unmasked)], "unmasked");
    bench.set_entry(5, LEVEL | 0x32);
    assert_eq!(masks(), [], "no change");
    bench.set_entry(5, LEVEL | MASKED | 0x32);
    bench.set_entry(5, LEVEL | MASKED | 0x32);
    assert_eq!(masks(), [(5, PinMask::Masked)]);
    let masked = bench.ioapic.save();
    bench.set_entry(5, LEVEL | 0x32);
    masks();
    bench.ioapic.restore(&masked).unwrap();
    assert_eq!(
        masks(),
        [(5, PinMask::Masked)],
        "a restored mask is one that has changed"
    );
}

/// A line that is high is raised by no assertion, so a refusal must not leave it to one.
#[test]
fn a_level_that_was_high_at_the_refusal_is_sent_by_what_the_guest_does_next() {
    type Next = fn(&Bench);
    let nexts: [(&str, Next); 2] = [
        ("an EOI", |bench| bench.ioapic.eoi(0x77)),
        ("a write", |bench| bench.set_entry(6, MASKED | 0x61)),
    ];
    for (what, next) in nexts {
        let bench = Bench::new();
        let source = device(&bench, 5);
        source.assert().unwrap();
        bench.sink.refuse_pins(true);
        bench.set_entry(5, LEVEL | 0x31);
        next(&bench);
        bench.sink.refuse_pins(false);
        assert_eq!(bench.sink.take(), []);
        next(&bench);
        let route = Told::Routed(5, Some((0xfee0_0000, 0x8031)));
        assert_eq!(bench.sink.take(), [route, Told::Sent(5, 0x8031)], "{what}");
        let refused = bench.ioapic.counts().route_errors;
        next(&bench);
        assert_eq!(
            (bench.sink.take(), bench.ioapic.counts().route_errors),
            (vec![], refused)
        );
    }
}

/// An output that refuses the first pin that it is told of, and that says when it is told of pin 6, and waits.
#[derive(Debug)]
struct Waits {
    refused: AtomicU32,
    sent: AtomicU32,
    told: Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl MsiOutput for Waits {
    fn send_msi(&self, gsi: Gsi, _: Msi) -> Result<Delivery> {
        self.sent.store(gsi.0, Ordering::SeqCst);
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, gsi: Gsi, _: Option<Msi>, _: PinMask) -> Result<()> {
        if gsi == Gsi(6) {
            let (entered, ends) = &*self.told.lock().unwrap();
            entered.send(()).unwrap();
            ends.recv().unwrap();
        } else if self.refused.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(crate::refusal("set_pin", gsi));
        }
        Ok(())
    }
}

/// An assertion on a pin that was refused, while the entry of another pin is being written, waits for that write.
#[test]
fn a_write_of_another_entry_swallows_no_assertion_on_a_refused_pin() {
    let ((entered, enters), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let output = Arc::new(Waits {
        refused: AtomicU32::new(0),
        sent: AtomicU32::new(0),
        told: Mutex::new((entered, ends)),
    });
    let ioapic = Ioapic::builder().build(output.clone()).unwrap();
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    let set = |pin: u8| {
        ioapic.write(0, &[0x10 + 2 * pin]);
        ioapic.write(0x10, &0x8031u32.to_le_bytes());
    };
    set(5);
    std::thread::scope(|scope| {
        scope.spawn(|| set(6));
        enters.recv().unwrap();
        assert_eq!(source.assert().unwrap(), Delivery::Pending);
        end.send(()).unwrap();
    });
    assert_eq!(output.sent.load(Ordering::SeqCst), 5);
}
