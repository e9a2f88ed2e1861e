// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! States saved and restored.

use interrupt_core::{Delivery, LevelSource};
use std::sync::Arc;
use user_irqchip::PicState;

use crate::{Bench, ELCR, MASTER, NON_SPECIFIC_EOI, POLL, READ_ISR, SLAVE};

/// A busy pair: an edge that waits, a level in service, a slave in the middle of its initialisation.
fn busy() -> (Bench, [Arc<dyn LevelSource>; 2]) {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x20);
    let sources = [bench.source(5), bench.source(6)];
    sources[0].assert().unwrap();
    assert_eq!(bench.take(), Some(0x0d));
    sources[1].assert().unwrap();
    bench.outb(MASTER, READ_ISR);
    bench.outb(SLAVE, 0x11);
    bench.outb(SLAVE + 1, 0x70);
    (bench, sources)
}

#[test]
fn what_is_restored_reads_back_and_goes_on() {
    let (bench, _sources) = busy();
    let state = bench.pic.save();
    let fresh = Bench::raw();
    fresh.pic.restore(&state).unwrap();
    assert_eq!(fresh.pic.save(), state);
    assert_eq!(fresh.inb(MASTER), 0x20, "the register that was read");
    fresh.outb(SLAVE + 1, 2);
    fresh.outb(SLAVE + 1, 1);
    fresh.outb(SLAVE + 1, 0x5a);
    assert_eq!(fresh.inb(SLAVE + 1), 0x5a, "the initialisation goes on");

    // The sources state their levels. The one in service is neither lost nor doubled; the edge is not a second one.
    let [level, edge] = [fresh.source(5), fresh.source(6)];
    assert_eq!(level.assert().unwrap(), Delivery::Coalesced);
    assert_eq!(edge.assert().unwrap(), Delivery::Coalesced);
    assert_eq!(fresh.take(), None);
    fresh.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(fresh.take(), Some(0x0d));
    level.deassert().unwrap();
    fresh.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(fresh.take(), Some(0x0e));
    fresh.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(fresh.take(), None);
}

/// A saved level that no source stands by is gone at its EOI.
#[test]
fn a_level_that_nobody_restates_is_gone_at_the_eoi() {
    let (bench, _sources) = busy();
    let fresh = Bench::raw();
    fresh.pic.restore(&bench.pic.save()).unwrap();
    fresh.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(fresh.take(), Some(0x0e));
    fresh.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(fresh.take(), None);
}

/// INTR is what the state asks for.
#[test]
fn intr_follows_the_restored_state() {
    let bench = Bench::new();
    let _source = {
        let source = bench.source(1);
        source.assert().unwrap();
        source
    };
    let asking = bench.pic.save();
    let fresh = Bench::raw();
    let idle = fresh.pic.save();
    fresh.pic.restore(&asking).unwrap();
    assert!(fresh.pic.intr());
    assert_eq!(fresh.rises(), 1);
    fresh.pic.restore(&idle).unwrap();
    assert!(!fresh.pic.intr());
}

/// A source that asserts while an older state is restored still asserts afterwards; after a reset too.
#[test]
fn a_live_level_outlives_a_restore() {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x20);
    let idle = bench.pic.save();
    let source = bench.source(5);
    source.assert().unwrap();
    bench.pic.restore(&idle).unwrap();
    assert_eq!(bench.take(), Some(0x0d));
    bench.pic.reset();
    assert_eq!((bench.irr(), bench.isr()), ([0x20, 0], [0, 0]));
    assert_eq!(ELCR.map(|port| bench.inb(port)), [0, 0]);
}

#[test]
fn a_poll_that_was_asked_for_is_saved() {
    let bench = Bench::new();
    bench.outb(MASTER, POLL);
    let fresh = Bench::raw();
    fresh.pic.restore(&bench.pic.save()).unwrap();
    assert_eq!(fresh.inb(MASTER + 1) & 0x80, 0);
    fresh.outb(MASTER + 1, 0x5a);
    assert_eq!(fresh.inb(MASTER + 1), 0x5a);
}

type Spoil = fn(&mut PicState);

#[test]
fn a_malformed_state_is_refused_and_changes_nothing() {
    let cases: [(&str, Spoil); 5] = [
        ("ELCR", |state| state.master.elcr = 0x01),
        ("ELCR", |state| state.slave.elcr = 0x20),
        ("edge of a level input", |state| {
            state.slave.elcr = 0x10;
            state.slave.edges = 0x10;
        }),
        ("highest priority", |state| state.master.highest = 8),
        ("vector", |state| state.slave.base = 0x71),
    ];
    let (bench, _sources) = busy();
    let before = bench.pic.save();
    for (what, spoil) in cases {
        let mut state = before.clone();
        state.master.imr = 0xff;
        spoil(&mut state);
        let error = bench.pic.restore(&state).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(bench.pic.save(), before, "{what}");
    }
}

/// Row 140: saved high. What the first statement of the source says replaces what was saved.
#[test]
fn row_140_the_first_statement_replaces_a_restored_level() {
    for elcr in [0x20, 0] {
        let bench = Bench::new();
        bench.outb(ELCR[0], elcr);
        let before = bench.source(5);
        before.assert().unwrap();
        assert_eq!(bench.take(), Some(0x0d));
        bench.outb(MASTER, NON_SPECIFIC_EOI);
        bench.take();
        bench.outb(MASTER, NON_SPECIFIC_EOI);
        let mut state = bench.pic.save();
        state.master.isr = 0;
        assert_eq!(state.master.high, 0x20);
        let fresh = Bench::raw();
        let device = fresh.source(5);
        fresh.pic.restore(&state).unwrap();
        device.deassert().unwrap();
        assert_eq!(fresh.take(), None, "ELCR {elcr:#x}: the source is low");
        device.assert().unwrap();
        assert_eq!(fresh.take(), Some(0x0d), "ELCR {elcr:#x}: the next interrupt");
    }
}
