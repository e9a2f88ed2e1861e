// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Model checks of guards and registrations that go while they are in use: every interleaving of two threads.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p interrupt-core --release --lib model_checks`.

use std::sync::Arc;

use crate::forward::{EventfdId, Path, Registration, Registry};
use crate::testing::{Journal, RecordingConsumer, RecordingPin, RecordingProducer};
use crate::{EoiGuard, EoiNotifier, Gsi, Line, Listener};
use loom::sync::Mutex;
use loom::thread;

const GSI: Gsi = Gsi(5);
const ID: EventfdId = EventfdId(42);

// ---- guards ----

/// Where a guard lies that a callback drops.
type Slot = Arc<Mutex<Option<EoiGuard>>>;

/// A listener that drops the guard in `slot`, if it is still there, with the slot's lock held.
fn dropping(slot: &Slot) -> Listener {
    let slot = Arc::clone(slot);
    Listener::callback(move |_| drop(slot.lock().unwrap().take()))
}

#[test]
fn a_callback_drops_its_own_guard_in_two_eois_at_once() {
    loom::model(|| {
        let line = Line::new(GSI, RecordingPin::default());
        let slot = Slot::default();
        let guard = line.subscribe(GSI.into(), dropping(&slot)).unwrap();
        *slot.lock().unwrap() = Some(guard);
        let processor = Arc::clone(&line);
        let other = thread::spawn(move || processor.eoi().unwrap());
        line.eoi().unwrap();
        other.join().unwrap();
        assert!(slot.lock().unwrap().is_none());
    });
}

#[test]
fn two_callbacks_drop_each_others_guards() {
    loom::model(|| {
        let (first, second) = (
            Line::new(GSI, RecordingPin::default()),
            Line::new(Gsi(6), RecordingPin::default()),
        );
        let slots = [Slot::default(), Slot::default()];
        let guard = first.subscribe(GSI.into(), dropping(&slots[1])).unwrap();
        *slots[0].lock().unwrap() = Some(guard);
        let guard = second.subscribe(Gsi(6).into(), dropping(&slots[0])).unwrap();
        *slots[1].lock().unwrap() = Some(guard);
        let processor = Arc::clone(&second);
        let other = thread::spawn(move || processor.eoi().unwrap());
        first.eoi().unwrap();
        other.join().unwrap();
        // A callback that was called after its guard had gone has dropped nothing.
        for slot in slots {
            let guard = slot.lock().unwrap().take();
            drop(guard);
        }
    });
}

// ---- registrations ----

/// A registry, and the two ends that register.
struct Ends {
    registry: Registry,
    device: Arc<RecordingProducer>,
    line: Arc<RecordingConsumer>,
    journal: Journal,
}

impl Ends {
    fn new() -> Self {
        let journal = Journal::default();
        Self {
            registry: Registry::default(),
            device: Arc::new(RecordingProducer::with_journal("device", journal.clone())),
            line: Arc::new(RecordingConsumer::with_journal(11, journal.clone())),
            journal,
        }
    }

    fn add_device(&self) -> Registration {
        self.registry.add_producer(ID, self.device.clone()).unwrap()
    }

    fn add_line(&self) -> Registration {
        self.registry.add_consumer(ID, self.line.clone()).unwrap()
    }

    fn path(&self) -> Option<Path> {
        self.registry
            .connection(ID)
            .ok()
            .and_then(|connection| connection.path())
    }

    /// Neither end is stopped, and both are where the registry says.
    fn check(&self) {
        assert!(!self.device.is_stopped() && !self.line.is_stopped());
        assert_eq!(self.line.path(), self.path(), "{:?}", self.journal);
    }

    /// After both have gone: nothing is left, and both may come again.
    fn check_gone(&self) {
        assert!(self.registry.connection(ID).is_err());
        assert_eq!((Arc::strong_count(&self.device), Arc::strong_count(&self.line)), (1, 1));
        self.check();
        let again = (self.add_line(), self.add_device());
        assert_eq!(self.path(), Some(Path::KernelLoop));
        drop(again);
    }
}

#[test]
fn both_ends_leave_at_once() {
    loom::model(|| {
        let ends = Ends::new();
        let (device, line) = (ends.add_device(), ends.add_line());
        let other = thread::spawn(move || drop(device));
        drop(line);
        other.join().unwrap();
        ends.check_gone();
    });
}

#[test]
fn both_ends_come_at_once() {
    loom::model(|| {
        let ends = Arc::new(Ends::new());
        let theirs = Arc::clone(&ends);
        let other = thread::spawn(move || theirs.add_device());
        let line = ends.add_line();
        let device = other.join().unwrap();
        assert_eq!(ends.path(), Some(Path::KernelLoop));
        ends.check();
        drop((device, line));
    });
}

#[test]
fn one_end_leaves_while_the_other_comes() {
    loom::model(|| {
        let ends = Ends::new();
        let device = ends.add_device();
        let other = thread::spawn(move || drop(device));
        let line = ends.add_line();
        other.join().unwrap();
        assert_eq!(ends.path(), None);
        ends.check();
        let device = ends.add_device();
        assert_eq!(ends.path(), Some(Path::KernelLoop));
        drop((line, device));
    });
}

#[test]
fn the_path_changes_while_an_end_leaves() {
    loom::model(|| {
        let ends = Ends::new();
        let (device, line) = (ends.add_device(), ends.add_line());
        let connection = ends.registry.connection(ID).unwrap();
        let other = thread::spawn(move || drop(line));
        // It finds the line, or does not.
        drop(connection.restrict(Some(Path::Relay)));
        other.join().unwrap();
        assert_eq!((ends.path(), ends.line.path()), (None, None));
        ends.check();
        drop((device, connection));
        assert!(ends.registry.connection(ID).is_err());
    });
}

#[test]
fn the_path_changes_on_two_threads() {
    loom::model(|| {
        let ends = Ends::new();
        let both = (ends.add_device(), ends.add_line());
        let connection = ends.registry.connection(ID).unwrap();
        let theirs = Arc::clone(&connection);
        let other = thread::spawn(move || theirs.restrict(Some(Path::Relay)).unwrap());
        let mine = connection.restrict(None).unwrap();
        let relay = other.join().unwrap();
        assert_eq!((relay, mine), (Some(Path::Relay), Some(Path::KernelLoop)));
        ends.check();
        drop(both);
    });
}
