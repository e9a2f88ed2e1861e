// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model of local APICs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use interrupt_core::{Delivery, Gsi, Msi, MsiOutput};
use user_irqchip::Ioapic;
use user_irqchip::testing::LocalApics;

fn message(destination: u8, logical: bool, mode: u32, vector: u8) -> Msi {
    Msi {
        address: 0xfee0_0000 | u64::from(destination) << 12 | u64::from(logical) << 2,
        data: mode << 8 | u32::from(vector),
    }
}

fn taken_by(apics: &LocalApics, message: Msi) -> Delivery {
    apics.send_msi(Gsi(0), message).unwrap()
}

/// Case G20.
#[test]
fn eois_end_from_the_highest_vector_down() {
    let apics = LocalApics::new(1);
    let ioapic = Ioapic::builder().build(apics.clone()).unwrap();
    assert_eq!(apics.eoi(0, &ioapic), None);
    for vector in [39, 255] {
        taken_by(&apics, message(0, false, 0, vector));
        assert_eq!(apics.accept(0), Some(vector));
    }
    // A lower one than the highest in service waits until that ends.
    taken_by(&apics, message(0, false, 0, 48));
    assert_eq!(apics.accept(0), None);
    assert_eq!(apics.eoi(0, &ioapic), Some(255));
    assert_eq!(apics.accept(0), Some(48));
    assert_eq!(apics.eoi(0, &ioapic), Some(48));
    assert_eq!(apics.eoi(0, &ioapic), Some(39));
    assert_eq!(apics.eoi(0, &ioapic), None);
}

/// Case G21.
#[test]
fn lowest_priority_goes_to_the_processor_at_the_lowest_priority() {
    let apics = LocalApics::new(2);
    apics.set_task_priority(0, 0x10);
    assert_eq!(taken_by(&apics, message(0xff, true, 1, 111)), Delivery::Delivered(1));
    assert_eq!([0, 1].map(|n| apics.registers(n).irr.contains(111)), [false, true]);
    apics.set_task_priority(1, 0x20);
    assert_eq!(taken_by(&apics, message(0xff, true, 1, 222)), Delivery::Delivered(1));
    assert_eq!([0, 1].map(|n| apics.registers(n).irr.contains(222)), [true, false]);
}

#[test]
fn a_message_reaches_whom_it_names() {
    let apics = LocalApics::new(2);
    for (message, taken) in [
        (message(1, false, 0, 0x41), [false, true]),
        (message(0xff, false, 0, 0x42), [true, true]),
        (message(0b01, true, 0, 0x43), [true, false]),
        (message(7, false, 0, 0x44), [false, false]),
        (message(0, false, 4, 0x45), [false, false]),
    ] {
        let count = taken.iter().filter(|&&taken| taken).count() as u32;
        assert_eq!(taken_by(&apics, message), Delivery::Delivered(count), "{message}");
        let vector = message.data as u8;
        assert_eq!(
            [0, 1].map(|n| apics.registers(n).irr.contains(vector)),
            taken,
            "{message}"
        );
    }
}

#[test]
fn a_disabled_one_takes_nothing() {
    let apics = LocalApics::new(1);
    apics.set_enabled(0, false);
    assert_eq!(taken_by(&apics, message(0, false, 0, 0x41)), Delivery::Delivered(0));
    apics.set_enabled(0, true);
    assert_eq!(apics.accept(0), None);
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let apics = LocalApics::new(1);
    taken_by(&apics, message(0, false, 0, 0x4f));
    apics.set_task_priority(0, 0x40);
    assert_eq!(apics.accept(0), None);
    apics.set_task_priority(0, 0x3f);
    assert_eq!(apics.accept(0), Some(0x4f));
}
