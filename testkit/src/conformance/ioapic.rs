// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Level and edge lines on an IOAPIC: rows of sections A to C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::conformance::rows;
use crate::harness::TIME_LIMIT;
use crate::lab::repeats;
use crate::need::Need;
use crate::patience::Patience;
use crate::rig::{LEVEL, MASKED, ResampleLine, Rig};
use interrupt_core::Delivery;

/// With one CPU, no thread runs during an EOI. In the lab, which has one CPU, this row also hangs the emulated PC when
/// the build machine is idle (three times out of three).
const TWO_CPUS: Need = Need::Host("two CPUs", two_cpus);

fn two_cpus() -> Result<(), String> {
    match thread::available_parallelism() {
        Ok(cpus) if cpus.get() < 2 => Err("this host has one CPU".to_owned()),
        _ => Ok(()),
    }
}

/// Kernels before 6.3 inject at unmask instead of notifying the sources, so that they re-assert.
const UNMASK_RESAMPLE: Need = Need::KernelAtLeast(6, 3);

rows! { dyn Rig;
    row_15_bound_triggered_unbound_leaves_the_line_low [] TIME_LIMIT;
    row_27_one_round [] TIME_LIMIT;
    row_28_triggers_before_the_eoi_are_one [] TIME_LIMIT;
    row_29_a_thousand_rounds [] TIME_LIMIT;
    row_30_retrigger_from_another_thread_during_eoi [TWO_CPUS] Duration::from_secs(300);
    row_31_masked_pin_waits [] TIME_LIMIT;
    row_32_unmask_asks_instead_of_injecting [UNMASK_RESAMPLE] TIME_LIMIT;
    row_34_oneshot_mask_eoi_unmask [UNMASK_RESAMPLE] TIME_LIMIT;
    row_35_mask_and_unmask_in_service [] TIME_LIMIT;
    row_36_eoi_while_masked_notifies [] TIME_LIMIT;
    row_37_high_half_write_asks [UNMASK_RESAMPLE] TIME_LIMIT;
    row_38_pseudo_eoi_by_edge_and_back [UNMASK_RESAMPLE] TIME_LIMIT;
    row_40_stray_eoi [] TIME_LIMIT;
    row_41_resample_line_on_an_edge_pin [] TIME_LIMIT;
    row_42_edge_source_on_a_level_pin [] TIME_LIMIT;
    row_44_edge_source_on_an_edge_pin [] TIME_LIMIT;
    row_45_lapic_soft_disabled [] TIME_LIMIT;
    row_46_bound_while_a_plain_line_is_in_service [] TIME_LIMIT;
    row_47_storm_is_throttled_every_10000 [] Duration::from_secs(300);
    row_50_delivery_status_of_a_plain_line [] TIME_LIMIT;
    row_57_all_sharers_are_told [] TIME_LIMIT;
    row_58_a_sharer_restates [] TIME_LIMIT;
    row_61_pins_with_one_vector [] TIME_LIMIT;
    row_62_foreign_eoi_is_survived_by_restating [UNMASK_RESAMPLE] TIME_LIMIT;
    row_73_source_gone_while_asserting [] TIME_LIMIT;
    row_74_resampled_with_nothing_asserted [] TIME_LIMIT;
}

/// A pin that no 8259 shares.
const PIN: u32 = 18;
const OTHER_PIN: u32 = 19;
const VECTOR: u8 = 0x51;
const LEVEL_ENTRY: u64 = LEVEL | VECTOR as u64;
const EDGE_ENTRY: u64 = VECTOR as u64;

/// Nothing pending, nothing in service, nothing delivered.
fn assert_idle(rig: &mut dyn Rig, pin: u32) {
    assert_eq!(rig.accept(), None, "an interrupt nobody asked for");
    assert!(!rig.irr(pin), "irr stuck");
    assert!(!rig.remote_irr(pin), "remote IRR stuck");
}

/// 300 times bound, triggered and unbound on a masked pin: the line is low each time.
pub fn row_15_bound_triggered_unbound_leaves_the_line_low(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    for round in 0..repeats(300) {
        let line = rig.bind_resample(PIN);
        line.trigger();
        assert!(rig.irr(PIN), "round {round}");
        drop(line);
        assert!(!rig.irr(PIN), "round {round}");
    }
}

/// Trigger, accept, EOI: irr and remote IRR are 1, 1, 0, and the source is notified once, at the EOI.
pub fn row_27_one_round(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    assert_idle(rig, PIN);
    line.trigger();
    assert!(rig.irr(PIN) && rig.remote_irr(PIN));
    assert_eq!(rig.accept(), Some(VECTOR));
    assert!(rig.irr(PIN) && rig.remote_irr(PIN));
    assert_eq!(line.n(), 0);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
    assert_eq!(line.n(), 0);
}

/// Two triggers before the CPU accepts and one trigger in service make one interrupt and one resample.
pub fn row_28_triggers_before_the_eoi_are_one(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    line.trigger();
    line.trigger();
    rig.settle();
    assert_eq!(rig.accept(), Some(VECTOR));
    line.trigger();
    rig.settle();
    assert_eq!(line.n(), 0);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// Nothing lost and nothing extra in 1000 rounds.
pub fn row_29_a_thousand_rounds(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    for round in 0..1000 {
        line.trigger();
        assert_eq!(rig.accept(), Some(VECTOR), "round {round}");
        assert_eq!(line.n(), 0, "round {round}");
        rig.eoi();
        assert_eq!(line.n(), 1, "round {round}");
    }
    assert_idle(rig, PIN);
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A source that re-asserts from another thread at once when it is notified, while the EOI is still being processed:
/// 100,000 assertions make 100,000 interrupts and as many resamples, and the pin ends idle.
///
/// The threads spin, so that the assertion coincides with the EOI. On a host with fewer than two idle CPUs a round then
/// waits for the scheduler, for milliseconds. There the row ends early, with a note, after the rounds of one minute.
pub fn row_30_retrigger_from_another_thread_during_eoi(rig: &mut dyn Rig) {
    const ROUNDS: u64 = 100_000;
    const AT_LEAST: u64 = 100;
    const STUCK: Duration = Duration::from_secs(20);
    let time = Duration::from_secs(60);
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line: Arc<dyn ResampleLine> = rig.bind_resample(PIN).into();
    let stop = Arc::new(AtomicBool::new(false));
    // End the thread even if the row fails.
    let _stop = StopOnDrop(stop.clone());
    let device = {
        let line = line.clone();
        let end = Instant::now() + time;
        move || {
            let (mut asserted, mut resampled) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                if asserted == resampled {
                    if asserted == ROUNDS || (Instant::now() >= end && asserted >= AT_LEAST) {
                        break;
                    }
                    line.trigger();
                    asserted += 1;
                }
                thread::yield_now();
                resampled += line.n();
                assert!(
                    resampled <= asserted,
                    "told {resampled} times after {asserted} assertions"
                );
            }
            asserted
        }
    };
    let device = thread::Builder::new().name("device".into()).spawn(device).unwrap();
    let mut interrupts = 0;
    let mut patience = Patience::new(STUCK);
    while !device.is_finished() {
        if let Some(vector) = rig.accept() {
            assert_eq!(vector, VECTOR);
            interrupts += 1;
            rig.eoi();
            patience = Patience::new(STUCK);
        }
        if patience.is_over() {
            panic!("stuck after {interrupts} interrupts, rte {:#x}", rig.rte(PIN));
        }
    }
    let asserted = device.join().unwrap();
    assert_eq!(interrupts, asserted);
    assert_idle(rig, PIN);
    assert_eq!(line.n(), 0);
    if asserted < ROUNDS {
        println!("note: row 30: {asserted} of {ROUNDS} rounds, the host is busy");
    }
}

/// A masked pin keeps the level and delivers nothing.
pub fn row_31_masked_pin_waits(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    assert!(!rig.remote_irr(PIN));
    assert_eq!(rig.accept(), None);
    assert_eq!(line.n(), 0);
}

/// Unmasking a pin whose line is high lowers the line and notifies the sources. The pin injects an interrupt only if a
/// source re-asserts.
pub fn row_32_unmask_asks_instead_of_injecting(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    rig.unmask(PIN);
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// A oneshot handler masks, ends and later unmasks. A device whose level is low by then causes no interrupt at unmask.
/// A device whose level is still high, and which re-asserts at each notification, causes exactly one.
pub fn row_34_oneshot_mask_eoi_unmask(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    for still_high in [false, true] {
        line.trigger();
        assert_eq!(rig.accept(), Some(VECTOR));
        rig.mask(PIN);
        rig.eoi();
        assert_eq!(line.n(), 1);
        if still_high {
            line.trigger();
        }
        assert_eq!(rig.accept(), None);
        assert_eq!(rig.irr(PIN), still_high);
        rig.unmask(PIN);
        assert_eq!(line.n(), u64::from(still_high));
        assert_eq!(rig.accept(), None);
        if still_high {
            line.trigger();
            assert_eq!(rig.accept(), Some(VECTOR));
            rig.eoi();
            assert_eq!(line.n(), 1);
        }
        assert_idle(rig, PIN);
    }
}

/// Masking and unmasking before the EOI notifies no source, because the interrupt is still in service. The EOI
/// notifies.
pub fn row_35_mask_and_unmask_in_service(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.mask(PIN);
    rig.unmask(PIN);
    assert_eq!(line.n(), 0);
    assert!(rig.remote_irr(PIN));
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// The notification is not suppressed by the mask.
pub fn row_36_eoi_while_masked_notifies(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.mask(PIN);
    assert_eq!(line.n(), 0);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// A write of the high half notifies the sources too, when the line is high and no interrupt is in service. (The CPU
/// did not accept the interrupt, so it is not in service although the pin is unmasked.)
pub fn row_37_high_half_write_asks(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    rig.set_lapic_enabled(false);
    line.trigger();
    assert!(rig.irr(PIN) && !rig.remote_irr(PIN));
    rig.set_lapic_enabled(true);
    rig.write_rte_high(PIN, 0);
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// Linux's substitute for a directed EOI: mask and switch to edge, which clears remote IRR and notifies no source; back
/// to level and unmasked, which notifies; then the real EOI, which notifies again.
pub fn row_38_pseudo_eoi_by_edge_and_back(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.write_rte_low(PIN, (EDGE_ENTRY | MASKED) as u32);
    assert!(!rig.remote_irr(PIN));
    assert_eq!(line.n(), 0);
    rig.write_rte_low(PIN, LEVEL_ENTRY as u32);
    assert_eq!(line.n(), 1);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// An EOI with nothing in service notifies no source and changes nothing.
pub fn row_40_stray_eoi(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    rig.eoi();
    assert_eq!(line.n(), 0);
    assert!(rig.irr(PIN));
}

/// On a pin the guest has set to edge, the line stays high between two triggers: the second is no edge. The EOI still
/// notifies the source, which recovers by re-asserting.
pub fn row_41_resample_line_on_an_edge_pin(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE_ENTRY);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    line.trigger();
    rig.settle();
    assert_eq!(line.n(), 0);
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_eq!(rig.accept(), None);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_eq!(rig.accept(), None);
}

/// A pulse on a level pin makes an interrupt when nothing is in service, and is lost otherwise.
pub fn row_42_edge_source_on_a_level_pin(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_edge(PIN);
    line.pulse();
    assert_eq!(rig.accept(), Some(VECTOR));
    line.pulse();
    rig.settle();
    rig.eoi();
    assert_idle(rig, PIN);
    line.pulse();
    assert_eq!(rig.accept(), Some(VECTOR));
}

/// Pulses on an edge pin while one is in service are remembered as one.
pub fn row_44_edge_source_on_an_edge_pin(rig: &mut dyn Rig) {
    rig.set_rte(PIN, EDGE_ENTRY);
    let line = rig.bind_edge(PIN);
    line.pulse();
    assert_eq!(rig.accept(), Some(VECTOR));
    line.pulse();
    rig.settle();
    line.pulse();
    rig.settle();
    assert_eq!(rig.accept(), None, "the first is still in service");
    rig.eoi();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!(rig.accept(), None);
}

/// While the LAPIC is disabled the level waits in irr. Enabling the LAPIC does not deliver the level; a trigger does.
pub fn row_45_lapic_soft_disabled(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let line = rig.bind_resample(PIN);
    rig.set_lapic_enabled(false);
    line.trigger();
    assert!(rig.irr(PIN) && !rig.remote_irr(PIN));
    assert_eq!(rig.accept(), None);
    rig.set_lapic_enabled(true);
    assert_eq!(rig.accept(), None);
    assert!(rig.irr(PIN) && !rig.remote_irr(PIN));
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// A source bound while the interrupt of a plain line is in service is notified at the EOI, on a level and on an edge
/// pin.
pub fn row_46_bound_while_a_plain_line_is_in_service(rig: &mut dyn Rig) {
    for entry in [LEVEL_ENTRY, EDGE_ENTRY] {
        rig.set_rte(PIN, entry);
        assert_eq!(rig.set_line(PIN, true), Delivery::Delivered(1));
        assert_eq!(rig.accept(), Some(VECTOR));
        let line = rig.bind_resample(PIN);
        rig.set_line(PIN, false);
        assert_eq!(line.n(), 0);
        rig.eoi();
        assert_eq!(line.n(), 1);
        assert_eq!(rig.accept(), None);
    }
}

/// A level that stays high is delivered again at once at every EOI, except that the 10,000th EOI in a row is followed
/// by a pause of about 10 ms (Linux: HZ/100 jiffies, so that a coarse tick makes it shorter).
pub fn row_47_storm_is_throttled_every_10000(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    rig.set_line(PIN, true);
    assert_eq!(rig.accept(), Some(VECTOR));
    for eoi in 1..=10_100 {
        let start = Instant::now();
        rig.eoi();
        let mut accepted = rig.accept();
        if eoi == 10_000 {
            // On a busy host this thread may not run during the whole pause, and may see its end at the first check.
            let patience = Patience::new(Duration::from_secs(5));
            while accepted.is_none() && !patience.is_over() {
                accepted = rig.accept();
            }
            let pause = start.elapsed();
            assert!(pause >= Duration::from_millis(4), "a pause of {pause:?} only");
        }
        assert_eq!(accepted, Some(VECTOR), "after EOI {eoi}");
    }
    rig.set_line(PIN, false);
    rig.eoi();
    assert_idle(rig, PIN);
}

/// The controller's answer to a level on a plain line.
pub fn row_50_delivery_status_of_a_plain_line(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    assert_eq!(rig.set_line(PIN, true), Delivery::Pending, "masked");
    assert_eq!(rig.set_line(PIN, false), Delivery::Delivered(1), "lowering");
    rig.unmask(PIN);
    assert_eq!(rig.set_line(PIN, true), Delivery::Delivered(1), "unmasked");
    assert_eq!(rig.accept(), Some(VECTOR));
    assert_eq!(rig.set_line(PIN, true), Delivery::Pending, "in service");
    rig.set_line(PIN, false);
    rig.eoi();
    assert_idle(rig, PIN);
    rig.set_rte(PIN, EDGE_ENTRY);
    assert_eq!(rig.set_line(PIN, true), Delivery::Delivered(1), "edge");
    assert_eq!(rig.set_line(PIN, true), Delivery::Coalesced, "edge, high already");
}

/// Every source of a GSI is notified, also a source that did not assert.
pub fn row_57_all_sharers_are_told(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let a = rig.bind_resample(PIN);
    let b = rig.bind_resample(PIN);
    a.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    assert_eq!((a.n(), b.n()), (0, 0));
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    assert_idle(rig, PIN);
}

/// Two sources assert, and one re-asserts after the EOI: one more interrupt, and both are notified again at its EOI.
pub fn row_58_a_sharer_restates(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    let a = rig.bind_resample(PIN);
    let b = rig.bind_resample(PIN);
    a.trigger();
    b.trigger();
    rig.settle();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    b.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    assert_idle(rig, PIN);
}

/// The EOI of a vector notifies the sources of every pin with that vector.
pub fn row_61_pins_with_one_vector(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    rig.set_rte(OTHER_PIN, LEVEL_ENTRY);
    let a = rig.bind_resample(PIN);
    let b = rig.bind_resample(OTHER_PIN);
    a.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!((a.n(), b.n()), (1, 1));
    assert_idle(rig, PIN);
    assert_idle(rig, OTHER_PIN);
}

/// The EOI of an MSI that happens to have the vector of a masked pin with its line high. A source that answers every
/// notification with its level loses no interrupt, whether or not the controller attributes the EOI to the pin.
pub fn row_62_foreign_eoi_is_survived_by_restating(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    rig.send_msi(VECTOR);
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    let restate = |line: &dyn ResampleLine| {
        if line.n() > 0 {
            line.trigger();
        }
    };
    restate(&*line);
    assert!(rig.irr(PIN), "the level is lost");
    rig.unmask(PIN);
    restate(&*line);
    assert_eq!(rig.accept(), Some(VECTOR));
    rig.eoi();
    assert_eq!(line.n(), 1);
    assert_idle(rig, PIN);
}

/// A source that is dropped while it asserts lowers its level: before delivery, and in service.
pub fn row_73_source_gone_while_asserting(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY | MASKED);
    let line = rig.bind_resample(PIN);
    line.trigger();
    assert!(rig.irr(PIN));
    drop(line);
    assert!(!rig.irr(PIN));
    rig.unmask(PIN);
    assert_idle(rig, PIN);

    let line = rig.bind_resample(PIN);
    line.trigger();
    assert_eq!(rig.accept(), Some(VECTOR));
    drop(line);
    assert!(!rig.irr(PIN));
    rig.eoi();
    assert_idle(rig, PIN);
}

/// A source that never asserted is notified 1000 times: neither the source nor its pin causes an interrupt.
pub fn row_74_resampled_with_nothing_asserted(rig: &mut dyn Rig) {
    rig.set_rte(PIN, LEVEL_ENTRY);
    rig.set_rte(OTHER_PIN, LEVEL_ENTRY);
    let busy = rig.bind_resample(PIN);
    let idle = rig.bind_resample(OTHER_PIN);
    for round in 0..repeats(1000) {
        busy.trigger();
        assert_eq!(rig.accept(), Some(VECTOR), "round {round}");
        rig.eoi();
        assert_eq!((busy.n(), idle.n()), (1, 1), "round {round}");
        assert!(!rig.remote_irr(OTHER_PIN), "round {round}");
    }
    assert_idle(rig, PIN);
    assert_idle(rig, OTHER_PIN);
}
