// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections and the registry, between doubles of their two ends.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod decisions;
mod explicit;
mod fell_back;
mod pairs;
mod random;
mod reentrant;

use std::sync::Arc;

use interrupt_core::forward::{Connection, EventfdId, Path, Registration, Registry};
use interrupt_core::testing::{Journal, RecordingConsumer, RecordingProducer};

const ID: EventfdId = EventfdId(7);

/// A registry and one of each side, which write into one journal. Neither is registered yet.
struct World {
    registry: Registry,
    producer: Arc<RecordingProducer>,
    consumer: Arc<RecordingConsumer>,
    journal: Journal,
}

impl World {
    fn new() -> Self {
        Self::with(Registry::default())
    }

    fn with(registry: Registry) -> Self {
        let journal = Journal::default();
        Self {
            registry,
            producer: Arc::new(RecordingProducer::with_journal("device", journal.clone())),
            consumer: Arc::new(RecordingConsumer::with_journal(11, journal.clone())),
            journal,
        }
    }

    fn add_producer(&self) -> Registration {
        self.registry.add_producer(ID, self.producer.clone()).unwrap()
    }

    fn add_consumer(&self) -> Registration {
        self.registry.add_consumer(ID, self.consumer.clone()).unwrap()
    }

    fn connected() -> (Self, Registration, Registration) {
        let world = Self::new();
        let (producer, consumer) = (world.add_producer(), world.add_consumer());
        world.journal.take();
        (world, producer, consumer)
    }

    /// The connection, which has an end.
    fn connection(&self) -> Arc<Connection> {
        self.registry.connection(ID).unwrap()
    }

    fn path(&self) -> Option<Path> {
        self.path_of(ID)
    }

    fn path_of(&self, id: EventfdId) -> Option<Path> {
        self.registry
            .connection(id)
            .ok()
            .and_then(|connection| connection.path())
    }

    fn said(&self) -> String {
        self.registry.explain()[0].to_string()
    }
}
