// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Model checks of the sharing state: every interleaving of a few threads on one line.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p interrupt-core --release --lib model_checks`.

use crate::testing::RecordingPin;
use crate::{EoiGuard, EoiNotifier, Gsi, Level, LevelInterrupt, LevelSource, Line, LineSource, Listener, LoweredBy};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use std::sync::Arc;

const GSI: Gsi = Gsi(5);

/// The pin saw the line's levels and nothing else: alternating, from high, and the last is the line's.
fn check_pin(line: &Line<RecordingPin>) {
    let levels = line.pin().levels();
    for (n, level) in levels.iter().enumerate() {
        let expected = if n % 2 == 0 { Level::High } else { Level::Low };
        assert_eq!(*level, expected, "the pin was driven {levels:?}");
    }
    assert_eq!(levels.last().copied().unwrap_or(Level::Low), line.level());
}

#[test]
fn two_sources_that_assert_and_deassert_leave_the_or() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let (a, b) = (line.source("a", LoweredBy::Device), line.source("b", LoweredBy::Device));
        let other = thread::spawn(move || {
            a.assert().unwrap();
            a.deassert().unwrap();
            a
        });
        b.assert().unwrap();
        let a = other.join().unwrap();
        assert_eq!(
            (a.level(), b.level(), line.level()),
            (Level::Low, Level::High, Level::High)
        );
        check_pin(&line);
    });
}

#[test]
fn dropping_a_source_while_another_asserts_leaves_the_or() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let (a, b) = (line.source("a", LoweredBy::Device), line.source("b", LoweredBy::Eoi));
        a.assert().unwrap();
        let other = thread::spawn(move || drop(a));
        b.assert().unwrap();
        other.join().unwrap();
        assert_eq!(line.level(), Level::High);
        check_pin(&line);
    });
}

/// A device with a count of causes, which states its level when it is told.
struct Device {
    source: LineSource<RecordingPin>,
    causes: AtomicUsize,
}

#[test]
fn an_assertion_that_races_an_eoi_is_never_lost() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let device = Arc::new(Device {
            source: line.source("device", LoweredBy::Eoi),
            causes: AtomicUsize::new(1),
        });
        device.source.assert().unwrap();
        let listener = Arc::clone(&device);
        let guard = line
            .subscribe(
                device.source.key().into(),
                Listener::callback(move |_| {
                    if listener.causes.load(Ordering::SeqCst) > 0 {
                        listener.source.assert().unwrap();
                    }
                }),
            )
            .unwrap();
        let raiser = Arc::clone(&device);
        let other = thread::spawn(move || {
            raiser.causes.fetch_add(1, Ordering::SeqCst);
            raiser.source.assert().unwrap();
        });
        // The guest's handler: services one cause, ends the interrupt.
        device.causes.fetch_sub(1, Ordering::SeqCst);
        line.eoi().unwrap();
        other.join().unwrap();
        assert_eq!(device.causes.load(Ordering::SeqCst), 1);
        assert_eq!(line.level(), Level::High, "a cause is left, so the line is high");
        check_pin(&line);
        drop(guard);
    });
}

#[test]
fn two_eois_at_once_lower_the_line_once_and_tell_twice() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let source = line.source("device", LoweredBy::Eoi);
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let guard = line
            .subscribe(
                GSI.into(),
                Listener::callback(move |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                }),
            )
            .unwrap();
        source.assert().unwrap();
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        line.eoi().unwrap();
        other.join().unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 2);
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
        drop(guard);
    });
}

#[test]
fn no_callback_runs_after_its_guard_is_gone() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let gone = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&gone);
        let guard = line
            .subscribe(
                GSI.into(),
                Listener::callback(move |_| {
                    assert!(!seen.load(Ordering::SeqCst), "called after the guard's drop returned");
                }),
            )
            .unwrap();
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        drop(guard);
        gone.store(true, Ordering::SeqCst);
        other.join().unwrap();
    });
}

#[test]
fn a_listener_added_during_an_eoi_hears_the_next() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let guard = line
            .subscribe(
                GSI.into(),
                Listener::callback(move |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                }),
            )
            .unwrap();
        other.join().unwrap();
        let before = told.load(Ordering::SeqCst);
        line.eoi().unwrap();
        assert_eq!(told.load(Ordering::SeqCst), before + 1);
        drop(guard);
    });
}

/// A line whose device has one [`LevelInterrupt`].
fn interrupt(lowered_by: LoweredBy) -> (Arc<Line<RecordingPin>>, Arc<LevelInterrupt>) {
    let line = Line::new(GSI, RecordingPin::default());
    let source = Arc::new(line.source("device", lowered_by));
    let interrupt = LevelInterrupt::new(source, &*line).unwrap();
    (line, Arc::new(interrupt))
}

/// Of two threads at one interrupt, one drives for both: the last level is never driven before an earlier one.
#[test]
fn the_last_level_of_an_interrupt_is_driven_last() {
    loom::model(|| {
        let (line, interrupt) = interrupt(LoweredBy::Device);
        let clearer = Arc::clone(&interrupt);
        let other = thread::spawn(move || clearer.clear(1).unwrap());
        interrupt.raise(1).unwrap();
        other.join().unwrap();
        let level = if interrupt.causes() == 0 {
            Level::Low
        } else {
            Level::High
        };
        assert_eq!(line.level(), level);
        check_pin(&line);
    });
}

/// The guest's acknowledgement on one processor meets the device's thread, which is about to drive the level.
#[test]
fn the_line_is_low_when_a_clear_returns() {
    loom::model(|| {
        let (line, interrupt) = interrupt(LoweredBy::Device);
        let device = Arc::clone(&interrupt);
        let other = thread::spawn(move || device.raise(1).unwrap());
        while interrupt.causes() == 0 {
            thread::yield_now();
        }
        interrupt.clear(1).unwrap();
        assert_eq!(line.level(), Level::Low);
        other.join().unwrap();
        check_pin(&line);
    });
}

#[test]
fn an_eoi_that_meets_a_raise_leaves_the_level_of_the_causes() {
    loom::model(|| {
        let (line, interrupt) = interrupt(LoweredBy::Eoi);
        interrupt.raise(1).unwrap();
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        interrupt.raise(2).unwrap();
        interrupt.clear(1).unwrap();
        other.join().unwrap();
        assert_eq!((interrupt.causes(), line.level()), (2, Level::High));
        check_pin(&line);
    });
}

#[test]
fn an_eoi_that_meets_the_last_clear_leaves_the_line_low() {
    loom::model(|| {
        let (line, interrupt) = interrupt(LoweredBy::Eoi);
        interrupt.raise(1).unwrap();
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        interrupt.clear(1).unwrap();
        other.join().unwrap();
        assert_eq!(line.level(), Level::Low);
        check_pin(&line);
    });
}

/// A line that was restored high, whose two sources state low on two threads: it is low then, and was driven low once.
#[test]
fn the_statements_of_two_sources_end_a_restored_level_once() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let [a, b] = ["a", "b"].map(|label| line.source(label, LoweredBy::Device));
        line.restore(Level::High).unwrap();
        let other = thread::spawn(move || {
            a.deassert().unwrap();
            a
        });
        b.deassert().unwrap();
        drop(other.join().unwrap());
        assert_eq!((line.level(), line.pin().levels()), (Level::Low, vec![Level::Low]));
    });
}
