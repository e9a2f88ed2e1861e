// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The register interface, in-range and out of it.

use interrupt_core::{Gsi, LoweredBy};
use user_irqchip::ioapic::{SavedPin, Version};
use user_irqchip::{ConfigError, Ioapic};

use crate::{Bench, LEVEL, MASKED, REMOTE_IRR, SELECT, Told, WINDOW};

/// Cases R1 and R2.
#[test]
fn the_version_is_read_only() {
    let bench = Bench::with(Ioapic::builder().version(Version::V20));
    assert_eq!(bench.read_register(0x01), 0x0017_0020);
    bench.write_register(0x01, 0xffe8_ffdf);
    assert_eq!(bench.read_register(0x01), 0x0017_0020);
    let old = Bench::with(Ioapic::builder().version(Version::V11).pins(64));
    assert_eq!(old.read_register(0x01), 0x003f_0011);
}

/// Cases R3 and R4.
#[test]
fn the_id_has_four_bits_and_the_arbitration_id_follows_it() {
    let bench = Bench::new();
    bench.write_register(0x00, 0x1f3e_5d7c);
    assert_eq!(bench.read_register(0x00), 0x0f00_0000);
    assert_eq!(bench.read_register(0x02), 0x0f00_0000);
    bench.write_register(0x02, 0xe0c1_a283);
    assert_eq!(bench.read_register(0x02), 0x0f00_0000);
    assert_eq!(bench.read_register(0x00), 0x0f00_0000);
}

/// Case R5.
#[test]
fn the_select_register_takes_bytes() {
    let bench = Bench::new();
    for value in [0x0f, 0xf0, 0x01, 0xff] {
        bench.write_bytes(SELECT, &[value]);
        let mut read = [0];
        bench.read_bytes(SELECT, &mut read);
        assert_eq!(read, [value]);
    }
}

/// Case R6.
#[test]
fn every_entry_starts_masked() {
    let bench = Bench::new();
    for pin in 0..24 {
        assert_eq!(bench.entry(pin), MASKED);
    }
}

/// Cases R7 and R8.
#[test]
fn indices_of_nothing_take_nothing() {
    let bench = Bench::new();
    let before = bench.ioapic.save().pins;
    for (index, value) in [(0x40, 0xffff_ffff), (0xff, 0xffff_ffff), (0x03, 0), (0x0f, 0)] {
        assert_eq!(bench.read_register(index), value, "index {index:#x}");
        bench.write_register(index, 0);
        bench.write_register(index, 0xffff_ffff);
        assert_eq!(bench.read_register(index), value, "index {index:#x}");
    }
    assert_eq!(bench.ioapic.save().pins, before);
    assert_eq!(bench.sink.take(), []);
}

/// Cases R10 and R15: only 4 and 8 bytes reach the window.
#[test]
fn the_window_ignores_other_widths() {
    let bench = Bench::new();
    bench.write(SELECT, 0x10);
    for width in [0, 1, 2, 3, 5, 6, 7, 9, 16] {
        bench.write_bytes(WINDOW, &vec![0; width]);
    }
    assert_eq!(bench.ioapic.counts().ignored_accesses, 9);
    assert_eq!(bench.entry(0), MASKED);
    bench.write(SELECT, 0x10);
    bench.write_bytes(WINDOW, &[0x31, 0x80, 1, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(
        bench.entry(0),
        MASKED | LEVEL | 0x31,
        "the upper half is not the window's"
    );
}

/// Cases R11, R12 and R14: the EOI register reads 0; offsets of nothing read 0 and ignore writes.
#[test]
fn offsets_of_nothing_read_as_zero() {
    let bench = Bench::with(Ioapic::builder().version(Version::V20));
    assert_eq!(bench.read(0x40), 0);
    assert_eq!(bench.ioapic.counts().ignored_accesses, 0);
    bench.write(SELECT, 0x01);
    for (n, offset) in (1..).zip([0x04, 0x08, 0x14, 0x20, 0x44, 0xfff, u64::MAX]) {
        bench.write(offset, 0xffff_ffff);
        assert_eq!(bench.read(offset), 0, "offset {offset:#x}");
        assert_eq!(bench.ioapic.counts().ignored_accesses, 2 * n);
    }
    assert_eq!(bench.read(WINDOW), 0x0017_0020, "the selection is the same");
    // An 8-byte write to the select register is one of its low half.
    bench.write_bytes(SELECT, &[0x00, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(bench.read(SELECT), 0);
}

/// Case R15: reads of a width that no processor makes leave the buffer alone; wide ones are zero-extended.
#[test]
fn reads_fill_what_a_processor_asks_for() {
    let bench = Bench::with(Ioapic::builder().version(Version::V20));
    bench.write(SELECT, 0x01);
    for width in [0, 3, 5, 6, 7, 9, 16] {
        let mut data = vec![0xa5; width];
        bench.read_bytes(WINDOW, &mut data);
        assert_eq!(data, vec![0xa5; width]);
    }
    assert_eq!(bench.ioapic.counts().ignored_accesses, 7);
    let mut data = [0xa5; 8];
    bench.read_bytes(WINDOW, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x0017_0020);
    let mut data = [0xa5; 2];
    bench.read_bytes(WINDOW, &mut data);
    assert_eq!(u16::from_le_bytes(data), 0x0020);
}

/// Cases E1, E2 and E4: the delivery status cannot be written, neither to 1 nor to 0.
#[test]
fn the_delivery_status_is_read_only() {
    const STATUS: u64 = 0x1000;
    let bench = Bench::new();
    bench.set_entry(23, 0x3a00_0000_0000_965f);
    assert_eq!(bench.entry(23), 0x3a00_0000_0000_965f & !STATUS);
    let mut state = bench.ioapic.save();
    state.pins[23] = SavedPin {
        entry: MASKED | STATUS | 0x31,
        high: false,
        edge: false,
        sent_to: None,
    };
    bench.ioapic.restore(&state).unwrap();
    bench.set_low(23, MASKED | 0x32);
    assert_eq!(bench.entry(23), MASKED | STATUS | 0x32);
}

/// Case E3.
#[test]
fn remote_irr_is_read_only() {
    let bench = Bench::new();
    let source = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | REMOTE_IRR | 0x31);
    assert_eq!(bench.entry(5), LEVEL | 0x31);
    source.assert().unwrap();
    bench.set_low(5, LEVEL | 0x31);
    assert_eq!(bench.entry(5), LEVEL | REMOTE_IRR | 0x31);
}

/// Case E7: reserved bits are stored, as in KVM's IOAPIC.
#[test]
fn reserved_bits_are_stored() {
    let bench = Bench::new();
    bench.write_register(0x11 + 2 * 5, 0xffff_ffff);
    bench.write_register(0x10 + 2 * 5, 0xffff_0000);
    assert_eq!(bench.entry(5), 0xffff_ffff_ffff_0000);
}

/// Case E13.
#[test]
fn polarity_does_not_turn_a_logical_level_round() {
    let bench = Bench::new();
    let source = bench.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    bench.set_entry(5, LEVEL | 1 << 13 | 0x31);
    bench.sink.take();
    source.assert().unwrap();
    assert_eq!(bench.sink.take(), [Told::Sent(5, 0x8031)]);
}

/// Case L17, and row 84: the EOI register ends what a suppressed broadcast does not. It is of version 0x20.
#[test]
fn the_eoi_register_ends_and_tells_once() {
    for (version, entry, levels, ignored) in [
        (Version::V20, LEVEL | 0x31, 0, 0),
        (Version::V11, LEVEL | REMOTE_IRR | 0x31, 1 << 5, 1),
    ] {
        let bench = Bench::with(Ioapic::builder().version(version));
        let source = bench.ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
        bench.set_entry(5, LEVEL | 0x31);
        source.assert().unwrap();
        bench.write(0x40, 0x31);
        assert_eq!((bench.entry(5), bench.ioapic.levels()), (entry, levels), "{version:?}");
        assert_eq!(bench.ioapic.counts().ignored_accesses, ignored);
        // Anything but 4 or 8 bytes is no write of it.
        bench.write_bytes(0x40, &[0x31]);
        assert_eq!(bench.entry(5), entry);
    }
}

/// Case G18, and GSIs on either side of the pins.
#[test]
fn a_gsi_without_a_pin_is_an_error() {
    let bench = Bench::with(Ioapic::builder().first_gsi(Gsi(24)).pins(8));
    for gsi in [0, 23, 32, u32::MAX] {
        let error = bench.ioapic.source(Gsi(gsi), "device", LoweredBy::Device).unwrap_err();
        assert_eq!(error.errno(), Some(2), "{error}");
        assert!(bench.ioapic.entry(Gsi(gsi)).is_err());
    }
    assert!(bench.ioapic.source(Gsi(31), "device", LoweredBy::Device).is_ok());
}

#[test]
fn a_chip_that_cannot_be_is_refused() {
    let sink = || std::sync::Arc::new(crate::Sink::default());
    for pins in [0, 65, 255] {
        let error = Ioapic::builder().pins(pins).build(sink()).unwrap_err();
        assert_eq!(error, ConfigError::Pins { pins });
    }
    let first_gsi = Gsi(u32::MAX - 23);
    let error = Ioapic::builder().first_gsi(first_gsi).build(sink()).unwrap_err();
    assert_eq!(error, ConfigError::Gsis { first_gsi, pins: 24 });
}

/// The ID of the builder is the one after power-on and after a reset.
#[test]
fn the_builders_id_comes_back_with_a_reset() {
    let bench = Bench::with(Ioapic::builder().id(0xa));
    assert_eq!(bench.read_register(0x00), 0x0a00_0000);
    bench.write_register(0x00, 0x0300_0000);
    assert_eq!(bench.read_register(0x00), 0x0300_0000);
    bench.ioapic.reset().unwrap();
    assert_eq!(bench.read_register(0x00), 0x0a00_0000);
    let refused = Ioapic::builder().id(16).build(bench.sink.clone()).unwrap_err();
    assert_eq!(refused, ConfigError::Id { id: 16 });
}

#[test]
fn a_select_of_three_bytes_and_an_eoi_register_that_is_not_there_are_ignored() {
    let bench = Bench::new();
    bench.write_bytes(SELECT, &[1]);
    let before = bench.ioapic.counts().ignored_accesses;
    bench.write_bytes(SELECT, &[0; 3]);
    assert_eq!(bench.read(SELECT), 1);
    // Version 0x11 has none.
    assert_eq!(bench.read(0x40), 0);
    assert_eq!(bench.ioapic.counts().ignored_accesses, before + 2);
}

#[test]
fn an_id_has_four_bits() {
    let build = |id| {
        Ioapic::builder()
            .id(id)
            .build(std::sync::Arc::new(crate::Sink::default()))
    };
    assert_eq!(build(15).unwrap().save().id, 15);
    build(16).unwrap_err();
}
