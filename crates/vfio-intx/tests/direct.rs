// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx on the direct path, without a relay.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use interrupt_core::forward::{GuestLine, Path};
use interrupt_core::testing::{ManualNotifier, RecordingSource};
use interrupt_core::{EoiNotifier, Gsi};
use vfio_intx::{DirectIntx, Error, ModelIntx, State};

#[path = "common/irqfd.rs"]
mod irqfd;
use irqfd::source;

#[test]
fn the_eoi_unmasks_the_device_without_a_relay() {
    let device = Arc::new(ModelIntx::new("model"));
    let notifier = Arc::new(ManualNotifier::default());
    let line = GuestLine::split(source(11), notifier.clone());
    let intx = DirectIntx::new(device.clone(), line).unwrap();
    assert_eq!(intx.enable().unwrap(), State::Carried(Path::SplitKick));
    for _ in 0..3 {
        device.raise(1);
        assert!(device.is_masked());
        device.acknowledge(1);
        notifier.eoi(Gsi(11)).unwrap();
        device.poll_unmask();
        assert!(!device.is_masked());
    }
}

#[test]
fn the_same_route_again_changes_nothing() {
    let notifier = Arc::new(ManualNotifier::default());
    let line = |gsi| GuestLine::split(source(gsi), notifier.clone());
    let intx = DirectIntx::new(Arc::new(ModelIntx::new("model")), line(11)).unwrap();
    intx.enable().unwrap();
    let swaps = || intx.status().swaps;
    let (before, line_before) = (swaps(), intx.status().line);
    let again = line(11);
    let dropped = Arc::downgrade(again.source());
    intx.set_line(again).unwrap();
    assert_eq!(
        (swaps(), intx.status().line, dropped.strong_count()),
        (before, line_before, 0)
    );
    intx.set_line(line(12)).unwrap();
    assert_eq!(intx.status().line.unwrap().0, Gsi(12));
    let other = Arc::new(ManualNotifier::default());
    let elsewhere = GuestLine::split(source(12), other.clone());
    let kept = Arc::downgrade(elsewhere.source());
    intx.set_line(elsewhere).unwrap();
    assert!(
        kept.strong_count() > 0,
        "the same number at another controller is another line"
    );
}

#[test]
fn what_only_a_relay_could_carry_is_refused() {
    let notifier: Arc<dyn EoiNotifier> = Arc::new(ManualNotifier::default());
    let pulsing = Arc::new(ModelIntx::pulse("pulsing model"));
    let direct = GuestLine::split(source(11), notifier.clone());
    let without_trigger = GuestLine::split(Arc::new(RecordingSource::new(Gsi(11))), notifier.clone());
    for (device, line) in [
        (pulsing, direct.clone()),
        (Arc::new(ModelIntx::new("model")), without_trigger.clone()),
    ] {
        let error = DirectIntx::new(device, line).unwrap_err();
        assert!(matches!(error, Error::NoDirectPath { .. }), "{error}");
        assert_eq!(error.errno(), Some(95), "{error}");
    }
    let intx = DirectIntx::new(Arc::new(ModelIntx::new("model")), direct).unwrap();
    let path = intx.enable().unwrap();
    let elsewhere = GuestLine::split(Arc::new(RecordingSource::new(Gsi(12))), notifier);
    intx.set_line(elsewhere).unwrap_err();
    assert_eq!(intx.enable().unwrap(), path, "it stays where it is");
    assert_eq!(intx.status().line.unwrap().0, Gsi(11));
}

/// Whichever of two changes at once is the last: the next one is on its line when it says so.
#[test]
fn a_line_that_is_set_beside_another_is_not_taken_for_set() {
    let notifier = Arc::new(ManualNotifier::default());
    let line = |gsi| GuestLine::split(source(gsi), notifier.clone());
    let intx = DirectIntx::new(Arc::new(ModelIntx::new("model")), line(11)).unwrap();
    intx.enable().unwrap();
    for _ in 0..300 {
        std::thread::scope(|scope| {
            for first in 0..4 {
                let (intx, line) = (&intx, &line);
                scope.spawn(move || (0..20).for_each(|n| intx.set_line(line(12 + (first + n) % 2)).unwrap()));
            }
        });
        for gsi in [12, 13] {
            intx.set_line(line(gsi)).unwrap();
            assert_eq!(intx.status().line.unwrap().0, Gsi(gsi));
        }
    }
}
