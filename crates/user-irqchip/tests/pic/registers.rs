// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports, in range and out of it, and the edge/level control registers.

use interrupt_core::{EoiNotifier, Gsi, Listener, LoweredBy};
use user_irqchip::Pic;
use vm_device::DevicePio;
use vm_device::bus::PioAddress;

use crate::{Bench, ELCR, MASTER, SLAVE};

/// Case P6: the mask of what can be level-triggered is fixed, however often it is written.
#[test]
fn the_control_registers_have_a_fixed_mask() {
    let bench = Bench::new();
    for _ in 0..2 {
        bench.outb(ELCR[0], 0x5f);
        bench.outb(ELCR[1], 0x5f);
        assert_eq!(ELCR.map(|port| bench.inb(port)), [0x58, 0x5e]);
    }
    for port in ELCR {
        bench.outb(port, 0xff);
    }
    assert_eq!(ELCR.map(|port| bench.inb(port)), [0xf8, 0xde]);
}

/// An input that becomes level-triggered asks by its level from then on; one that becomes edge-triggered by its next rise.
#[test]
fn switching_an_input_looks_at_its_line() {
    let bench = Bench::new();
    let source = bench.source(5);
    source.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0d));
    assert_eq!(bench.irr()[0], 0);
    bench.outb(ELCR[0], 0x20);
    assert_eq!(bench.irr()[0], 0x20);
    bench.outb(ELCR[0], 0);
    assert_eq!(bench.irr()[0], 0);
    source.deassert().unwrap();
    source.assert().unwrap();
    assert_eq!(bench.irr()[0], 0x20);
    bench.outb(ELCR[0], 0x20);
    source.deassert().unwrap();
    assert_eq!(bench.irr()[0], 0, "the edge has become part of the level");
}

#[test]
fn other_ports_and_widths_are_ignored() {
    let bench = Bench::new();
    bench.outb(MASTER + 1, 0x5a);
    let before = bench.pic.save();
    for (n, (port, width)) in (1..).zip([(0x22, 1), (0x1f, 1), (0x4d2, 1), (MASTER, 0), (MASTER, 2), (SLAVE, 4)]) {
        bench.pic.pio_write(PioAddress(port), 0, &vec![0x11; width]);
        let mut data = vec![0xa5; width];
        bench.pic.pio_read(PioAddress(port), 0, &mut data);
        assert_eq!(data, vec![0; width], "port {port:#x}");
        assert_eq!(bench.pic.counts().ignored_accesses, 2 * n);
    }
    // An offset beyond the last port does not wrap round to the first.
    bench.pic.pio_write(PioAddress(0xffff), 0x21, &[0x11]);
    assert_eq!(bench.pic.counts().ignored_accesses, 13);
    assert_eq!(bench.pic.save(), before);
}

#[test]
fn a_port_is_the_sum_of_base_and_offset() {
    let bench = Bench::new();
    for (base, ports) in Pic::PORTS {
        assert_eq!(ports, 2);
        bench.pic.pio_write(PioAddress(base), 1, &[0x5a]);
    }
    assert_eq!([0x21, 0xa1, 0x4d1].map(|port| bench.inb(port)), [0x5a, 0x5a, 0x5a]);
}

#[test]
fn a_gsi_without_an_input_is_an_error() {
    let bench = Bench::new();
    for gsi in [2, 16, u32::MAX] {
        let error = bench.pic.source(Gsi(gsi), "device", LoweredBy::Device).unwrap_err();
        assert_eq!(error.errno(), Some(2), "{error}");
        assert!(
            bench
                .pic
                .subscribe(Gsi(gsi).into(), Listener::callback(|_| {}))
                .is_err()
        );
    }
    let device = bench.pic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let _guard = bench
        .pic
        .subscribe(device.key().into(), Listener::callback(|_| {}))
        .unwrap();
    let second = bench.pic.subscribe(device.key().into(), Listener::callback(|_| {}));
    assert_eq!(second.unwrap_err().errno(), Some(16));
}
