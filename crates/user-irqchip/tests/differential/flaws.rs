// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The flaws of the kernel that the traces make allowance for, each shown once: on the kernel, and absent from the model.
//!
//! A trial fails when the model has the flaw. A kernel that no longer has the flaw is noted: the traces need no allowance for
//! that kernel.

use testkit::harness::Suite;
use testkit::kernel_rig::{KernelPicRig, KernelRig};
use testkit::need::Need;
use testkit::rig::{LEVEL, MASKED, PicRig, Rig};

use crate::rig::{UserPicRig, UserRig};
use crate::{ioapic, pic};

const PIN: u32 = 18;
const VECTOR: u8 = 0x31;
const LEVEL_ENTRY: u64 = LEVEL | VECTOR as u64;

/// Whether a rig shows the flaw.
type Shows<R> = fn(&mut R) -> bool;

/// The model does not show `flaw`, whatever the kernel does.
fn check<R: ?Sized>(flaw: &str, shows: Shows<R>, model: &mut R, kernel: &mut R) {
    assert!(!shows(model), "the model: {flaw}");
    if !shows(kernel) {
        println!("note: this kernel is repaired: {flaw}");
    }
}

const IOAPIC: [(&str, Shows<dyn Rig>); 8] = [
    (ioapic::flaw::LOST, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
        let line = rig.bind_resample(PIN);
        rig.set_line(PIN, true);
        rig.unmask(PIN);
        assert_eq!(line.n(), 1, "the source is asked");
        rig.accept().is_none()
    }),
    (ioapic::flaw::PHANTOM, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
        let line = rig.bind_resample(PIN);
        line.trigger();
        rig.settle();
        rig.unmask(PIN);
        assert_eq!((line.n(), rig.accept()), (1, None), "the source is asked, and is idle");
        rig.set_line(PIN, false);
        rig.accept().is_some()
    }),
    (ioapic::flaw::PULSE, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
        rig.set_line(PIN, true);
        rig.bind_edge(PIN).pulse();
        rig.settle();
        !rig.irr(PIN)
    }),
    (ioapic::flaw::STAYS, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
        let (gone, _left) = (rig.bind_resample(PIN), rig.bind_resample(PIN));
        gone.trigger();
        rig.settle();
        drop(gone);
        rig.irr(PIN)
    }),
    (ioapic::flaw::HIDDEN, |rig| {
        rig.set_rte(PIN, VECTOR.into());
        rig.set_line(PIN, true);
        assert_eq!(rig.accept(), Some(VECTOR));
        !rig.irr(PIN)
    }),
    (ioapic::flaw::RESENT, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY);
        // A level pin with the vector is what makes the kernel look at all.
        rig.set_rte(PIN + 1, LEVEL_ENTRY);
        rig.set_line(PIN, true);
        assert_eq!(rig.accept(), Some(VECTOR));
        rig.write_rte_low(PIN, VECTOR.into());
        rig.eoi();
        rig.accept().is_some()
    }),
    (ioapic::flaw::RETRIED, |rig| {
        rig.set_rte(PIN, LEVEL_ENTRY);
        let line = rig.bind_resample(PIN);
        rig.set_lapic_enabled(false);
        rig.set_line(PIN, true);
        rig.set_lapic_enabled(true);
        assert_eq!(rig.accept(), None);
        drop(line);
        rig.accept().is_some()
    }),
    (ioapic::flaw::ILLEGAL, |rig| {
        rig.set_rte(PIN, LEVEL | 5);
        rig.set_line(PIN, true);
        rig.remote_irr(PIN)
    }),
];

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const BASE: u8 = 0x40;

fn initialise(rig: &mut dyn PicRig, slave_icw4: u8) {
    for (chip, base, cascade, icw4) in [(MASTER, BASE, 4, 1), (SLAVE, BASE + 8, 2, slave_icw4)] {
        for (port, value) in [(chip, 0x11), (chip + 1, base), (chip + 1, cascade), (chip + 1, icw4)] {
            rig.outb(port, value);
        }
    }
    // KVM's 8259 looks at its requests when a mask is written.
    rig.outb(MASTER + 1, 0);
    rig.outb(SLAVE + 1, 0);
}

fn irr(rig: &mut dyn PicRig) -> u8 {
    rig.settle();
    rig.outb(MASTER, 0x0a);
    rig.inb(MASTER)
}

fn isr(rig: &mut dyn PicRig) -> u8 {
    rig.outb(MASTER, 0x0b);
    rig.inb(MASTER)
}

const PIC: [(&str, Shows<dyn PicRig>); 7] = [
    (pic::flaw::STAYS, |rig| {
        initialise(rig, 1);
        rig.outb(0x4d0, 0x20);
        rig.outb(MASTER + 1, 0x20);
        let (gone, _left) = (rig.bind_resample(5), rig.bind_resample(5));
        gone.trigger();
        rig.settle();
        drop(gone);
        irr(rig) & 0x20 != 0
    }),
    (pic::flaw::ICW1, |rig| {
        initialise(rig, 1);
        let line = rig.bind_resample(5);
        line.trigger();
        assert_eq!(rig.inta(), Some(BASE + 5));
        rig.outb(MASTER, 0x11);
        // Stated again, and not risen: no edge.
        line.trigger();
        irr(rig) & 0x20 != 0
    }),
    (pic::flaw::ICW4, |rig| {
        initialise(rig, 1);
        // IRQ 12 is in service, and IRQ 9, which is higher, waits behind the cascade.
        let (low, high) = (rig.bind_resample(12), rig.bind_resample(9));
        low.trigger();
        assert_eq!(rig.inta(), Some(BASE + 12));
        high.trigger();
        assert_eq!(rig.inta(), None);
        // Special fully nested mode lets it through.
        for (port, value) in [(MASTER, 0x11), (MASTER + 1, BASE), (MASTER + 1, 4), (MASTER + 1, 0x11)] {
            rig.outb(port, value);
        }
        rig.inta().is_none()
    }),
    (pic::flaw::ELCR, |rig| {
        initialise(rig, 1);
        let line = rig.bind_resample(5);
        line.trigger();
        assert_eq!(rig.inta(), Some(BASE + 5));
        // The line is high, and a level now.
        rig.outb(0x4d0, 0x20);
        irr(rig) & 0x20 == 0
    }),
    (pic::flaw::SPECIAL_MASK, |rig| {
        initialise(rig, 1);
        let (high, low) = (rig.bind_resample(3), rig.bind_resample(6));
        high.trigger();
        assert_eq!(rig.inta(), Some(BASE + 3));
        low.trigger();
        assert_eq!(rig.inta(), None);
        rig.outb(MASTER, 0x68);
        rig.outb(MASTER + 1, 0x08);
        rig.inta().is_none()
    }),
    (pic::flaw::POLL, |rig| {
        initialise(rig, 1);
        let line = rig.bind_resample(5);
        line.trigger();
        rig.settle();
        rig.outb(MASTER, 0x0c);
        // Linux before 6.5 leaves bit 7 clear, which says that there was an interrupt; without one, the answer is 7.
        assert_eq!(rig.inb(MASTER) & 0x7f, 5);
        isr(rig) == 0 && line.n() == 1
    }),
    (pic::flaw::SINGLE, |rig| {
        for (port, value) in [(MASTER, 0x12), (MASTER + 1, BASE), (MASTER + 1, 0x5a)] {
            rig.outb(port, value);
        }
        // Without ICW3 and ICW4, the third word is the mask.
        rig.inb(MASTER + 1) != 0x5a
    }),
];

/// Adds a trial for each flaw.
pub fn add(suite: Suite) -> Suite {
    let name = |chip: &str, flaw: &str| format!("{chip}_flaw::{}", flaw.replace(' ', "_"));
    let add = |needs: &[Need], suite: Suite, name, body: Box<dyn FnOnce() + Send>| suite.test(name, needs, body);
    let suite = IOAPIC.into_iter().fold(suite, |suite, (flaw, shows)| {
        let body = move || check(flaw, shows, &mut UserRig::new(), &mut KernelRig::new());
        add(&ioapic::needs(), suite, name("ioapic", flaw), Box::new(body))
    });
    PIC.into_iter().fold(suite, |suite, (flaw, shows)| {
        let body = move || check(flaw, shows, &mut UserPicRig::new(), &mut KernelPicRig::new());
        add(KernelPicRig::NEEDS, suite, name("pic", flaw), Box::new(body))
    })
}
