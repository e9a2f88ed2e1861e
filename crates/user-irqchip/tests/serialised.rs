// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! States as text, with the `serde` feature: they come back as they were, and what is not such a state is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fmt::Debug;
use std::sync::Arc;

use interrupt_core::{Gsi, LevelSource, LoweredBy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use user_irqchip::lapic::LocalApics;
use user_irqchip::{Ioapic, IoapicState, Pic, PicState};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

fn ioapic() -> Ioapic {
    Ioapic::builder().build(LocalApics::new(1)).unwrap()
}

/// A chip with an interrupt in service.
fn busy_ioapic() -> IoapicState {
    let ioapic = ioapic();
    for (offset, value) in [(0x00, 0x1a_u32), (0x10, 0x8031)] {
        ioapic.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
    }
    let source = ioapic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    source.assert().unwrap();
    ioapic.save()
}

fn busy_pic() -> PicState {
    let pic = Arc::new(Pic::new(|| {}));
    for (port, value) in [(0x20, 0x11), (0x21, 0x40), (0x4d0, 0x20)] {
        pic.pio_write(PioAddress(port), 0, &[value]);
    }
    let source = pic.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    source.assert().unwrap();
    pic.acknowledge();
    pic.save()
}

fn comes_back<T: Serialize + DeserializeOwned + Debug + PartialEq>(state: &T) {
    let text = serde_json::to_string(state).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *state, "{text}");
}

#[test]
fn states_come_back_as_they_were() {
    let (saved_ioapic, saved_pic) = (busy_ioapic(), busy_pic());
    comes_back(&saved_ioapic);
    comes_back(&saved_pic);
    assert_eq!(saved_ioapic.pins[5].entry, 0xc031);
    assert_eq!(saved_pic.master.isr, 0x20);
}

/// A field that this version does not know, or one that is not there, is no state of this version.
#[test]
fn another_shape_is_refused() {
    fn refused<T: Serialize + DeserializeOwned + Debug>(state: &T, pointer: &str) {
        let whole = serde_json::to_value(state).unwrap();
        let mut extended = whole.clone();
        let object = extended.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("future".to_owned(), 1.into());
        serde_json::from_value::<T>(extended).unwrap_err();
        let fields = whole.pointer(pointer).unwrap().as_object().unwrap();
        for field in fields.keys() {
            let mut shortened = whole.clone();
            let object = shortened.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            object.remove(field);
            assert!(serde_json::from_value::<T>(shortened).is_err(), "without {field}");
        }
    }
    for pointer in ["", "/pins/5"] {
        refused(&busy_ioapic(), pointer);
    }
    for pointer in ["", "/master", "/slave"] {
        refused(&busy_pic(), pointer);
    }
}

/// The format is a number of its own, so that a state of another shape says what it is.
#[test]
fn a_state_from_the_future_is_refused_by_its_format() {
    let mut state = busy_ioapic();
    state.format = 2;
    let text = serde_json::to_string(&state).unwrap();
    let read: IoapicState = serde_json::from_str(&text).unwrap();
    let error = ioapic().restore(&read).unwrap_err().to_string();
    assert_eq!(error, "saved state has format 2, and only format 1 is known here");
    let mut state = busy_pic();
    state.format = 0;
    let error = Pic::new(|| {}).restore(&state).unwrap_err().to_string();
    assert_eq!(error, "saved state has format 0, and only format 1 is known here");
}
