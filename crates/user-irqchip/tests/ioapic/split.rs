// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an IOAPIC on a split irqchip has to know: KVM tells it of no edge's end, others send its messages, and older kernels
//! forget an interrupt in service when its route changes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use interrupt_core::{Delivery, EoiGuard, EoiNotifier, Gsi, Listener, LoweredBy, Msi, MsiOutput, PinMask, Result};
use user_irqchip::Ioapic;

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, Told};

const TO_CPU_1: u64 = 1 << 56;

fn count(bench: &Bench) -> (Arc<AtomicU32>, EoiGuard) {
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (told, bench.ioapic.subscribe(Gsi(5).into(), listener).unwrap())
}

/// Row 134: the signal of an irqfd was sent by the pin's message to nobody, and this chip never saw it. The listeners of the
/// GSI state their level when the guest lets the pin through, and when it moves the pin.
#[test]
fn row_134_listeners_of_the_gsi_are_told_of_an_unmask_and_of_a_new_route() {
    let bench = Bench::new();
    let (told, _guard) = count(&bench);
    let told = || told.swap(0, Ordering::Relaxed);
    bench.set_low(5, MASKED | LEVEL | 0x31);
    assert_eq!(told(), 0, "masked");
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(told(), 1, "unmasked");
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(told(), 0, "written again");
    bench.set_low(5, LEVEL | 0x32);
    assert_eq!(told(), 1, "another vector");
    bench.set_entry(5, TO_CPU_1 | LEVEL | 0x32);
    assert_eq!(told(), 1, "another destination");
    bench.set_low(5, 0x32);
    assert_eq!(told(), 0, "edges have no level to state");
}

/// Row 150: the output drops what devices have signalled behind a mask exactly when the GSI's listeners are told after the
/// unmask, whether the output has accepted the unmask or not.
#[test]
fn row_150_the_output_is_told_whether_the_listeners_are_asked() {
    let bench = Bench::new();
    let masks = || std::mem::take(&mut *bench.sink.masks.lock().unwrap());
    let unmask = |trigger: u64| {
        bench.set_low(5, MASKED | trigger | 0x31);
        masks();
        bench.set_low(5, trigger | 0x31);
        masks()
    };
    assert_eq!(unmask(LEVEL), [(5, PinMask::Unmasked)], "nobody listens");
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    let listener = Listener::callback(|_| {});
    let of_source = bench.ioapic.subscribe(device.key().into(), listener).unwrap();
    assert_eq!(unmask(LEVEL), [(5, PinMask::Unmasked)], "nobody listens to the GSI");
    let (told, _guard) = count(&bench);
    let told = || told.swap(0, Ordering::Relaxed);
    assert_eq!((unmask(LEVEL), told()), (vec![(5, PinMask::Asked)], 1));
    device.assert().unwrap();
    assert_eq!((unmask(LEVEL), told()), (vec![(5, PinMask::Unmasked)], 0), "in service");
    bench.ioapic.eoi(0x31);
    bench.set_low(5, MASKED | LEVEL | 0x31);
    bench.ioapic.eoi(0x31);
    told();
    assert_eq!(
        (unmask(LEVEL), told()),
        (vec![(5, PinMask::Asked)], 1),
        "the line is high"
    );
    device.deassert().unwrap();
    bench.ioapic.eoi(0x31);
    bench.set_low(5, MASKED | LEVEL | 0x31);
    masks();
    told();
    bench.set_low(5, LEVEL | 0x32);
    assert_eq!((masks(), told()), (vec![(5, PinMask::Asked)], 1), "with another vector");
    assert_eq!((unmask(0), told()), (vec![(5, PinMask::Unmasked)], 0), "edges");
    bench.set_low(5, MASKED | LEVEL | 0x31);
    bench.sink.refuse_pins(true);
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(told(), 1, "refused");
    drop(of_source);
}

/// Row 139: KVM tells a split irqchip's IOAPIC of no edge's EOI. Each assertion is one interrupt all the same.
#[test]
fn row_139_each_assertion_on_an_edge_pin_is_one_interrupt() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "serial", LoweredBy::Eoi).unwrap();
    bench.set_low(5, 0x31);
    bench.sink.take();
    for round in 0..3 {
        assert_eq!(device.assert().unwrap(), Delivery::Delivered(1), "round {round}");
        assert_eq!(bench.sink.take(), [Told::Sent(5, 0x31)], "round {round}");
    }
}

/// Row 139: a level pin that was asserted and has become an edge pin.
#[test]
fn row_139_a_level_from_before_keeps_no_edge_back() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "serial", LoweredBy::Eoi).unwrap();
    bench.set_low(5, LEVEL | 0x31);
    device.assert().unwrap();
    bench.set_low(5, 0x31);
    bench.sink.take();
    device.assert().unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x31)]);
}

/// Row 139: an event that waited on a level pin in service, which has become an edge pin.
#[test]
fn row_139_an_event_from_before_keeps_no_edge_back() {
    let bench = Bench::new();
    bench.set_low(5, LEVEL | 0x31);
    bench.ioapic.pulse(Gsi(5)).unwrap();
    bench.ioapic.pulse(Gsi(5)).unwrap();
    bench.set_low(5, 0x31);
    bench.sink.take();
    for _ in 0..2 {
        bench.ioapic.pulse(Gsi(5)).unwrap();
        assert_eq!(bench.sink.take(), [Told::Sent(5, 0x31)]);
    }
}

/// Row 135: KVM before 6.2 forgets the CPU that owes the EOI when the route of an interrupt in service changes. The old
/// destination stays until the EOI, which comes by it; the next interrupt goes to the new one.
#[test]
fn row_135_a_new_destination_waits_for_the_eoi() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    device.assert().unwrap();
    bench.sink.take();
    for write_masked in [true, false] {
        let (from, to) = if write_masked { (0, TO_CPU_1) } else { (TO_CPU_1, 0) };
        if write_masked {
            bench.set_low(5, MASKED | LEVEL | 0x31);
        }
        bench.set_entry(5, to | LEVEL | 0x31);
        assert_eq!(
            bench.entry(5),
            to | LEVEL | REMOTE_IRR | 0x31,
            "the guest reads what it wrote"
        );
        assert_eq!(bench.sink.take(), [], "from {from:#x}");
        bench.ioapic.eoi(0x31);
        let address = 0xfee0_0000 | (to >> 56) << 12;
        let routed = Told::Routed(5, Some((address, 0x8031)));
        assert_eq!(bench.sink.take(), [routed, Told::Sent(5, 0x8031)]);
    }
}

/// Row 135: an irqfd on the pin's GSI has signalled by the old message, which this chip never saw, and KVM before 6.2 does
/// not tell of that interrupt's EOI. The listeners of the GSI state their level by the new message.
#[test]
fn row_135_listeners_of_the_gsi_are_told_of_the_new_destination() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    let (told, _guard) = count(&bench);
    bench.set_entry(5, LEVEL | 0x31);
    device.assert().unwrap();
    bench.set_entry(5, TO_CPU_1 | LEVEL | 0x31);
    told.store(0, Ordering::Relaxed);
    bench.ioapic.eoi(0x31);
    assert_eq!(
        told.load(Ordering::Relaxed),
        2,
        "of the EOI, and of the new destination"
    );
}

/// Row 135: another vector is another interrupt, whose route is needed at once.
#[test]
fn row_135_a_new_vector_does_not_wait() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    device.assert().unwrap();
    bench.sink.take();
    bench.set_entry(5, LEVEL | 0x32);
    assert_eq!(bench.sink.take(), [Told::Routed(5, Some((0xfee0_0000, 0x8032)))]);
}

/// Row 135 with three threads at once: the device asserts, the guest moves the interrupt, and ends it. No interrupt is lost, and
/// the output ends with the destination of the entry.
#[test]
fn row_135_nothing_is_lost_while_the_guest_moves_and_ends() {
    const ROUNDS: u32 = 20_000;
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    let moving = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                bench.set_entry(5, u64::from(round % 2) << 56 | LEVEL | 0x31);
            }
            moving.store(false, Ordering::Release);
        });
        device.assert().unwrap();
        let mut serviced = 0;
        while moving.load(Ordering::Acquire) || serviced == 0 {
            let told = bench.sink.take();
            let sent = told.iter().filter(|told| matches!(told, Told::Sent(..))).count();
            assert!(sent <= 1, "one interrupt at a time: {told:?}");
            if sent == 0 {
                // Nothing else brings the interrupt back: it is on its way, or lost.
                thread::yield_now();
                continue;
            }
            serviced += 1;
            bench.ioapic.eoi(0x31);
        }
    });
    // At rest: the line is still high, and the next EOI sends by the entry's message.
    bench.sink.take();
    bench.ioapic.eoi(0x31);
    let sent = bench.sink.take();
    assert_eq!(sent.last(), Some(&Told::Sent(5, 0x8031)), "{sent:?}");
    let to = u64::from((ROUNDS - 1) % 2);
    let programmed = bench.sink.pins.lock().unwrap()[&5];
    assert_eq!(programmed, (Some((0xfee0_0000 | to << 12, 0x8031)), false));
}

/// A device of the VMM that has no source and signals events: an edge on an edge pin, and on a level pin one interrupt after
/// whatever holds it back.
#[test]
fn a_pulse_is_one_interrupt_and_is_not_lost() {
    let bench = Bench::new();
    let pulse = || bench.ioapic.pulse(Gsi(5)).unwrap();
    bench.set_low(5, 0x31);
    bench.sink.take();
    for _ in 0..3 {
        assert_eq!(pulse(), Delivery::Delivered(1));
        assert_eq!(bench.sink.take(), [Told::Sent(5, 0x31)]);
        assert_eq!(bench.ioapic.levels(), 0);
    }
    // Behind a mask, and behind an interrupt in service.
    bench.set_low(5, MASKED | LEVEL | 0x31);
    assert_eq!([pulse(), pulse()], [Delivery::Pending, Delivery::Coalesced]);
    bench.sink.take();
    bench.set_low(5, LEVEL | 0x31);
    let one = [Told::Routed(5, Some((0xfee0_0000, 0x8031))), Told::Sent(5, 0x8031)];
    assert_eq!(bench.sink.take(), one, "one for both");
    assert_eq!(pulse(), Delivery::Coalesced);
    assert_eq!(bench.sink.take(), []);
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
    bench.ioapic.eoi(0x31);
    assert_eq!((bench.sink.take(), bench.ioapic.levels()), (vec![], 0));
    bench.ioapic.pulse(Gsi(24)).unwrap_err();
}

#[test]
fn a_pulse_that_no_processor_takes_waits_and_a_masked_edge_is_lost() {
    let bench = Bench::new();
    bench.set_low(5, MASKED | 0x31);
    bench.ioapic.pulse(Gsi(5)).unwrap();
    assert_eq!(bench.ioapic.levels(), 0);
    bench.set_low(5, LEVEL | 0x31);
    bench.sink.set_takers(Some(0));
    assert_eq!(bench.ioapic.pulse(Gsi(5)).unwrap(), Delivery::Delivered(0));
    bench.sink.set_takers(Some(1));
    bench.sink.take();
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
    bench.ioapic.eoi(0x31);
    assert_eq!((bench.sink.take(), bench.ioapic.levels()), (vec![], 0));
}

/// An output that refuses messages: by an error, by a panic, or because no processor takes them.
#[derive(Debug, Default)]
struct Refuses {
    how: AtomicU32,
    sent: AtomicU32,
}

impl MsiOutput for Refuses {
    fn send_msi(&self, gsi: Gsi, _: Msi) -> Result<Delivery> {
        match self.how.swap(0, Ordering::Relaxed) {
            1 => Err(interrupt_core::Error::Os {
                operation: "send",
                gsi,
                source: std::io::Error::from_raw_os_error(12),
            }),
            2 => panic!("the output's fault"),
            3 => Ok(Delivery::Delivered(0)),
            _ => {
                self.sent.fetch_add(1, Ordering::Relaxed);
                Ok(Delivery::Delivered(1))
            }
        }
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> Result<()> {
        Ok(())
    }
}

/// A message that was refused does not carry the event: at once, at the unmask, or at an EOI.
#[test]
fn a_pulse_whose_message_is_refused_is_carried_later() {
    for how in 1..=3 {
        for held in ["", "mask", "in service"] {
            let output = Arc::new(Refuses::default());
            let ioapic = Ioapic::builder().build(output.clone()).unwrap();
            let set_low = |low: u64| {
                ioapic.write(0x00, &[0x1a]);
                ioapic.write(0x10, &(low | 0x31).to_le_bytes());
            };
            let refuse = || output.how.store(how, Ordering::Relaxed);
            let may_panic = |act: &dyn Fn()| drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)));
            let pulse = || drop(ioapic.pulse(Gsi(5)));
            set_low(LEVEL);
            match held {
                "mask" => {
                    set_low(MASKED | LEVEL);
                    pulse();
                    refuse();
                    may_panic(&|| set_low(LEVEL));
                }
                "in service" => {
                    pulse();
                    pulse();
                    refuse();
                    may_panic(&|| ioapic.eoi(0x31));
                    output.sent.store(0, Ordering::Relaxed);
                }
                _ => {
                    refuse();
                    may_panic(&pulse);
                }
            }
            assert_eq!(output.sent.load(Ordering::Relaxed), 0);
            // Another pin's, with the same vector.
            ioapic.eoi(0x31);
            assert_eq!(output.sent.load(Ordering::Relaxed), 1, "{how} {held}");
            ioapic.eoi(0x31);
            assert_eq!((output.sent.load(Ordering::Relaxed), ioapic.levels()), (1, 0));
        }
    }
}

/// A processor that serves the pin while its message is sent, and a second event that comes right after that.
#[derive(Debug, Default)]
struct ServesAtOnce {
    ioapic: OnceLock<Weak<Ioapic>>,
    sent: AtomicU32,
}

impl MsiOutput for ServesAtOnce {
    fn send_msi(&self, gsi: Gsi, _: Msi) -> Result<Delivery> {
        if self.sent.fetch_add(1, Ordering::Relaxed) == 0 {
            self.ioapic.get().unwrap().upgrade().unwrap().pulse(gsi)?;
        }
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, _: Option<Msi>, _: PinMask) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_pulse_during_the_message_of_another_is_kept() {
    let output = Arc::new(ServesAtOnce::default());
    let ioapic = Arc::new(Ioapic::builder().build(output.clone()).unwrap());
    output.ioapic.set(Arc::downgrade(&ioapic)).unwrap();
    ioapic.write(0x00, &[0x1a]);
    ioapic.write(0x10, &0x8031u32.to_le_bytes());
    ioapic.pulse(Gsi(5)).unwrap();
    assert_eq!(output.sent.load(Ordering::Relaxed), 1);
    for levels in [1 << 5, 0] {
        ioapic.eoi(0x31);
        assert_eq!((output.sent.load(Ordering::Relaxed), ioapic.levels()), (2, levels));
    }
}

/// A device pulses at any moment of the guest's service of the event before. The guest sees each event.
#[test]
fn no_pulse_is_lost_between_threads() {
    const EVENTS: u32 = 2_000;
    let bench = Bench::new();
    bench.set_low(5, LEVEL | 0x31);
    let (event, served) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=EVENTS {
                event.store(n, Ordering::SeqCst);
                bench.ioapic.pulse(Gsi(5)).unwrap();
                // Not before the handler has seen the event, and perhaps before its EOI.
                while served.load(Ordering::SeqCst) < n {
                    thread::yield_now();
                }
            }
        });
        while served.load(Ordering::SeqCst) < EVENTS {
            if bench.sink.take().iter().any(|told| matches!(told, Told::Sent(..))) {
                served.store(event.load(Ordering::SeqCst), Ordering::SeqCst);
                bench.ioapic.eoi(0x31);
            } else {
                thread::yield_now();
            }
        }
    });
    bench.ioapic.eoi(0x31);
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.ioapic.levels(), 0);
}
