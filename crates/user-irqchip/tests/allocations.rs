// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asserting, sending, ending and telling allocate nothing, on either chip and through the router.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use interrupt_core::{EoiGuard, EoiNotifier, Gsi, Listener, LoweredBy, SourceKey};
use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, Pic, Router};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ROUNDS: u64 = 1000;

/// What `round` allocates in steady state.
fn allocations(mut round: impl FnMut()) -> u64 {
    // The first rounds fill what a thread keeps.
    (0..10).for_each(|_| round());
    let before = allocations_on_this_thread();
    (0..ROUNDS).for_each(|_| round());
    allocations_on_this_thread() - before
}

fn listen(notifier: &dyn EoiNotifier, key: SourceKey) -> (Arc<AtomicU64>, EoiGuard) {
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (told, notifier.subscribe(key.into(), listener).unwrap())
}

fn write(ioapic: &Ioapic, offset: u64, value: u32) {
    ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
}

struct Pc {
    apics: Arc<LocalApics>,
    ioapic: Arc<Ioapic>,
    pic: Arc<Pic>,
}

impl Pc {
    /// Pin 5 and IRQ 5 are level-triggered.
    fn new() -> Self {
        let apics = LocalApics::new(1);
        let ioapic = Arc::new(Ioapic::builder().build(apics.clone()).unwrap());
        write(&ioapic, 0x00, 0x10 + 2 * 5);
        write(&ioapic, 0x10, 0x8031);
        let pic = Arc::new(Pic::new(|| {}));
        pic.pio_write(PioAddress(0x4d0), 0, &[1 << 5]);
        Self { apics, ioapic, pic }
    }

    fn end_at_ioapic(&self) {
        assert_eq!(self.apics.accept(0), Some(0x31));
        assert_eq!(self.apics.eoi(0, &self.ioapic), Some(0x31));
    }

    fn end_at_pic(&self) {
        assert_eq!(self.pic.acknowledge(), 5);
        self.pic.pio_write(PioAddress(0x20), 0, &[0x20]);
    }
}

#[test]
fn the_count_notices_an_allocation() {
    assert_eq!(allocations(|| drop(black_box(Box::new(7)))), ROUNDS);
}

#[test]
fn a_round_on_the_ioapic_allocates_nothing() {
    let pc = Pc::new();
    let source = pc.ioapic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let (told, _guard) = listen(&*pc.ioapic, source.key());
    let round = || {
        source.assert().unwrap();
        pc.end_at_ioapic();
    };
    assert_eq!(allocations(round), 0);
    assert_eq!(told.load(Ordering::Relaxed), ROUNDS + 10);
}

#[test]
fn a_level_that_is_sent_again_and_a_mask_allocate_nothing() {
    let pc = Pc::new();
    let source = pc.ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    source.assert().unwrap();
    let round = || {
        write(&pc.ioapic, 0x10, 0x1_8031);
        pc.end_at_ioapic();
        write(&pc.ioapic, 0x10, 0x8031);
    };
    assert_eq!(allocations(round), 0);
}

#[test]
fn a_round_on_the_8259s_allocates_nothing() {
    let pc = Pc::new();
    let source = pc.pic.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let (told, _guard) = listen(&*pc.pic, source.key());
    let round = || {
        source.assert().unwrap();
        pc.end_at_pic();
    };
    assert_eq!(allocations(round), 0);
    assert_eq!(told.load(Ordering::Relaxed), ROUNDS + 10);
}

#[test]
fn a_round_through_the_router_allocates_nothing() {
    let pc = Pc::new();
    let router = Router::pc(Some(pc.ioapic.clone()), Some(pc.pic.clone()), pc.apics.clone()).unwrap();
    let source = router.source(Gsi(5), "device", LoweredBy::Eoi).unwrap();
    let (told, _guard) = listen(&router, source.key());
    let round = || {
        source.assert().unwrap();
        pc.end_at_pic();
        pc.end_at_ioapic();
    };
    assert_eq!(allocations(round), 0);
    assert_eq!(told.load(Ordering::Relaxed), 2 * (ROUNDS + 10));
}
