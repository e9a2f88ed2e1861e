// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What ends an interrupt, and who is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use interrupt_core::{EoiNotifier, Gsi, Listener, LoweredBy};

use crate::{AUTO_EOI, Bench, ELCR, MASTER, NON_SPECIFIC_EOI, ROTATE, SLAVE, SPECIFIC_EOI, X86};

/// Case P1: an edge asserted twice around one acknowledge cycle is one interrupt.
#[test]
fn a_held_edge_is_one_interrupt() {
    let bench = Bench::new();
    let source = bench.source(4);
    source.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0c));
    source.assert().unwrap();
    assert_eq!((bench.irr(), bench.isr()), ([0, 0], [0x10, 0]));
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), None);
    source.deassert().unwrap();
    source.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0c));
}

/// Case P2: a level that stays asks again after the EOI.
#[test]
fn a_held_level_asks_again_after_the_eoi() {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x10);
    let source = bench.source(4);
    source.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0c));
    assert_eq!((bench.irr(), bench.isr()), ([0x10, 0], [0x10, 0]));
    assert_eq!(bench.take(), None, "in service");
    assert_eq!(bench.rises(), 1);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.rises(), 1);
    assert_eq!(bench.take(), Some(0x0c));
    source.deassert().unwrap();
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), None);
    assert_eq!((bench.irr(), bench.isr()), ([0, 0], [0, 0]));
}

/// Case P3: a specific EOI ends what it names. Naming what is not in service ends nothing, and tells all the same.
#[test]
fn a_specific_eoi_ends_what_it_names() {
    let bench = Bench::new();
    let (told, _guard) = bench.count(Gsi(3).into());
    bench.source(4).assert().unwrap();
    assert_eq!(bench.take(), Some(0x0c));
    bench.outb(MASTER, SPECIFIC_EOI | 3);
    assert_eq!(bench.isr(), [0x10, 0]);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    bench.outb(MASTER, SPECIFIC_EOI | 4);
    assert_eq!(bench.isr(), [0, 0]);
}

/// Case P4: IRQ 12 goes through the cascade, and takes an EOI on both chips.
#[test]
fn an_irq_of_the_slave_takes_two_eois() {
    let bench = Bench::new();
    let (told, _guard) = bench.count(Gsi(12).into());
    let source = bench.source(12);
    source.assert().unwrap();
    assert_eq!(bench.irr(), [0x04, 0x10]);
    assert_eq!(bench.take(), Some(0x74));
    assert_eq!((bench.irr(), bench.isr()), ([0, 0], [0x04, 0x10]));
    bench.outb(SLAVE, NON_SPECIFIC_EOI);
    assert_eq!(bench.isr(), [0x04, 0]);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    source.deassert().unwrap();
    source.assert().unwrap();
    assert_eq!(bench.take(), None, "the master's EOI is missing");
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!(bench.take(), Some(0x74));
}

#[test]
fn a_non_specific_eoi_ends_the_highest_in_service() {
    let bench = Bench::new();
    let (low, high) = (bench.source(6), bench.source(1));
    low.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0e));
    high.assert().unwrap();
    assert_eq!(bench.take(), Some(0x09), "nested");
    assert_eq!(bench.isr(), [0x42, 0]);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.isr(), [0x40, 0]);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.isr(), [0, 0]);
}

/// Rotation: what has just been served gets the lowest priority.
#[test]
fn rotating_eois_take_turns() {
    for eoi in [ROTATE | NON_SPECIFIC_EOI, ROTATE | SPECIFIC_EOI | 3] {
        let bench = Bench::new();
        bench.outb(ELCR[0], 0x88);
        let (a, b) = (bench.source(3), bench.source(7));
        a.assert().unwrap();
        b.assert().unwrap();
        assert_eq!(bench.take(), Some(0x0b));
        bench.outb(MASTER, eoi);
        assert_eq!(
            bench.take(),
            Some(0x0f),
            "IRQ 3 is the lowest now, and IRQ 4 the highest"
        );
        bench.outb(MASTER, ROTATE | NON_SPECIFIC_EOI);
        assert_eq!(bench.take(), Some(0x0b));
    }
}

/// Automatic EOI: the acknowledge cycle ends, lowers and tells.
#[test]
fn automatic_eoi_ends_at_the_acknowledge_cycle() {
    let bench = Bench::with(X86 | AUTO_EOI);
    bench.outb(ELCR[0], 0x20);
    bench.outb(ELCR[1], 0x04);
    for (irq, vector) in [(5, 0x0d), (10, 0x72)] {
        let source = Arc::new(bench.pic.source(Gsi(irq), "device", LoweredBy::Eoi).unwrap());
        let (told, guard) = bench.count(source.key().into());
        source.assert().unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 0);
        assert_eq!(bench.take(), Some(vector));
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!((bench.irr(), bench.isr()), ([0, 0], [0, 0]));
        assert_eq!(bench.take(), None);
        drop(guard);

        // A cause that lasts: asserted from the listener, the line asks again.
        let inner = Arc::clone(&source);
        let listener = Listener::callback(move |_| {
            inner.assert().unwrap();
        });
        let _guard = bench.pic.subscribe(source.key().into(), listener).unwrap();
        source.assert().unwrap();
        bench.rises();
        assert_eq!(bench.take(), Some(vector));
        assert_eq!(bench.rises(), 1);
        assert_eq!(bench.take(), Some(vector));
        source.deassert().unwrap();
        while bench.take().is_some() {
            source.deassert().unwrap();
        }
    }
}

/// Automatic EOI with rotation: equal turns without a command.
#[test]
fn rotation_on_automatic_eoi_takes_turns() {
    const ROTATE_ON: u8 = 0x80;
    const ROTATE_OFF: u8 = 0x00;
    let bench = Bench::with(X86 | AUTO_EOI);
    bench.outb(ELCR[0], 0x88);
    bench.outb(MASTER, ROTATE_ON);
    let (a, b) = (bench.source(3), bench.source(7));
    a.assert().unwrap();
    b.assert().unwrap();
    assert_eq!(
        [bench.take(), bench.take(), bench.take()],
        [Some(0x0b), Some(0x0f), Some(0x0b)]
    );
    bench.outb(MASTER, ROTATE_OFF);
    assert_eq!([bench.take(), bench.take()], [Some(0x0f), Some(0x0f)]);
}

/// The line is low by the time a listener is told, and the device may assert from inside.
#[test]
fn a_device_may_assert_from_its_listener() {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x20);
    let source = bench.pic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let (inner, pic) = (Arc::clone(&source), Arc::downgrade(&bench.pic));
    let listener = Listener::callback(move |_| {
        let level = pic.upgrade().unwrap().level(Gsi(5)).unwrap();
        assert_eq!(level, interrupt_core::Level::Low);
        inner.assert().unwrap();
    });
    let _guard = bench.pic.subscribe(source.key().into(), listener).unwrap();
    source.assert().unwrap();
    for _ in 0..3 {
        assert_eq!(bench.take(), Some(0x0d));
        bench.outb(MASTER, NON_SPECIFIC_EOI);
    }
}

/// Row 148: a listener that panics keeps no other IRQ's listeners from being told, and INTR rises again.
#[test]
fn a_listener_that_panics_leaves_the_pair_whole() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let bench = Bench::with(X86);
    bench.outb(ELCR[0], 0x18);
    let first = bench.source(3);
    let second = bench.source(4);
    first.assert().unwrap();
    second.assert().unwrap();
    let listener = Listener::callback(|_| panic!("a listener's fault"));
    let _guard = bench.pic.subscribe(Gsi(3).into(), listener).unwrap();
    let (told, _counts) = bench.count(Gsi(3).into());
    assert_eq!(bench.take(), Some(0x0b));
    first.deassert().unwrap();
    bench.rises();
    catch_unwind(AssertUnwindSafe(|| bench.outb(MASTER, NON_SPECIFIC_EOI))).unwrap_err();
    assert_eq!(told.load(Ordering::Relaxed), 1);
    assert_eq!((bench.isr(), bench.rises()), ([0, 0], 1));
    assert_eq!(bench.take(), Some(0x0c));

    // ICW1 ends what waits on every edge input.
    bench.outb(ELCR[0], 0);
    let (told, _counts) = bench.count(Gsi(4).into());
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    second.deassert().unwrap();
    first.assert().unwrap();
    second.assert().unwrap();
    told.store(0, Ordering::Relaxed);
    catch_unwind(AssertUnwindSafe(|| bench.outb(MASTER, 0x11))).unwrap_err();
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn a_listener_that_cannot_be_told_is_counted() {
    let bench = Bench::new();
    let broken = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let _guard = bench.pic.subscribe(Gsi(3).into(), Listener::fd(broken)).unwrap();
    bench.outb(MASTER, SPECIFIC_EOI | 3);
    assert_eq!(bench.pic.counts().listener_errors, 1);
}
