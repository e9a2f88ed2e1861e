// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of level pins (L), edge pins (D) and EOI listeners (N) on an IOAPIC, which other implementations do not test.
//!
//! Each case states what is delivered and the redirection-table entry at every step. The cases of registers, routes and
//! saved states are in the tests of the chip.

use crate::conformance::rows;
use crate::harness::TIME_LIMIT;
use crate::need::Need;
use crate::rig::{LEVEL, MASKED, REMOTE_IRR, Rig};
use interrupt_core::Delivery;

rows! { dyn Rig;
    case_l1_a_level_is_sent_once [] TIME_LIMIT;
    case_l2_the_eoi_makes_room_for_the_next [] TIME_LIMIT;
    case_l4_a_level_that_rises_in_service_is_sent_at_the_eoi [] TIME_LIMIT;
    case_l5_asserting_twice_is_asserting_once [] TIME_LIMIT;
    case_l6_l7_a_level_that_stays_is_sent_at_each_eoi [] TIME_LIMIT;
    case_l8_a_masked_level_is_sent_at_the_unmask [] TIME_LIMIT;
    case_l9_a_level_that_came_before_the_first_programming_is_sent [] TIME_LIMIT;
    case_l11_only_the_vector_that_the_entry_has_ends [] TIME_LIMIT;
    case_l13_an_unrelated_eoi_does_nothing [] TIME_LIMIT;
    case_l14_switching_to_edge_and_back_ends_the_interrupt [] TIME_LIMIT;
    case_l15_switching_with_the_line_low_sends_nothing [] TIME_LIMIT;
    case_l18_the_eoi_of_an_idle_pin_does_nothing [] TIME_LIMIT;
    case_e6_mask_and_unmask_in_service_send_nothing [] TIME_LIMIT;
    case_d1_a_held_edge_is_sent_once [] TIME_LIMIT;
    case_d2_each_rise_is_sent [] TIME_LIMIT;
    case_d3_an_eoi_does_not_rearm_an_edge [] TIME_LIMIT;
    case_d4_a_masked_pulse_is_lost [] TIME_LIMIT;
    case_d6_a_masked_rise_that_is_held_is_lost [] TIME_LIMIT;
    case_n1_n2_a_listener_is_told_at_the_eoi [] TIME_LIMIT;
    case_n3_both_listeners_are_told [] TIME_LIMIT;
    case_n4_listeners_of_an_idle_pin_are_told_of_its_vector_only [] TIME_LIMIT;
    case_n7_one_of_two_restates [UNMASK_RESAMPLE] TIME_LIMIT;
    case_n8_a_late_listener_is_told_and_one_that_went_is_not [] TIME_LIMIT;
}

const UNMASK_RESAMPLE: Need = Need::KernelAtLeast(6, 3);

/// A pin that no 8259 shares.
const PIN: u32 = 18;
const OTHER_PIN: u32 = 19;
const VECTOR: u8 = 0x31;
const OTHER_VECTOR: u8 = 0x32;
const IDLE: u64 = LEVEL | VECTOR as u64;
const IN_SERVICE: u64 = IDLE | REMOTE_IRR;
const EDGE_VECTOR: u8 = 0x41;
const EDGE: u64 = EDGE_VECTOR as u64;

/// Checks that the pin's interrupt arrives once, and that the entry has this value.
fn fires(rig: &mut dyn Rig, vector: u8, entry: u64) {
    assert_eq!(rig.accept(), Some(vector));
    assert_eq!(rig.rte(PIN), entry);
}

/// Checks that no interrupt arrives, and that the entry has this value.
fn silent(rig: &mut dyn Rig, entry: u64) {
    assert_eq!(rig.accept(), None);
    assert_eq!(rig.rte(PIN), entry);
}

fn raise(rig: &mut dyn Rig) -> Delivery {
    rig.set_line(PIN, true)
}

fn lower(rig: &mut dyn Rig) {
    assert_eq!(rig.set_line(PIN, false), Delivery::Delivered(1));
}

/// Assert, deassert: one interrupt, remote IRR from the assertion to the EOI.
pub fn case_l1_a_level_is_sent_once(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    silent(rig, IDLE);
    assert_eq!(raise(rig), Delivery::Delivered(1));
    assert_eq!(rig.rte(PIN), IN_SERVICE);
    lower(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    silent(rig, IDLE);
}

/// Assert, deassert, EOI, assert: two interrupts.
pub fn case_l2_the_eoi_makes_room_for_the_next(rig: &mut dyn Rig) {
    case_l1_a_level_is_sent_once(rig);
    assert_eq!(raise(rig), Delivery::Delivered(1));
    fires(rig, VECTOR, IN_SERVICE);
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
}

/// Assert, deassert, assert, EOI: the second assertion waits for the EOI, which sends it.
pub fn case_l4_a_level_that_rises_in_service_is_sent_at_the_eoi(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    fires(rig, VECTOR, IN_SERVICE);
    lower(rig);
    assert_eq!(raise(rig), Delivery::Pending);
    silent(rig, IN_SERVICE);
    rig.eoi();
    fires(rig, VECTOR, IN_SERVICE);
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
}

/// Assert, assert, deassert: one interrupt.
pub fn case_l5_asserting_twice_is_asserting_once(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    assert_eq!(raise(rig), Delivery::Pending);
    lower(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    silent(rig, IDLE);
}

/// A level that stays high is delivered again at each EOI. After it is lowered, the next EOI delivers nothing.
pub fn case_l6_l7_a_level_that_stays_is_sent_at_each_eoi(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    assert_eq!(rig.rte(PIN), IN_SERVICE);
    fires(rig, VECTOR, IN_SERVICE);
    assert!(rig.irr(PIN));
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
    assert!(!rig.irr(PIN));
}

/// Mask, assert, unmask: nothing while masked, one interrupt at the unmask.
pub fn case_l8_a_masked_level_is_sent_at_the_unmask(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    rig.mask(PIN);
    assert_eq!(raise(rig), Delivery::Pending);
    silent(rig, IDLE | MASKED);
    rig.unmask(PIN);
    assert_eq!(rig.rte(PIN), IN_SERVICE);
    fires(rig, VECTOR, IN_SERVICE);
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
}

/// Row 147: a pin that was never programmed, with its line high. The write that unmasks the pin sends the interrupt, as
/// that write programs it.
pub fn case_l9_a_level_that_came_before_the_first_programming_is_sent(rig: &mut dyn Rig) {
    assert_eq!(raise(rig), Delivery::Pending);
    silent(rig, MASKED);
    rig.set_rte(PIN, IDLE);
    fires(rig, VECTOR, IN_SERVICE);
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
}

/// In service, then another vector: an EOI of the old vector ends nothing, an EOI of the new vector ends the interrupt.
pub fn case_l11_only_the_vector_that_the_entry_has_ends(rig: &mut dyn Rig) {
    const MOVED: u64 = LEVEL | OTHER_VECTOR as u64;
    rig.set_rte(PIN, IDLE);
    raise(rig);
    lower(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.set_rte(PIN, MOVED);
    rig.eoi();
    silent(rig, MOVED | REMOTE_IRR);
    // Another pin brings an EOI of the new vector.
    rig.set_rte(OTHER_PIN, MOVED);
    rig.set_line(OTHER_PIN, true);
    rig.set_line(OTHER_PIN, false);
    fires(rig, OTHER_VECTOR, MOVED | REMOTE_IRR);
    rig.eoi();
    silent(rig, MOVED);
}

/// Masked, the line high, and an EOI of another vector than the pin's.
pub fn case_l13_an_unrelated_eoi_does_nothing(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE | MASKED);
    raise(rig);
    rig.send_msi(0x99);
    fires(rig, 0x99, IDLE | MASKED);
    rig.eoi();
    silent(rig, IDLE | MASKED);
    assert!(rig.irr(PIN));
}

/// Assert, then edge, then level with the line still high: the return to level sends once more, because the switch to
/// edge ended the first interrupt.
pub fn case_l14_switching_to_edge_and_back_ends_the_interrupt(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.write_rte_low(PIN, VECTOR.into());
    assert_eq!(rig.rte(PIN), u64::from(VECTOR));
    rig.write_rte_low(PIN, IDLE as u32);
    assert_eq!(rig.rte(PIN), IN_SERVICE);
    lower(rig);
    rig.eoi();
    // The switch sent this interrupt, and it waits behind the first.
    fires(rig, VECTOR, IDLE);
    rig.eoi();
    silent(rig, IDLE);
}

/// Assert, deassert, edge, level, assert, deassert: two interrupts.
pub fn case_l15_switching_with_the_line_low_sends_nothing(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    lower(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.write_rte_low(PIN, VECTOR.into());
    rig.write_rte_low(PIN, IDLE as u32);
    rig.eoi();
    silent(rig, IDLE);
    raise(rig);
    lower(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    silent(rig, IDLE);
}

/// The EOI of another pin with the same vector, while this pin is idle.
pub fn case_l18_the_eoi_of_an_idle_pin_does_nothing(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    rig.set_rte(OTHER_PIN, IDLE);
    rig.set_line(OTHER_PIN, true);
    rig.set_line(OTHER_PIN, false);
    fires(rig, VECTOR, IDLE);
    rig.eoi();
    silent(rig, IDLE);
}

/// In service: mask, unmask. Remote IRR stays, and nothing is sent although the line is high.
pub fn case_e6_mask_and_unmask_in_service_send_nothing(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    raise(rig);
    fires(rig, VECTOR, IN_SERVICE);
    rig.mask(PIN);
    assert_eq!(rig.rte(PIN), IN_SERVICE | MASKED);
    rig.unmask(PIN);
    assert_eq!(rig.rte(PIN), IN_SERVICE);
    lower(rig);
    rig.eoi();
    silent(rig, IDLE);
}

/// Assert, assert, deassert: one interrupt. An edge pin has no remote IRR.
pub fn case_d1_a_held_edge_is_sent_once(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE);
    assert_eq!(raise(rig), Delivery::Delivered(1));
    assert_eq!(raise(rig), Delivery::Coalesced);
    lower(rig);
    fires(rig, EDGE_VECTOR, EDGE);
    rig.eoi();
    silent(rig, EDGE);
}

/// Two pulses, the second after the first was taken: two interrupts.
pub fn case_d2_each_rise_is_sent(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE);
    for _ in 0..2 {
        raise(rig);
        lower(rig);
        fires(rig, EDGE_VECTOR, EDGE);
        rig.eoi();
    }
    silent(rig, EDGE);
}

/// Assert, EOI, assert, deassert: one interrupt, because the line was high throughout.
pub fn case_d3_an_eoi_does_not_rearm_an_edge(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE);
    raise(rig);
    fires(rig, EDGE_VECTOR, EDGE);
    rig.eoi();
    assert_eq!(raise(rig), Delivery::Coalesced);
    lower(rig);
    silent(rig, EDGE);
}

/// Mask, pulse, unmask: nothing.
pub fn case_d4_a_masked_pulse_is_lost(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE | MASKED);
    assert_eq!(raise(rig), Delivery::Pending);
    lower(rig);
    rig.unmask(PIN);
    silent(rig, EDGE);
}

/// Mask, assert and hold, unmask, assert again: nothing, because the line was high already.
pub fn case_d6_a_masked_rise_that_is_held_is_lost(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE | MASKED);
    raise(rig);
    rig.unmask(PIN);
    silent(rig, EDGE);
    assert_eq!(raise(rig), Delivery::Coalesced);
    silent(rig, EDGE);
    lower(rig);
    raise(rig);
    fires(rig, EDGE_VECTOR, EDGE);
}

/// One listener: not notified while the interrupt is in service, notified at its EOI, with the line low.
pub fn case_n1_n2_a_listener_is_told_at_the_eoi(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    fires(rig, VECTOR, IN_SERVICE);
    assert_eq!(line.n(), 0);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert!(!rig.irr(PIN));
    silent(rig, IDLE);
}

/// Two listeners on a pin: both are notified, and no further interrupt is sent.
pub fn case_n3_both_listeners_are_told(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    let (a, b) = (rig.bind_resample(PIN), rig.bind_resample(PIN));
    a.trigger();
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    assert!(!rig.irr(PIN));
    silent(rig, IDLE);
}

/// An EOI from another pin notifies the listeners of an idle pin with the same vector, and of no pin with another
/// vector.
pub fn case_n4_listeners_of_an_idle_pin_are_told_of_its_vector_only(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    let line = rig.bind_resample(PIN);
    for (vector, told) in [(VECTOR, 1), (OTHER_VECTOR, 0)] {
        rig.set_rte(OTHER_PIN, LEVEL | u64::from(vector));
        rig.set_line(OTHER_PIN, true);
        rig.set_line(OTHER_PIN, false);
        fires(rig, vector, IDLE);
        rig.eoi();
        assert_eq!(line.n(), told, "vector {vector:#x}");
        silent(rig, IDLE);
    }
}

/// A and B assert, A's cause ends, and B re-asserts when both are notified: one more interrupt, B's.
pub fn case_n7_one_of_two_restates(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    let (a, b) = (rig.bind_resample(PIN), rig.bind_resample(PIN));
    a.trigger();
    b.trigger();
    rig.settle();
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    assert!(!rig.irr(PIN));
    assert_eq!((a.n(), b.n()), (1, 1));
    silent(rig, IDLE);
    b.trigger();
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    silent(rig, IDLE);
}

/// Listeners come and go at any time, also while an interrupt is in service.
pub fn case_n8_a_late_listener_is_told_and_one_that_went_is_not(rig: &mut dyn Rig) {
    rig.set_rte(PIN, IDLE);
    let first = rig.bind_resample(PIN);
    first.trigger();
    fires(rig, VECTOR, IN_SERVICE);
    let late = rig.bind_resample(PIN);
    drop(first);
    rig.eoi();
    assert_eq!(late.n(), 1);
    silent(rig, IDLE);
    late.trigger();
    fires(rig, VECTOR, IN_SERVICE);
    rig.eoi();
    assert_eq!(late.n(), 1);
    silent(rig, IDLE);
}
