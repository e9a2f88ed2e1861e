// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A producer that leaves the path that it was told to take, and what the connection makes of that.

use std::sync::{Arc, Mutex};

use interrupt_core::forward::{Connection, Consumer, Path, Producer, ProducerInfo, ProducerState};
use interrupt_core::testing::{Journal, RecordingConsumer, RecordingProducer};

/// A producer that can fall to its relay by itself.
#[derive(Debug)]
struct Falling {
    inner: RecordingProducer,
    fallen: Mutex<bool>,
    /// Every direct path fails when it has been started.
    always: bool,
}

impl Falling {
    fn new(journal: &Journal, always: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: RecordingProducer::with_journal("device", journal.clone()),
            fallen: Mutex::new(false),
            always,
        })
    }

    fn fall(&self) {
        *self.fallen.lock().unwrap() = true;
    }
}

impl Producer for Falling {
    fn label(&self) -> &str {
        self.inner.label()
    }

    fn info(&self) -> ProducerInfo {
        self.inner.info()
    }

    fn state(&self) -> ProducerState {
        let state = self.inner.state();
        match *self.fallen.lock().unwrap() {
            true => ProducerState {
                path: state.path.and(Some(Path::Relay)),
                failed: Some("the device would not be unmasked".to_owned()),
                ..state
            },
            false => state,
        }
    }

    fn stop(&self) -> interrupt_core::Result<()> {
        self.inner.stop()
    }

    fn connect(&self, path: Path, consumer: &dyn Consumer) -> interrupt_core::Result<()> {
        *self.fallen.lock().unwrap() = self.always;
        self.inner.connect(path, consumer)
    }

    fn disconnect(&self) {
        self.inner.disconnect();
    }

    fn start(&self) -> interrupt_core::Result<()> {
        self.inner.start()
    }
}

fn connected(always: bool) -> (Journal, Arc<Falling>, Arc<RecordingConsumer>, Connection) {
    let journal = Journal::default();
    let device = Falling::new(&journal, always);
    let line = Arc::new(RecordingConsumer::with_journal(11, journal.clone()));
    let connection = Connection::new(device.clone());
    connection.set_consumer(Some(line.clone())).unwrap();
    journal.take();
    (journal, device, line, connection)
}

#[test]
fn an_explanation_names_the_path_that_the_producer_has_taken() {
    let (_, device, _, connection) = connected(false);
    let before = connection.explain();
    assert_eq!(
        (before.path, before.changes, before.why_not.len()),
        (Some(Path::KernelLoop), 0, 1)
    );
    device.fall();
    let after = connection.explain();
    assert_eq!((after.path, after.changes), (Some(Path::Relay), 1));
    let why = (Path::KernelLoop, "the device would not be unmasked".to_owned());
    assert!(after.why_not.contains(&why), "{:?}", after.why_not);
    assert!(after.elapsed <= before.elapsed + after.elapsed);
    assert_eq!(connection.path(), Some(Path::Relay));
}

#[test]
fn a_new_decision_tries_the_path_that_the_producer_has_left() {
    let (journal, device, _, connection) = connected(false);
    device.fall();
    assert_eq!(connection.changed().unwrap(), Some(Path::KernelLoop));
    assert!(journal.take().contains(&"p.connect(kernel loop)".to_owned()));
    assert_eq!(connection.explain().changes, 2);
}

#[test]
fn a_line_is_left_by_the_path_that_the_producer_has_taken() {
    let (journal, device, _, connection) = connected(false);
    device.fall();
    let other = Arc::new(RecordingConsumer::with_journal(12, journal.clone()));
    assert_eq!(connection.set_consumer(Some(other)).unwrap(), Some(Path::KernelLoop));
    let told = journal.take();
    assert_eq!(
        told.iter().filter(|what| *what == "c.disconnect(relay)").count(),
        1,
        "{told:?}"
    );
}

#[test]
fn a_path_that_the_producer_leaves_at_once_is_not_the_answer() {
    let (_, _, line, connection) = connected(true);
    assert_eq!(connection.path(), Some(Path::Relay));
    let other = Arc::new(RecordingConsumer::new(12));
    assert_eq!(connection.set_consumer(Some(other)).unwrap(), Some(Path::Relay));
    assert_eq!(line.path(), None);
}
