// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! States saved and restored.

use interrupt_core::{Delivery, Gsi, LoweredBy};
use user_irqchip::{Ioapic, IoapicState, SavedPin, StateError, Version};

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, SELECT, Told};

fn saved(entry: u64) -> SavedPin {
    SavedPin {
        entry,
        high: false,
        edge: false,
        sent_to: None,
    }
}

/// Cases S1, S2 and S4: a fresh chip tells its output of the routes that were in use, and of nothing else; the chip that has them
/// already tells nothing.
#[test]
fn restoring_sets_the_routes_that_differ() {
    const ENTRY: u64 = 0xd00_0000_0000_0000 | LEVEL | 0x3d;
    let bench = Bench::new();
    bench.set_entry(10, ENTRY);
    let state = bench.ioapic.save();
    let fresh = Bench::new();
    fresh.ioapic.restore(&state).unwrap();
    assert_eq!(fresh.sink.take(), [Told::Routed(10, Some((0xfee0_d000, 0x803d)))]);
    assert_eq!(fresh.entry(10), ENTRY);
    assert_eq!(fresh.ioapic.save().pins, state.pins);
    bench.sink.take();
    bench.ioapic.restore(&state).unwrap();
    assert_eq!(bench.sink.take(), []);
    // What was routed and is not in the state loses its route.
    bench.set_entry(11, LEVEL | 0x41);
    bench.sink.take();
    bench.ioapic.restore(&state).unwrap();
    assert_eq!(bench.sink.take(), [Told::Routed(11, None)]);
}

/// An interrupt in service behind a mask finds its way back: on a split irqchip KVM tells of the EOI of a routed vector only.
#[test]
fn a_masked_pin_in_service_is_routed() {
    let fresh = Bench::new();
    let mut state = fresh.ioapic.save();
    state.pins[10] = saved(MASKED | LEVEL | REMOTE_IRR | 0x31);
    fresh.ioapic.restore(&state).unwrap();
    assert_eq!(fresh.sink.take(), [Told::Routed(10, Some((0xfee0_0000, 0x8031)))]);
    fresh.ioapic.eoi(0x31);
    assert_eq!(fresh.entry(10), MASKED | LEVEL | 0x31);
}

/// Cases S3 and S6.
#[test]
fn what_is_restored_reads_back() {
    let bench = Bench::new();
    let mut state = bench.ioapic.save();
    state.pins[2] = SavedPin {
        entry: LEVEL | 15,
        high: true,
        edge: false,
        sent_to: None,
    };
    state.id = 0xf;
    state.select = 0x14;
    bench.ioapic.restore(&state).unwrap();
    assert_eq!(bench.ioapic.levels(), 4);
    assert_eq!(bench.read(0x10), (LEVEL | 15) as u32, "the selection too");
    assert_eq!(bench.read_register(0x00), 0x0f00_0000);
    assert_eq!(bench.ioapic.save().pins, state.pins);
}

/// Law 12: after the restore the source states its level. It is neither lost nor doubled, in service or not.
#[test]
fn a_source_that_restates_a_level_pin_is_sent_once() {
    // Saved with the line high: in service, or masked.
    for entry in [LEVEL | REMOTE_IRR | 0x31, LEVEL | MASKED | 0x31] {
        let bench = Bench::new();
        let mut state = bench.ioapic.save();
        state.pins[5] = SavedPin {
            entry,
            high: true,
            edge: false,
            sent_to: None,
        };
        bench.ioapic.restore(&state).unwrap();
        let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
        bench.sink.take();
        assert_eq!(device.assert().unwrap(), Delivery::Pending);
        bench.ioapic.eoi(0x31);
        bench.set_low(5, LEVEL | 0x31);
        assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)], "{entry:#x}");
    }
}

/// A saved level that no source stands by ends at the first EOI, or at the first unmask.
#[test]
fn a_level_that_nobody_restates_is_gone_when_the_sources_are_asked() {
    for entry in [LEVEL | REMOTE_IRR | 0x31, LEVEL | MASKED | 0x31] {
        let bench = Bench::new();
        let mut state = bench.ioapic.save();
        state.pins[5] = SavedPin {
            entry,
            high: true,
            edge: false,
            sent_to: None,
        };
        bench.ioapic.restore(&state).unwrap();
        bench.sink.take();
        bench.ioapic.eoi(0x31);
        bench.set_low(5, LEVEL | 0x31);
        assert_eq!(bench.sink.take(), [], "{entry:#x}");
        assert_eq!((bench.entry(5), bench.ioapic.levels()), (LEVEL | 0x31, 0));
    }
}

/// An edge pin that was high when it was saved is not sent again because its source says so again.
#[test]
fn a_source_that_restates_an_edge_pin_sends_no_second_edge() {
    let bench = Bench::new();
    let mut state = bench.ioapic.save();
    state.pins[5] = SavedPin {
        entry: 0x31,
        high: true,
        edge: false,
        sent_to: None,
    };
    bench.ioapic.restore(&state).unwrap();
    bench.sink.take();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    assert_eq!(device.assert().unwrap(), Delivery::Coalesced);
    device.deassert().unwrap();
    assert_eq!(bench.sink.take(), []);
    device.assert().unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x31)]);
}

/// A source that asserts while an older state is restored still asserts afterwards.
#[test]
fn a_live_level_outlives_a_restore() {
    let bench = Bench::new();
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | 0x31);
    let idle = bench.ioapic.save();
    device.assert().unwrap();
    bench.sink.take();
    bench.ioapic.restore(&idle).unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
    bench.ioapic.reset().unwrap();
    assert_eq!(bench.sink.take(), [Told::Routed(5, None)]);
    assert_eq!((bench.entry(5), bench.ioapic.levels()), (MASKED, 1 << 5));
    bench.ioapic.eoi(0x31);
    assert_eq!(bench.sink.take(), []);
}

/// An edge that came up while the output could not be told of its route is in the state.
#[test]
fn an_edge_that_waits_for_its_route_is_saved() {
    let bench = Bench::new();
    bench.sink.refuse_pins(true);
    bench.set_entry(5, 0x31);
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    device.assert().unwrap();
    let state = bench.ioapic.save();
    assert_eq!(state.pins[5].entry, 0x31);
    assert!(state.pins[5].edge);
    let fresh = Bench::new();
    fresh.ioapic.restore(&state).unwrap();
    fresh.sink.take();
    fresh.set_low(5, 0x31);
    assert_eq!(fresh.sink.take(), [Told::Sent(5, 0x31)]);
}

type Spoil = fn(&mut IoapicState);

#[test]
fn a_malformed_state_is_refused_and_changes_nothing() {
    let cases: [(&str, Spoil); 7] = [
        ("IOAPIC version", |state| state.version = 0x20),
        ("IOAPIC ID", |state| state.id = 0x10),
        ("number of pins", |state| state.pins.truncate(23)),
        ("number of pins", |state| state.pins.push(saved(MASKED))),
        ("remote IRR", |state| state.pins[3] = saved(REMOTE_IRR | 0x31)),
        ("edge that waits", |state| {
            state.pins[3] = SavedPin {
                edge: true,
                ..saved(LEVEL | 0x31)
            };
        }),
        ("edge that waits", |state| {
            state.pins[3] = SavedPin {
                edge: true,
                ..saved(MASKED | 0x31)
            };
        }),
    ];
    let bench = Bench::new();
    bench.set_entry(5, LEVEL | 0x31);
    bench.sink.take();
    let before = bench.ioapic.save();
    for (what, spoil) in cases {
        let mut state = before.clone();
        state.pins[5] = saved(MASKED);
        spoil(&mut state);
        let error = bench.ioapic.restore(&state).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(bench.ioapic.save(), before, "{what}");
    }
    assert_eq!(bench.sink.take(), []);
}

/// Routes that the output refuses: the state is taken over all the same, and the pins wait for the next write of an entry.
#[test]
fn a_refused_route_is_an_error_of_a_restored_chip() {
    let bench = Bench::with(Ioapic::builder().version(Version::V11));
    bench.set_entry(5, LEVEL | 0x31);
    bench.set_entry(6, LEVEL | 0x41);
    let state = bench.ioapic.save();
    let fresh = Bench::with(Ioapic::builder().version(Version::V11));
    fresh.sink.refuse_pins(true);
    let error = fresh.ioapic.restore(&state).unwrap_err();
    assert!(matches!(error, StateError::Route(_)), "{error}");
    assert_eq!(fresh.ioapic.counts().route_errors, 2);
    assert_eq!(fresh.ioapic.save(), state);
    fresh.sink.refuse_pins(false);
    fresh.set_low(5, LEVEL | 0x31);
    let route = |pin, data| Told::Routed(pin, Some((0xfee0_0000, data)));
    assert_eq!(fresh.sink.take(), [route(5, 0x8031), route(6, 0x8041)]);
}

/// Row 140: saved high. What the first statement of the source says replaces what was saved.
#[test]
fn row_140_the_first_statement_replaces_a_restored_level() {
    for (entry, trigger) in [(LEVEL | MASKED | 0x31, LEVEL), (0x31, 0)] {
        let bench = Bench::new();
        let mut state = bench.ioapic.save();
        state.pins[5] = SavedPin {
            entry,
            high: true,
            edge: false,
            sent_to: None,
        };
        bench.ioapic.restore(&state).unwrap();
        let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
        assert_eq!(bench.ioapic.levels(), 1 << 5, "until a source says otherwise");
        device.deassert().unwrap();
        assert_eq!(bench.ioapic.levels(), 0, "{entry:#x}: the source is low");
        bench.set_low(5, trigger | 0x31);
        bench.sink.take();
        device.assert().unwrap();
        let data = (trigger | 0x31) as u32;
        assert_eq!(
            bench.sink.take(),
            [Told::Sent(5, data)],
            "{entry:#x}: the next interrupt"
        );
    }
}

/// Row 140: two sources. One that is low does not speak for the other.
#[test]
fn row_140_each_source_speaks_for_itself() {
    let bench = Bench::new();
    let mut state = bench.ioapic.save();
    state.pins[5] = SavedPin {
        entry: 0x31,
        high: true,
        edge: false,
        sent_to: None,
    };
    let [low, high] = ["low", "high"].map(|label| bench.ioapic.source(Gsi(5), label, LoweredBy::Device).unwrap());
    bench.ioapic.restore(&state).unwrap();
    bench.sink.take();
    low.deassert().unwrap();
    high.assert().unwrap();
    assert_eq!(bench.sink.take(), [], "no second edge");
    assert_eq!(bench.ioapic.levels(), 1 << 5);
    high.deassert().unwrap();
    assert_eq!(bench.ioapic.levels(), 0);
}

/// What another model of an IOAPIC has saved, with what no chip here can be in, and back.
#[test]
fn the_registers_of_another_model_are_restored_and_read_back() {
    const DELIVERY_STATUS: u64 = 0x1000;
    let mut entries = [MASKED; 24];
    entries[4] = 0x31 | REMOTE_IRR | DELIVERY_STATUS;
    entries[5] = 0x0100_0000_0000_0000 | LEVEL | REMOTE_IRR | 0x32;
    let state = IoapicState::from_registers(Version::V11, 0x1a, 0xf3, entries);
    let bench = Bench::new();
    bench.ioapic.restore(&state).unwrap();
    assert_eq!(bench.read(SELECT), 0x1a);
    assert_eq!(bench.read_register(0), 0x0300_0000);
    assert_eq!(bench.entry(4), 0x31);
    assert_eq!(bench.entry(5), entries[5]);
    // The interrupt in service ends, and the device is heard again.
    let device = bench.ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    bench.sink.take();
    device.assert().unwrap();
    assert_eq!(bench.sink.take(), []);
    bench.ioapic.eoi(0x32);
    device.assert().unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8032)]);
    entries[4] = 0x31;
    assert_eq!(bench.ioapic.save().entries().collect::<Vec<_>>(), entries);
}

/// A pin in service that the guest has moved: the restored chip knows the old destination until the EOI.
#[test]
fn a_moved_pin_is_told_after_its_eoi_in_another_chip() {
    const TO_1: u64 = 1 << 56;
    let before = Bench::new();
    before.set_entry(5, LEVEL | 0x31);
    let source = before.ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    source.assert().unwrap();
    before.set_entry(5, TO_1 | LEVEL | 0x31);
    let state = before.ioapic.save();
    let after = Bench::new();
    after.ioapic.restore(&state).unwrap();
    assert_eq!(after.sink.take(), [Told::Routed(5, Some((0xfee0_0000, 0x8031)))]);
    after.ioapic.eoi(0x31);
    assert_eq!(after.sink.take(), [Told::Routed(5, Some((0xfee0_1000, 0x8031)))]);
    // Neither an address without an interrupt in service nor one that is no message's.
    for (entry, sent_to) in [(LEVEL | 0x31, 0xfee0_0000), (LEVEL | REMOTE_IRR | 0x31, 0x1234)] {
        let mut wrong = state.clone();
        (wrong.pins[5].entry, wrong.pins[5].sent_to) = (entry, Some(sent_to));
        after.ioapic.restore(&wrong).unwrap_err();
    }
}
