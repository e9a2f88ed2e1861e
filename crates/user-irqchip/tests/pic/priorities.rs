// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who asks for the processor: priorities, masks, the cascade, and requests that are gone.

use interrupt_core::Delivery;

use crate::{
    Bench, ELCR, MASTER, NO_SPECIAL_MASK, NON_SPECIFIC_EOI, POLL, SET_PRIORITY, SLAVE, SPECIAL_FULLY_NESTED,
    SPECIAL_MASK, SPECIFIC_EOI, X86,
};

#[test]
fn the_highest_priority_goes_first_and_equal_ones_wait() {
    let bench = Bench::new();
    let sources = [6, 3, 9].map(|irq| bench.source(irq));
    for source in &sources {
        assert_eq!(source.assert().unwrap(), Delivery::Delivered(1));
    }
    // IRQ 9 comes in on input 2.
    assert_eq!(bench.take(), Some(0x71));
    assert_eq!(bench.take(), None);
    bench.outb(SLAVE, NON_SPECIFIC_EOI);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), Some(0x0b));
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), Some(0x0e));
}

#[test]
fn the_priorities_can_be_set() {
    let bench = Bench::new();
    bench.outb(MASTER, SET_PRIORITY | 4);
    let sources = [0, 4, 5].map(|irq| bench.source(irq));
    for source in &sources {
        source.assert().unwrap();
    }
    // The order is 5, 6, 7, 0, .., 4.
    for vector in [0x0d, 0x08, 0x0c] {
        assert_eq!(bench.take(), Some(vector));
        bench.outb(MASTER, NON_SPECIFIC_EOI);
    }
    assert_eq!(bench.take(), None);
}

/// An 8259 remembers an edge that comes while it is masked, and asks at the unmask.
#[test]
fn a_masked_edge_waits() {
    let bench = Bench::new();
    bench.outb(MASTER + 1, 0x10);
    let source = bench.source(4);
    assert_eq!(source.assert().unwrap(), Delivery::Pending);
    source.deassert().unwrap();
    assert_eq!((bench.take(), bench.irr()), (None, [0x10, 0]));
    bench.outb(MASTER + 1, 0);
    assert_eq!(bench.rises(), 1);
    assert_eq!(bench.take(), Some(0x0c));
}

/// A level that goes before the processor comes leaves INTR low; a processor that was on its way gets IRQ 7's vector, and
/// nothing is in service.
#[test]
fn a_request_that_has_gone_is_the_spurious_irq_7() {
    let bench = Bench::new();
    bench.outb(ELCR[0], 0x20);
    let source = bench.source(5);
    source.assert().unwrap();
    assert!(bench.pic.intr());
    source.deassert().unwrap();
    assert!(!bench.pic.intr());
    assert_eq!(bench.pic.acknowledge(), 0x0f);
    assert_eq!((bench.isr(), bench.pic.counts().spurious), ([0, 0], 1));
}

/// The slave's request goes after the master has latched it: the slave's spurious interrupt, with the cascade in service.
#[test]
fn a_request_that_the_slave_has_dropped_is_the_spurious_irq_15() {
    let bench = Bench::new();
    let source = bench.source(12);
    source.assert().unwrap();
    bench.outb(SLAVE + 1, 0xff);
    assert_eq!(bench.irr(), [0x04, 0x10]);
    assert_eq!(bench.take(), Some(0x77));
    assert_eq!((bench.isr(), bench.pic.counts().spurious), ([0x04, 0], 1));
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), None);
    bench.outb(SLAVE + 1, 0);
    assert_eq!(bench.take(), Some(0x74), "the edge was kept");
}

/// Special mask mode: what is masked holds nothing back although it is in service, and is not ended without a name.
#[test]
fn special_mask_mode_lets_lower_priorities_in() {
    let bench = Bench::new();
    let (high, low) = (bench.source(3), bench.source(6));
    high.assert().unwrap();
    assert_eq!(bench.take(), Some(0x0b));
    low.assert().unwrap();
    assert_eq!(bench.take(), None);
    bench.outb(MASTER + 1, 0x08);
    assert_eq!(bench.take(), None);
    bench.outb(MASTER, SPECIAL_MASK);
    assert_eq!(bench.take(), Some(0x0e));
    assert_eq!(bench.isr(), [0x48, 0]);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.isr(), [0x08, 0]);
    bench.outb(MASTER, SPECIFIC_EOI | 3);
    assert_eq!(bench.isr(), [0, 0]);
    bench.outb(MASTER, NO_SPECIAL_MASK);
    bench.outb(MASTER + 1, 0);
}

/// Special fully nested mode: a higher input of the slave interrupts a lower one. Without it, it waits.
#[test]
fn special_fully_nested_mode_nests_within_the_slave() {
    for (icw4, nested) in [(X86, None), (X86 | SPECIAL_FULLY_NESTED, Some(0x71))] {
        let bench = Bench::with(icw4);
        let (low, high) = (bench.source(12), bench.source(9));
        low.assert().unwrap();
        assert_eq!(bench.take(), Some(0x74));
        high.assert().unwrap();
        assert_eq!(bench.take(), nested);
    }
}

/// A poll is an acknowledge cycle by the data bus: in service until the EOI.
#[test]
fn a_poll_acknowledges() {
    let bench = Bench::new();
    bench.outb(MASTER, POLL);
    assert_eq!(bench.inb(MASTER) & 0x80, 0, "nothing asks");
    let source = bench.source(4);
    source.assert().unwrap();
    for port in [MASTER, MASTER + 1] {
        bench.outb(MASTER, POLL);
        assert_eq!(bench.inb(port), 0x84);
        assert_eq!((bench.isr(), bench.take()), ([0x10, 0], None));
        bench.outb(MASTER, NON_SPECIFIC_EOI);
        assert_eq!(bench.isr(), [0, 0]);
        source.deassert().unwrap();
        source.assert().unwrap();
    }
    // One read is a poll, the next is none.
    bench.outb(MASTER, POLL);
    bench.inb(MASTER);
    bench.outb(MASTER + 1, 0x5a);
    assert_eq!(bench.inb(MASTER + 1), 0x5a);
}

/// A poll of the slave answers what the cascade had latched of it.
#[test]
fn a_poll_of_the_slave_takes_it_off_the_master() {
    let bench = Bench::new();
    let source = bench.source(12);
    source.assert().unwrap();
    assert!(bench.pic.intr());
    bench.outb(SLAVE, POLL);
    assert_eq!(bench.inb(SLAVE), 0x84);
    assert_eq!((bench.irr(), bench.isr(), bench.take()), ([0, 0], [0, 0x10], None));
    bench.outb(SLAVE, NON_SPECIFIC_EOI);
    assert_eq!(bench.take(), None);
}

/// INTR falls with the acknowledge cycle, and rises when there is more: the processor is told again.
#[test]
fn intr_rises_again_for_what_nests() {
    let bench = Bench::new();
    let (low, high) = (bench.source(6), bench.source(1));
    low.assert().unwrap();
    high.assert().unwrap();
    assert_eq!(bench.rises(), 1);
    assert_eq!(bench.take(), Some(0x09));
    assert_eq!(bench.rises(), 0, "the lower one waits");
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.rises(), 1);
    assert_eq!(bench.take(), Some(0x0e));
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!(bench.rises(), 0);
}

/// The first input of the slave, and a second request that waits: INTR rises again after the cycle.
#[test]
fn intr_rises_again_for_the_next_request() {
    let bench = Bench::new();
    let [first, second] = [8, 1].map(|irq| bench.source(irq));
    first.assert().unwrap();
    assert_eq!((bench.irr(), bench.rises()), ([0x04, 0x01], 1));
    second.assert().unwrap();
    assert_eq!(
        (bench.take(), bench.rises()),
        (Some(0x09), 0),
        "IRQ 8 waits for its EOI"
    );
    bench.outb(MASTER, NON_SPECIFIC_EOI);
    assert_eq!((bench.take(), bench.rises()), (Some(0x70), 1));
    // With a higher priority than what has been taken.
    second.deassert().unwrap();
    second.assert().unwrap();
    assert_eq!(bench.rises(), 1);
    let third = bench.source(0);
    third.assert().unwrap();
    assert_eq!((bench.take(), bench.rises()), (Some(0x08), 0));
}

/// INTR is high when the processor takes the first of two requests, and rises for the second one.
#[test]
fn intr_falls_with_the_cycle() {
    let bench = Bench::with(X86 | crate::AUTO_EOI);
    let [first, second] = [3, 4].map(|irq| bench.source(irq));
    first.assert().unwrap();
    second.assert().unwrap();
    assert_eq!((bench.rises(), bench.take(), bench.rises()), (1, Some(0x0b), 1));
    assert_eq!((bench.take(), bench.rises()), (Some(0x0c), 0));
}

#[test]
fn the_hook_runs_without_a_lock() {
    use std::sync::{Arc, OnceLock};
    let slot: Arc<OnceLock<Arc<user_irqchip::Pic>>> = Arc::default();
    let hook = Arc::clone(&slot);
    let pic = Arc::new(user_irqchip::Pic::new(move || {
        hook.get().map(|pic| pic.save());
    }));
    assert!(slot.set(Arc::clone(&pic)).is_ok());
    let source = pic.source(interrupt_core::Gsi(3), "device", interrupt_core::LoweredBy::Device);
    source.unwrap().assert().unwrap();
    // A poll of a port lowers and raises INTR by a guest's access.
    use vm_device::DevicePio;
    use vm_device::bus::PioAddress;
    for value in [0xff, 0x00] {
        pic.pio_write(PioAddress(MASTER + 1), 0, &[value]);
    }
}
