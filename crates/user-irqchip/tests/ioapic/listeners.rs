// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What listeners hear, and what they may do from inside.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, LoweredBy};
use user_irqchip::{Ioapic, ioapic};

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, Told};

fn source(bench: &Bench, gsi: u32, lowered_by: LoweredBy) -> Arc<dyn LevelSource> {
    bench.ioapic.source(Gsi(gsi), "device", lowered_by).unwrap()
}

fn count(bench: &Bench, subject: EoiScope) -> (Arc<AtomicU32>, EoiGuard) {
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (told, bench.ioapic.subscribe(subject, listener).unwrap())
}

/// Case N5: a listener that asserts produces one interrupt for each EOI.
#[test]
fn a_device_that_asserts_from_its_listener_is_sent_again_at_each_eoi() {
    let bench = Bench::new();
    let device = source(&bench, 5, LoweredBy::Eoi);
    bench.set_entry(5, LEVEL | 0x31);
    bench.sink.take();
    let (inner, ioapic_levels) = (Arc::clone(&device), Arc::new(Mutex::new(Vec::new())));
    let (seen, ioapic) = (Arc::clone(&ioapic_levels), Arc::downgrade(&bench.ioapic));
    let listener = Listener::callback(move |_| {
        seen.lock()
            .unwrap()
            .push(ioapic.upgrade().unwrap().level(Gsi(5)).unwrap());
        inner.assert().unwrap();
    });
    let guard = bench.ioapic.subscribe(device.key().into(), listener).unwrap();
    device.assert().unwrap();
    for _ in 0..3 {
        bench.ioapic.eoi(0x31);
        assert_eq!(bench.entry(5), LEVEL | REMOTE_IRR | 0x31);
    }
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031); 4]);
    assert_eq!(
        *ioapic_levels.lock().unwrap(),
        [interrupt_core::Level::Low; 3],
        "low already"
    );
    drop(guard);
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.entry(5), LEVEL | 0x31);
}

/// Conformance row 75: one listener for each source, a key of nobody, and the guard's key.
#[test]
fn a_key_has_one_listener() {
    let bench = Bench::new();
    let device = source(&bench, 5, LoweredBy::Eoi);
    let subscribe = |subject| bench.ioapic.subscribe(subject, Listener::callback(|_| {}));
    let guard = subscribe(device.key().into()).unwrap();
    assert_eq!(guard.subject(), EoiScope::Source(device.key()));
    assert_eq!(subscribe(device.key().into()).unwrap_err().errno(), Some(16));
    let stranger = Bench::new();
    let key = source(&stranger, 5, LoweredBy::Eoi).key();
    assert_eq!(subscribe(key.into()).unwrap_err().errno(), Some(2));
    assert_eq!(subscribe(Gsi(24).into()).unwrap_err().errno(), Some(2));
    drop(guard);
    assert!(subscribe(device.key().into()).is_ok());
}

/// Conformance row 78: a listener of the GSI, and a device that lowers its own line before the EOI.
#[test]
fn a_listener_of_the_gsi_hears_of_a_source_that_it_does_not_know() {
    let bench = Bench::new();
    let device = source(&bench, 5, LoweredBy::Device);
    bench.set_entry(5, LEVEL | 0x31);
    let (told, _guard) = count(&bench, Gsi(5).into());
    bench.sink.take();
    device.assert().unwrap();
    device.deassert().unwrap();
    bench.ioapic.eoi(0x31);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
}

/// Conformance row 80: oneshot handling with the level restated on each notification loses nothing.
#[test]
fn oneshot_handling_with_a_restated_level_loses_nothing() {
    let bench = Bench::new();
    let device = source(&bench, 5, LoweredBy::Eoi);
    let causes = Arc::new(AtomicU32::new(0));
    let (inner, left) = (Arc::clone(&device), Arc::clone(&causes));
    let listener = Listener::callback(move |_| {
        if left.load(Ordering::Relaxed) > 0 {
            inner.assert().unwrap();
        }
    });
    let _guard = bench.ioapic.subscribe(device.key().into(), listener).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    bench.sink.take();
    for round in 0..100 {
        causes.fetch_add(1 + round % 2, Ordering::Relaxed);
        device.assert().unwrap();
        while causes.load(Ordering::Relaxed) > 0 {
            assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)], "round {round}");
            bench.set_low(5, LEVEL | MASKED | 0x31);
            bench.ioapic.eoi(0x31);
            causes.fetch_sub(1, Ordering::Relaxed);
            assert_eq!(bench.sink.take(), [], "masked");
            bench.set_low(5, LEVEL | 0x31);
        }
        assert_eq!(bench.sink.take(), [], "round {round}");
        assert_eq!(bench.entry(5), LEVEL | 0x31);
    }
}

/// Conformance row 63: a level that a device holds while masked, with a listener on the GSI. KVM loses it.
/// Row 64: after the unmask, an idle sharer's line going low raises nothing. KVM injects a phantom.
#[test]
fn a_held_level_survives_an_unmask_with_a_listener_and_leaves_no_phantom() {
    let bench = Bench::new();
    let (held, told_device) = (source(&bench, 5, LoweredBy::Device), source(&bench, 5, LoweredBy::Eoi));
    let (told, _guard) = count(&bench, told_device.key().into());
    bench.set_entry(5, LEVEL | MASKED | 0x31);
    held.assert().unwrap();
    told_device.assert().unwrap();
    bench.set_low(5, LEVEL | 0x31);
    bench.sink.take();
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(bench.entry(5), LEVEL | REMOTE_IRR | 0x31);
    held.deassert().unwrap();
    bench.ioapic.eoi(0x31);
    assert_eq!((bench.entry(5), bench.ioapic.levels()), (LEVEL | 0x31, 0));

    // Masked, asserted by the source that the unmask lowers, and quiet when asked: nothing remains for the other to bring up.
    bench.set_low(5, LEVEL | MASKED | 0x31);
    told_device.assert().unwrap();
    bench.set_low(5, LEVEL | 0x31);
    held.deassert().unwrap();
    assert_eq!(bench.sink.take(), []);
}

/// Conformance row 65: a pulse of one device does not end the level of another.
#[test]
fn a_pulse_leaves_another_devices_level_alone() {
    let bench = Bench::new();
    let (held, pulsed) = (
        source(&bench, 5, LoweredBy::Device),
        source(&bench, 5, LoweredBy::Device),
    );
    bench.set_entry(5, LEVEL | 0x31);
    held.assert().unwrap();
    pulsed.assert().unwrap();
    pulsed.deassert().unwrap();
    assert_eq!(bench.ioapic.levels(), 1 << 5);
}

/// An edge EOI, which a local APIC in userspace tells of: listeners hear it, and a level pin that shares the vector stays in
/// service.
#[test]
fn the_eoi_of_an_edge_tells_and_ends_nothing() {
    let bench = Bench::new();
    let (level, edge) = (source(&bench, 5, LoweredBy::Eoi), source(&bench, 6, LoweredBy::Eoi));
    let (told_level, _level_guard) = count(&bench, level.key().into());
    let (told_edge, _edge_guard) = count(&bench, edge.key().into());
    bench.set_entry(5, LEVEL | 0x31);
    bench.set_entry(6, 0x31);
    level.assert().unwrap();
    edge.assert().unwrap();
    bench.ioapic.edge_eoi(0x31);
    assert_eq!(
        [&told_level, &told_edge].map(|told| told.load(Ordering::Relaxed)),
        [1, 1]
    );
    assert_eq!((bench.entry(5), bench.entry(6)), (LEVEL | REMOTE_IRR | 0x31, 0x31));
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.entry(5), LEVEL | 0x31);
}

/// The pause: the 10,000th EOI in a row that finds the line high sends nothing, and says for how long.
#[test]
fn a_storm_pauses_once_in_10000() {
    let (pause, pauses) = mpsc::channel();
    let pause = Mutex::new(pause);
    let bench = Bench::with(Ioapic::builder().on_delayed_eoi(move |time| pause.lock().unwrap().send(time).unwrap()));
    let device = source(&bench, 5, LoweredBy::Device);
    bench.set_entry(5, LEVEL | 0x31);
    bench.sink.take();
    device.assert().unwrap();
    for round in 0..2 {
        for eoi in 1..10_000 {
            bench.ioapic.eoi(0x31);
            assert_eq!(
                bench.sink.take().len(),
                if eoi == 1 { 2 } else { 1 },
                "round {round}, EOI {eoi}"
            );
        }
        bench.ioapic.eoi(0x31);
        assert_eq!(bench.sink.take(), []);
        assert_eq!(bench.entry(5), LEVEL | 0x31);
        assert_eq!(pauses.try_iter().collect::<Vec<_>>(), [ioapic::EOI_DELAY]);
        // Nothing but the end of the pause sends, and only once.
        bench.ioapic.eoi(0x99);
        assert_eq!(bench.sink.take(), []);
        bench.ioapic.delayed_eoi();
        bench.ioapic.delayed_eoi();
        assert_eq!(bench.entry(5), LEVEL | REMOTE_IRR | 0x31);
    }
    assert_eq!(ioapic::EOI_DELAY, Duration::from_millis(10));

    // An EOI that finds the line low, or the pin masked, begins the count anew.
    bench.sink.take();
    for _ in 0..9_999 {
        bench.ioapic.eoi(0x31);
    }
    device.deassert().unwrap();
    bench.ioapic.eoi(0x31);
    device.assert().unwrap();
    for _ in 0..9_999 {
        bench.ioapic.eoi(0x31);
    }
    bench.set_low(5, LEVEL | MASKED | 0x31);
    bench.ioapic.eoi(0x31);
    bench.set_low(5, LEVEL | 0x31);
    bench.ioapic.eoi(0x31);
    assert_eq!(pauses.try_iter().count(), 0);
}

/// The line falls during a pause and rises again: a new interrupt does not wait for the pause to end, and the end sends none.
#[test]
fn a_new_rise_ends_a_pause() {
    let bench = Bench::with(Ioapic::builder().on_delayed_eoi(|_| {}));
    let device = source(&bench, 5, LoweredBy::Device);
    bench.set_entry(5, LEVEL | 0x31);
    device.assert().unwrap();
    for _ in 0..10_000 {
        bench.ioapic.eoi(0x31);
    }
    bench.sink.take();
    device.deassert().unwrap();
    bench.ioapic.delayed_eoi();
    assert_eq!(bench.sink.take(), [], "the level is gone");
    device.assert().unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
    bench.ioapic.delayed_eoi();
    assert_eq!(bench.sink.take(), []);
}

/// Levels, EOIs and writes of entries from three threads at once: nothing is lost, and nothing is stuck.
#[test]
fn nothing_is_lost_while_the_guest_masks_and_ends() {
    const ROUNDS: u32 = 50_000;
    let bench = Bench::new();
    let device = source(&bench, 5, LoweredBy::Eoi);
    let causes = Arc::new(AtomicU32::new(0));
    let (inner, left) = (Arc::clone(&device), Arc::clone(&causes));
    let listener = Listener::callback(move |_| {
        if left.load(Ordering::SeqCst) > 0 {
            inner.assert().unwrap();
        }
    });
    let _guard = bench.ioapic.subscribe(device.key().into(), listener).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                causes.fetch_add(1, Ordering::SeqCst);
                device.assert().unwrap();
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        scope.spawn(|| {
            for round in 0..ROUNDS {
                bench.set_low(5, LEVEL | if round % 2 == 0 { MASKED } else { 0 } | 0x31);
            }
            bench.set_low(5, LEVEL | 0x31);
            done.fetch_add(1, Ordering::SeqCst);
        });
        // The guest: serves one cause for each interrupt, then ends it.
        let mut serviced = 0;
        while serviced < ROUNDS {
            let sent = bench
                .sink
                .take()
                .iter()
                .filter(|told| matches!(told, Told::Sent(..)))
                .count();
            if sent == 0 {
                let idle = done.load(Ordering::SeqCst) == 2 && bench.sink.told.lock().unwrap().is_empty();
                let in_service = bench.ioapic.entry(Gsi(5)).unwrap().remote_irr();
                assert!(!idle || in_service || causes.load(Ordering::SeqCst) == 0, "lost");
                thread::yield_now();
                continue;
            }
            assert_eq!(sent, 1, "one interrupt at a time");
            if causes
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                serviced += 1;
            }
            bench.ioapic.eoi(0x31);
        }
    });
    assert_eq!(causes.load(Ordering::SeqCst), 0);
}

/// Case N4: the vector that the entry had is another pin's.
#[test]
fn an_eoi_of_a_vector_that_the_pin_had_tells_nobody() {
    let bench = Bench::new();
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _guard = bench.ioapic.subscribe(Gsi(5).into(), listener).unwrap();
    // After a reset an entry has vector 0.
    bench.ioapic.eoi(0);
    assert_eq!(told.swap(0, Ordering::Relaxed), 1);
    for (vector, before) in [(0x31, 0), (0x42, 0x31)] {
        bench.set_entry(5, MASKED | LEVEL | vector);
        bench.ioapic.eoi(before);
        assert_eq!(told.load(Ordering::Relaxed), 0, "{before:#x}");
        bench.ioapic.eoi(vector as u8);
        assert_eq!(told.swap(0, Ordering::Relaxed), 1, "{vector:#x}");
    }
}

#[test]
fn a_listener_that_cannot_be_told_is_counted() {
    let bench = Bench::new();
    let broken = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let _guard = bench.ioapic.subscribe(Gsi(5).into(), Listener::fd(broken)).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    assert_eq!(bench.ioapic.counts().listener_errors, 1, "asked at the unmask");
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.ioapic.counts().listener_errors, 2);
}

#[test]
fn the_listener_of_a_key_is_exchanged() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    let told: [Arc<AtomicU32>; 2] = Default::default();
    let listener = |n: usize| {
        let told = Arc::clone(&told[n]);
        Listener::callback(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    let old = bench.ioapic.subscribe(device.key().into(), listener(0)).unwrap();
    let _new = bench.ioapic.exchange(device.key(), listener(1)).unwrap();
    drop(old);
    bench.ioapic.eoi(0x31);
    assert_eq!(told.map(|told| told.load(Ordering::Relaxed)), [0, 1]);
}
