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

use interrupt_core::{Gsi, LoweredBy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use user_irqchip::testing::LocalApics;
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

/// A field that this format does not have, or one that is not there, is no state of it.
#[test]
fn another_shape_is_no_state() {
    fn refused<T: Serialize + DeserializeOwned + Debug>(state: &T, pointer: &str) {
        let whole = serde_json::to_value(state).unwrap();
        let mut extended = whole.clone();
        let object = extended.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("surplus".to_owned(), 1.into());
        serde_json::from_value::<T>(extended).unwrap_err();
        let fields = whole.pointer(pointer).unwrap().as_object().unwrap();
        for field in fields.keys().filter(|field| *field != "sent_to") {
            let mut shortened = whole.clone();
            let object = shortened.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            object.remove(field);
            assert!(serde_json::from_value::<T>(shortened).is_err(), "without {field}");
        }
    }
    for pointer in ["", "/state", "/state/pins/5"] {
        refused(&busy_ioapic(), pointer);
    }
    for pointer in ["", "/state", "/state/master", "/state/slave"] {
        refused(&busy_pic(), pointer);
    }
}

/// The format is looked at before the state: a state of the future is refused by its number, whatever its shape.
#[test]
fn a_state_of_another_shape_is_refused_by_its_format() {
    for state in [
        r#"{"lines": [1, 2], "entries": {}}"#,
        "null",
        "[]",
        r#"{"version": "seventeen"}"#,
    ] {
        let future = format!(r#"{{"format": 3, "state": {state}}}"#);
        let error = serde_json::from_str::<IoapicState>(&future).unwrap_err().to_string();
        let wanted = "saved state has format 3, and formats 1 to 2 are known here";
        assert!(error.starts_with(wanted), "{error}");
        for format in [0, 2] {
            let future = format!(r#"{{"format": {format}, "state": {state}}}"#);
            let error = serde_json::from_str::<PicState>(&future).unwrap_err().to_string();
            let wanted = format!("saved state has format {format}, and formats 1 to 1 are known here");
            assert!(error.starts_with(&wanted), "{error}");
        }
    }
}

/// A state of format 1, which had no message in service beside the entry.
#[test]
fn an_older_format_is_read() {
    let pin = |n| {
        if n == 5 {
            r#"{"entry": 49201, "high": true, "edge": false}"#
        } else {
            r#"{"entry": 65536, "high": false, "edge": false}"#
        }
    };
    let pins: Vec<_> = (0..24).map(pin).collect();
    let text = format!(
        r#"{{"format": 1, "state": {{"version": 17, "select": 26, "id": 0, "pins": [{}]}}}}"#,
        pins.join(", ")
    );
    let state: IoapicState = serde_json::from_str(&text).unwrap();
    assert_eq!(state, busy_ioapic());
    ioapic().restore(&state).unwrap();
}

/// The guest has moved the interrupt in service: the state says where its EOI comes from.
#[test]
fn a_moved_interrupt_in_service_comes_back() {
    let moved = ioapic();
    let write = |offset, value: u32| moved.mmio_write(MmioAddress(Ioapic::BASE), offset, &value.to_le_bytes());
    write(0x00, 0x10 + 2 * 5);
    write(0x10, 0x8031);
    let source = moved.source(Gsi(5), "device", LoweredBy::Device).unwrap();
    source.assert().unwrap();
    write(0x00, 0x11 + 2 * 5);
    write(0x10, 0x0100_0000);
    let state = moved.save();
    assert_eq!(state.pins[5].sent_to, Some(0xfee0_0000));
    comes_back(&state);
    let fresh = ioapic();
    fresh.restore(&state).unwrap();
    assert_eq!(fresh.save(), state);
}
