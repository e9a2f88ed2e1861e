// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level lines on a pair of 8259s: rows 52 to 55.

use crate::conformance::rows;
use crate::harness::TIME_LIMIT;
use crate::rig::PicRig;

rows! { dyn PicRig;
    row_52_edge_and_level_pins_end_at_ocw2 [] TIME_LIMIT;
    row_53_auto_eoi_ends_at_inta [] TIME_LIMIT;
    row_54_slave_pins_end_at_the_slaves_eoi [] TIME_LIMIT;
    row_55_unmask_injects [] TIME_LIMIT;
}

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const ELCR_MASTER: u16 = 0x4d0;
const ELCR_SLAVE: u16 = 0x4d1;

const NON_SPECIFIC_EOI: u8 = 0x20;
const SPECIFIC_EOI: u8 = 0x60;
const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;

/// Vector of IRQ 0; IRQ 8 has `BASE + 8`.
const BASE: u8 = 0x40;

/// ICW1 to ICW4 on both chips, cascade on IRQ 2, then all pins masked but the cascade.
fn initialise(rig: &mut dyn PicRig, auto_eoi: bool) {
    for (chip, base, cascade) in [(MASTER, BASE, 4), (SLAVE, BASE + 8, 2)] {
        rig.outb(chip, 0x11);
        rig.outb(chip + 1, base);
        rig.outb(chip + 1, cascade);
        rig.outb(chip + 1, if auto_eoi { 3 } else { 1 });
    }
    rig.outb(MASTER + 1, !(1 << 2));
    rig.outb(SLAVE + 1, 0xff);
}

fn irr(rig: &mut dyn PicRig, chip: u16) -> u8 {
    rig.settle();
    rig.outb(chip, READ_IRR);
    rig.inb(chip)
}

fn isr(rig: &mut dyn PicRig, chip: u16) -> u8 {
    rig.outb(chip, READ_ISR);
    rig.inb(chip)
}

/// IRQ 5 as an edge and as a level pin, ended non-specifically and specifically: the source is notified at OCW2, not
/// before.
pub fn row_52_edge_and_level_pins_end_at_ocw2(rig: &mut dyn PicRig) {
    initialise(rig, false);
    let line = rig.bind_resample(5);
    for (level, eoi) in [
        (false, NON_SPECIFIC_EOI),
        (false, SPECIFIC_EOI | 5),
        (true, NON_SPECIFIC_EOI),
        (true, SPECIFIC_EOI | 5),
    ] {
        rig.outb(ELCR_MASTER, u8::from(level) << 5);
        rig.outb(MASTER + 1, !(1 << 5));
        assert_eq!(rig.inta(), None);
        line.trigger();
        assert_eq!(irr(rig, MASTER), 1 << 5);
        assert_eq!(rig.inta(), Some(BASE + 5));
        assert_eq!(isr(rig, MASTER), 1 << 5);
        assert_eq!(rig.inta(), None, "in service");
        assert_eq!(line.n(), 0);
        rig.outb(MASTER, eoi);
        assert_eq!(line.n(), 1);
        assert_eq!(isr(rig, MASTER), 0);
        assert_eq!(irr(rig, MASTER), 0, "line low");
        assert_eq!(rig.inta(), None);
    }
}

/// With auto-EOI the interrupt ends, and the source is notified, when the CPU takes the interrupt.
pub fn row_53_auto_eoi_ends_at_inta(rig: &mut dyn PicRig) {
    initialise(rig, true);
    rig.outb(ELCR_MASTER, 1 << 5);
    rig.outb(MASTER + 1, !(1 << 5));
    let line = rig.bind_resample(5);
    line.trigger();
    assert_eq!(irr(rig, MASTER), 1 << 5);
    assert_eq!(line.n(), 0);
    assert_eq!(rig.inta(), Some(BASE + 5));
    assert_eq!(line.n(), 1);
    assert_eq!(isr(rig, MASTER), 0);
    assert_eq!(rig.inta(), None);
}

/// IRQ 10 ends at the slave's EOI. The master's EOI, for the cascade, notifies no source.
pub fn row_54_slave_pins_end_at_the_slaves_eoi(rig: &mut dyn PicRig) {
    initialise(rig, false);
    rig.outb(ELCR_SLAVE, 1 << 2);
    rig.outb(SLAVE + 1, !(1 << 2));
    let line = rig.bind_resample(10);
    line.trigger();
    assert_eq!(irr(rig, SLAVE), 1 << 2);
    assert_eq!(rig.inta(), Some(BASE + 10));
    assert_eq!((isr(rig, MASTER), isr(rig, SLAVE)), (1 << 2, 1 << 2));
    rig.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(line.n(), 0);
    assert_eq!((isr(rig, MASTER), isr(rig, SLAVE)), (0, 1 << 2));
    rig.outb(SLAVE, NON_SPECIFIC_EOI);
    assert_eq!(line.n(), 1);
    assert_eq!(isr(rig, SLAVE), 0);
    assert_eq!(rig.inta(), None);
}

/// An 8259 has no unmask-resample: the level that waited behind the mask is injected, and no source is notified.
pub fn row_55_unmask_injects(rig: &mut dyn PicRig) {
    initialise(rig, false);
    rig.outb(ELCR_MASTER, 1 << 5);
    rig.outb(MASTER + 1, 0xff);
    let line = rig.bind_resample(5);
    line.trigger();
    assert_eq!(irr(rig, MASTER), 1 << 5);
    assert_eq!(rig.inta(), None);
    rig.outb(MASTER + 1, !(1 << 5));
    assert_eq!(line.n(), 0);
    assert_eq!(rig.inta(), Some(BASE + 5));
    rig.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(line.n(), 1);
    assert_eq!(rig.inta(), None);
}
