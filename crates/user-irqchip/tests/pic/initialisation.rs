// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ICW1 to ICW4, at any time.

use std::sync::atomic::Ordering;

use interrupt_core::{EoiNotifier, Gsi, Listener, LoweredBy};

use crate::{AUTO_EOI, Bench, ELCR, MASTER, NON_SPECIFIC_EOI, READ_ISR, ROTATE, SET_PRIORITY, SPECIAL_MASK, X86};

/// Case G16: before its initialisation a chip has vector 0 for IRQ 0, and masks nothing.
#[test]
fn a_chip_that_was_never_initialised_asks_with_vector_0() {
    let bench = Bench::raw();
    let source = bench.source(0);
    source.assert().unwrap();
    assert_eq!([bench.take(), bench.take()], [Some(0), None]);
}

#[test]
fn icw2_gives_five_bits_of_the_vector() {
    let bench = Bench::raw();
    for value in [0x11, 0xff, 4, X86] {
        bench.outb(if value == 0x11 { MASTER } else { MASTER + 1 }, value);
    }
    bench.source(3).assert().unwrap();
    assert_eq!(bench.take(), Some(0xfb));
}

/// ICW1 tells whether ICW3 and ICW4 follow; what follows after that is the mask.
#[test]
fn the_sequence_is_as_long_as_icw1_says() {
    for (icw1, words) in [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)] {
        let bench = Bench::raw();
        bench.outb(MASTER, icw1);
        for _ in 0..words {
            bench.outb(MASTER + 1, 0x10);
        }
        assert_eq!(bench.inb(MASTER + 1), 0, "ICW1 {icw1:#x}");
        bench.outb(MASTER + 1, 0x5a);
        assert_eq!(bench.inb(MASTER + 1), 0x5a, "ICW1 {icw1:#x}");
    }
}

/// What ICW1 undoes: the mask, the priorities, special mask mode, the register that is read, and edges that wait. What ICW4
/// has set goes when no ICW4 follows.
#[test]
fn icw1_begins_anew() {
    let bench = Bench::with(X86 | AUTO_EOI);
    bench.outb(MASTER + 1, 0xfb);
    bench.outb(MASTER, SET_PRIORITY | 4);
    bench.outb(MASTER, SPECIAL_MASK);
    bench.outb(MASTER, READ_ISR);
    let (edge, level) = (bench.source(1), bench.source(5));
    bench.outb(ELCR[0], 0x20);
    edge.assert().unwrap();
    level.assert().unwrap();
    bench.outb(MASTER, 0x10);
    assert_eq!(
        bench.inb(MASTER),
        0x20,
        "the requests are read, and the level still asks"
    );
    bench.outb(MASTER + 1, 0x30);
    bench.outb(MASTER + 1, 4);
    let state = bench.pic.save().master;
    assert_eq!(
        (state.imr, state.highest, state.special_mask, state.auto_eoi),
        (0, 0, false, false)
    );
    assert_eq!(state.elcr, 0x20, "the control register is another chip's");
    assert_eq!(bench.take(), Some(0x35));
    assert_eq!(bench.isr()[0], 0x20, "no automatic EOI");
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    // The edge takes a new rise.
    level.deassert().unwrap();
    assert_eq!(bench.take(), None);
    edge.deassert().unwrap();
    edge.assert().unwrap();
    assert_eq!(bench.take(), Some(0x31));
}

/// An edge that ICW1 drops is told, so that a device with a cause makes a new one. Nobody else is.
#[test]
fn icw1_tells_whose_edge_it_drops() {
    let bench = Bench::new();
    let dropped = std::sync::Arc::new(bench.pic.source(Gsi(1), "device", LoweredBy::Eoi).unwrap());
    let (told_level, _level) = bench.count(Gsi(5).into());
    let (told_idle, _idle) = bench.count(Gsi(6).into());
    bench.outb(ELCR[0], 0x20);
    let inner = dropped.clone();
    let restate = Listener::callback(move |_| {
        inner.assert().unwrap();
    });
    let _guard = bench.pic.subscribe(dropped.key().into(), restate).unwrap();
    dropped.assert().unwrap();
    let level = bench.source(5);
    level.assert().unwrap();
    bench.outb(MASTER, 0x11);
    assert_eq!(bench.irr()[0], 0x22, "a new edge, and the level");
    assert_eq!(
        [&told_level, &told_idle].map(|told| told.load(Ordering::Relaxed)),
        [0, 0]
    );
}

/// What is in service stays so, as with KVM's 8259.
#[test]
fn icw1_leaves_what_is_in_service() {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x20);
    let (told, _guard) = bench.count(Gsi(5).into());
    let source = bench.source(5);
    source.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0d));
    bench.outb(MASTER, 0x11);
    assert_eq!(bench.isr()[0], 0x20);
    assert_eq!(told.load(Ordering::Relaxed), 0);
}

/// INTR falls with the requests that ICW1 drops.
#[test]
fn icw1_lowers_intr() {
    let bench = Bench::new();
    let source = bench.source(1);
    source.assert().unwrap();
    assert!(bench.pic.intr());
    bench.outb(MASTER, 0x11);
    assert!(!bench.pic.intr());
}

/// Rotation on automatic EOI is no word of the initialisation, and outlasts it.
#[test]
fn rotation_on_automatic_eoi_outlasts_icw1() {
    let bench = Bench::with(X86 | AUTO_EOI);
    bench.outb(MASTER, ROTATE);
    for (port, value) in [
        (MASTER, 0x11),
        (MASTER + 1, 8),
        (MASTER + 1, 4),
        (MASTER + 1, X86 | AUTO_EOI),
    ] {
        bench.outb(port, value);
    }
    bench.source(3).assert().unwrap();
    assert_eq!(bench.take(), Some(0x0b));
    assert_eq!(bench.pic.save().master.highest, 4);
}

/// ICW1 ends a poll that the guest has begun, and without ICW4 the special fully nested mode.
#[test]
fn icw1_ends_a_poll_and_the_modes_of_icw4() {
    let bench = Bench::with(X86 | crate::SPECIAL_FULLY_NESTED);
    assert!(bench.pic.save().master.special_fully_nested);
    bench.outb(MASTER, crate::POLL);
    bench.outb(MASTER, 0x10);
    let state = bench.pic.save().master;
    assert_eq!((state.poll, state.special_fully_nested), (false, false));
}
