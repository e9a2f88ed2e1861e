// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registering, connecting and taking apart: rows 123, 124, 125, 127 and 131 of the conformance list.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interrupt_core::forward::{Connection, Error, EventfdId, GuestLine, Path, Producer, Registry};
use interrupt_core::testing::{ManualNotifier, RecordingConsumer, RecordingProducer, RecordingSource};
use interrupt_core::{Gsi, Irqchip};
use rustix::event::{EventfdFlags, eventfd};

use super::{ID, World};

const BRACKET: [&str; 6] = [
    "p.stop",
    "c.stop",
    "p.connect(kernel loop)",
    "c.connect(kernel loop)",
    "c.start",
    "p.start",
];

#[test]
fn row_123_connected_once_in_either_order_in_the_bracket() {
    for producer_first in [true, false] {
        let world = World::new();
        let (first, second);
        if producer_first {
            first = world.add_producer();
            assert!(world.journal.take().is_empty(), "there is nobody to connect to");
            second = world.add_consumer();
        } else {
            first = world.add_consumer();
            assert!(world.journal.take().is_empty());
            second = world.add_producer();
        }
        assert_eq!(world.journal.take(), BRACKET);
        assert_eq!(world.path(), Some(Path::KernelLoop));
        // Asked again, there is nothing to do.
        assert_eq!(world.connection().changed().unwrap(), Some(Path::KernelLoop));
        assert!(world.journal.take().is_empty());
        drop((first, second));
    }
}

#[test]
fn row_124_a_dup_is_the_same_and_a_number_that_is_used_again_is_not() {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (id, number) = (EventfdId::of(&fd).unwrap(), fd.as_raw_fd());
    let dup = rustix::io::fcntl_dupfd_cloexec(&fd, 100).unwrap();
    assert_ne!(dup.as_raw_fd(), number);
    assert_eq!(EventfdId::of(&dup).unwrap(), id);

    let world = World::new();
    let producer = world.registry.add_producer(id, world.producer.clone()).unwrap();
    // The dup keeps the eventfd; the number goes to another one.
    drop(fd);
    let other = loop {
        let other = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        // Other tests open files too.
        if other.as_raw_fd() >= number {
            break other;
        }
        std::mem::forget(other);
    };
    let other_id = EventfdId::of(&other).unwrap();
    assert_ne!(other_id, id);
    let _stranger = world.registry.add_consumer(other_id, world.consumer.clone()).unwrap();
    assert_eq!((world.path_of(id), world.path_of(other_id)), (None, None));
    drop(producer);
    let error = EventfdId::of(File::open("/dev/null").unwrap()).unwrap_err();
    assert!(error.to_string().contains("no eventfd"), "{error}");
}

#[test]
fn row_125_a_second_of_either_side_is_busy_and_the_pair_untouched() {
    let (world, _producer, _consumer) = World::connected();
    let second = world
        .registry
        .add_producer(ID, Arc::new(RecordingProducer::new("second")));
    let error = second.unwrap_err();
    assert!(
        matches!(&error, Error::Busy { label, .. } if &**label == "device"),
        "{error}"
    );
    assert_eq!(error.errno(), Some(16));
    let error = world
        .registry
        .add_consumer(ID, Arc::new(RecordingConsumer::new(12)))
        .unwrap_err();
    assert_eq!(error.errno(), Some(16));
    assert!(world.journal.take().is_empty());
    assert_eq!(world.path(), Some(Path::KernelLoop));
}

#[test]
fn row_127_unregistered_in_either_order_disconnected_once_and_let_go() {
    for producer_first in [true, false] {
        let (world, producer, consumer) = World::connected();
        let (first, second) = if producer_first {
            (producer, consumer)
        } else {
            (consumer, producer)
        };
        drop(first);
        assert_eq!(
            world.journal.take(),
            [
                "p.stop",
                "c.stop",
                "c.disconnect(kernel loop)",
                "p.disconnect",
                "c.start"
            ]
        );
        assert!(!world.producer.is_stopped());
        let left = if producer_first {
            "waits for a device"
        } else {
            "waits for a line"
        };
        assert!(world.said().contains(left), "{}", world.said());
        drop(second);
        assert!(world.journal.take().is_empty());
        assert!(world.registry.explain().is_empty());
        // Nobody is called any more, because nobody is kept.
        assert_eq!(
            (Arc::strong_count(&world.producer), Arc::strong_count(&world.consumer)),
            (1, 1)
        );
        assert_eq!(world.registry.connection(ID).unwrap_err().errno(), Some(2));
    }
}

#[test]
fn a_side_that_comes_back_is_connected_again() {
    let (world, producer, consumer) = World::connected();
    drop(consumer);
    let _consumer = world.add_consumer();
    assert_eq!(world.path(), Some(Path::KernelLoop));
    drop(producer);
    let _producer = world.add_producer();
    assert_eq!(world.path(), Some(Path::KernelLoop));
}

#[test]
fn row_131_a_level_pair_is_a_kernel_loop_and_not_called_bypassed() {
    let (world, _producer, _consumer) = World::connected();
    let said = world.said();
    assert!(
        said.starts_with("device to gsi 11: kernel loop, kernel irqchip; for "),
        "{said}"
    );
    assert!(
        said.ends_with("never changed; not host forward: the test has no host"),
        "{said}"
    );
}

#[test]
fn what_becomes_possible_is_taken_and_what_stops_being_possible_is_left() {
    let world = World::new();
    // The line's route is a message that has no pin yet, and the device takes no unmask eventfd.
    world
        .consumer
        .set_info(|info| info.relay_only = Some("the route is an MSI".into()));
    world.producer.set_info(|info| info.interrupt.unmask_fd = false);
    let (_producer, _consumer) = (world.add_producer(), world.add_consumer());
    assert_eq!(world.path(), Some(Path::Relay));
    assert!(
        world.said().contains("not kernel loop: the route is an MSI"),
        "{}",
        world.said()
    );

    world.consumer.set_info(|info| info.relay_only = None);
    assert_eq!(world.connection().changed().unwrap(), Some(Path::Relay));
    assert!(
        world
            .said()
            .contains("not kernel loop: the device takes no unmask eventfd")
    );
    world.producer.set_info(|info| info.interrupt.unmask_fd = true);
    world.journal.take();
    assert_eq!(world.connection().changed().unwrap(), Some(Path::KernelLoop));
    assert_eq!(
        world.journal.take(),
        [
            "p.stop",
            "c.stop",
            "c.disconnect(relay)",
            "p.connect(kernel loop)",
            "c.connect(kernel loop)",
            "c.start",
            "p.start"
        ]
    );
    world.consumer.set_info(|info| info.irqchip = Irqchip::Split);
    assert_eq!(world.connection().changed().unwrap(), Some(Path::SplitKick));
    world.consumer.set_info(|info| info.trigger = false);
    assert_eq!(world.connection().changed().unwrap(), Some(Path::Relay));
    assert!(world.said().contains("changed 3 times"), "{}", world.said());
    // Nothing at all is left.
    world.producer.set_info(|info| info.relay = false);
    let error = world.connection().changed().unwrap_err();
    assert!(matches!(error, Error::NoPath { .. }), "{error}");
    assert_eq!(world.path(), None);
    assert!(!world.producer.is_stopped());
    world.producer.set_info(|info| info.relay = true);
    assert_eq!(world.connection().changed().unwrap(), Some(Path::Relay));
}

/// Each step of the change from the relay to the kernel loop fails in turn, of one side and of the other.
#[test]
fn a_change_that_fails_at_any_step_leaves_a_path_that_works() {
    let mut failed = 0;
    for side in ["p", "c"] {
        for step in 0.. {
            let world = World::new();
            world.producer.set_info(|info| info.interrupt.unmask_fd = false);
            let (_producer, _consumer) = (world.add_producer(), world.add_consumer());
            assert_eq!(world.path(), Some(Path::Relay));
            world.producer.set_info(|info| info.interrupt.unmask_fd = true);
            match side {
                "p" => world.producer.refuse(step, 1),
                _ => world.consumer.refuse(step, 1),
            }
            let path = world.connection().changed().unwrap();
            if path == Some(Path::KernelLoop) {
                // That step there is not, in a change that goes well.
                assert_eq!(step, 3, "{side}");
                break;
            }
            failed += 1;
            assert_eq!(path, Some(Path::Relay), "{side} {step}: {:?}", world.journal.take());
            assert!(!world.producer.is_stopped(), "{side} {step}: left masked");
            assert_eq!(world.consumer.path(), Some(Path::Relay), "{side} {step}");
            assert!(
                world.said().contains("not kernel loop: it failed: refused by the test"),
                "{}",
                world.said()
            );
            // It is tried again when there is a reason to.
            assert_eq!(world.connection().changed().unwrap(), Some(Path::KernelLoop));
        }
    }
    assert_eq!(failed, 6);
}

#[test]
fn when_nothing_can_be_had_the_newcomer_is_not_registered() {
    for producer_first in [true, false] {
        let world = World::new();
        world.producer.refuse(0, usize::MAX);
        let (kept, refused) = if producer_first {
            (
                world.add_producer(),
                world.registry.add_consumer(ID, world.consumer.clone()),
            )
        } else {
            (
                world.add_consumer(),
                world.registry.add_producer(ID, world.producer.clone()),
            )
        };
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error}");
        assert_eq!(error.errno(), Some(5));
        assert!(!world.producer.is_stopped());
        let count = if producer_first {
            Arc::strong_count(&world.consumer)
        } else {
            Arc::strong_count(&world.producer)
        };
        assert_eq!(count, 1);
        // The one that was there is there still.
        world.producer.refuse(0, 0);
        let _other = if producer_first {
            world.add_consumer()
        } else {
            world.add_producer()
        };
        assert_eq!(world.path(), Some(Path::KernelLoop));
        drop(kept);
    }
}

#[test]
fn a_path_that_was_asked_for_and_fails_leaves_the_one_from_before() {
    let (world, _producer, _consumer) = World::connected();
    // The producer will not be stopped: nothing changes.
    world.producer.refuse(0, 1);
    let error = world.connection().restrict(Some(Path::Relay)).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(world.path(), Some(Path::KernelLoop));
    // It will not be started on the relay: the loop is taken up again.
    world.producer.refuse(2, 1);
    world.connection().restrict(Some(Path::Relay)).unwrap_err();
    assert_eq!(world.path(), Some(Path::KernelLoop));
    assert!(!world.producer.is_stopped());
    assert_eq!(
        world.connection().restrict(Some(Path::Relay)).unwrap(),
        Some(Path::Relay)
    );
}

#[test]
fn many_identities_do_not_disturb_each_other() {
    let registry = Registry::default();
    let pairs: Vec<_> = (0..64)
        .map(|n| {
            let producer = Arc::new(RecordingProducer::new(format!("device {n}")));
            let device = registry.add_producer(EventfdId(n), producer.clone()).unwrap();
            let line = registry
                .add_consumer(EventfdId(n), Arc::new(RecordingConsumer::new(n as u32)))
                .unwrap();
            (producer, device, line)
        })
        .collect();
    let fifth = registry.connection(EventfdId(5)).unwrap();
    fifth.restrict(Some(Path::Relay)).unwrap();
    drop(fifth);
    for (n, pair) in registry.explain().iter().enumerate() {
        assert_eq!(pair.id, Some(EventfdId(n as u64)));
        let expected = if n == 5 { Path::Relay } else { Path::KernelLoop };
        assert_eq!(pair.path, Some(expected));
    }
    drop(pairs);
    assert!(registry.explain().is_empty());
}

#[test]
fn a_connection_that_is_dropped_disconnects_its_ends() {
    let world = World::new();
    let connection = Connection::new(world.producer.clone());
    assert_eq!(connection.possible(), []);
    connection.set_consumer(Some(world.consumer.clone())).unwrap();
    assert_eq!(connection.possible(), [Path::KernelLoop, Path::Relay]);
    world.journal.take();
    drop(connection);
    let told = world.journal.take();
    assert_eq!(
        told,
        [
            "p.stop",
            "c.stop",
            "c.disconnect(kernel loop)",
            "p.disconnect",
            "c.start"
        ]
    );
}

#[test]
fn a_line_that_is_replaced_is_left_once() {
    let world = World::new();
    let connection = Connection::new(world.producer.clone());
    connection.set_consumer(Some(world.consumer.clone())).unwrap();
    let before = connection.explain().changes;
    connection
        .set_consumer(Some(Arc::new(RecordingConsumer::new(12))))
        .unwrap();
    assert_eq!((world.consumer.path(), world.consumer.is_stopped()), (None, false));
    let left = "c.disconnect(kernel loop)";
    assert_eq!(world.journal.take().iter().filter(|what| *what == left).count(), 1);
    // A disconnection is a change of path, and so is the path after it.
    connection.set_consumer(None).unwrap();
    assert_eq!(connection.explain().changes, before + 1);
    connection.set_consumer(Some(world.consumer.clone())).unwrap();
    assert_eq!(connection.explain().changes, before + 2);
}

#[test]
fn a_connection_without_ends_is_forgotten() {
    let (world, producer, consumer) = World::connected();
    drop(producer);
    assert_eq!(world.registry.explain().len(), 1);
    drop(consumer);
    assert!(world.registry.connection(ID).is_err() && world.registry.explain().is_empty());
}

/// A path that stays because its end would not be stopped is not set up once more.
#[test]
fn a_refused_stop_changes_nothing() {
    let (world, _producer, _consumer) = World::connected();
    world.producer.refuse(0, 1);
    world.connection().restrict(Some(Path::Relay)).unwrap_err();
    assert_eq!(world.path(), Some(Path::KernelLoop));
    assert_eq!(world.journal.take(), ["p.stop", "p.start"]);
}

/// Neither the new line nor the old one has a path any more: the producer is not left stopped.
#[test]
fn a_producer_that_loses_both_lines_is_not_left_stopped() {
    let device = Arc::new(RecordingProducer::new("device"));
    device.set_info(|info| info.relay = false);
    let (old, new) = (
        Arc::new(RecordingConsumer::new(11)),
        Arc::new(RecordingConsumer::new(12)),
    );
    let connection = Connection::new(device.clone());
    connection.set_consumer(Some(old.clone())).unwrap();
    for line in [&old, &new] {
        line.set_info(|info| info.trigger = false);
    }
    connection.set_consumer(Some(new)).unwrap_err();
    assert_eq!((connection.path(), old.path(), device.state().path), (None, None, None));
    assert!(!device.is_stopped() && !old.is_stopped());
}

#[test]
fn an_explanation_counts_the_time_from_the_last_change() {
    let made = Instant::now();
    let connection = Connection::new(Arc::new(RecordingProducer::new("device")));
    while made.elapsed() < Duration::from_millis(20) {}
    let changed = Instant::now();
    connection
        .set_consumer(Some(Arc::new(RecordingConsumer::new(11))))
        .unwrap();
    let elapsed = connection.explain().elapsed;
    assert!(elapsed <= changed.elapsed(), "{elapsed:?}");
}

#[test]
fn a_line_is_another_one_in_each_of_its_parts() {
    let source = || Arc::new(RecordingSource::new(Gsi(11)));
    let (one, notifier) = (source(), Arc::new(ManualNotifier::default()));
    let line = GuestLine::kernel(one.clone(), notifier.clone());
    assert!(line.is(&line.clone()));
    let relayed = |reason| GuestLine::relay(one.clone(), notifier.clone(), reason);
    assert_eq!(relayed("a test").relay_only().map(AsRef::as_ref), Some("a test"));
    for other in [
        GuestLine::kernel(source(), notifier.clone()),
        GuestLine::kernel(one.clone(), Arc::new(ManualNotifier::default())),
        GuestLine::split(one.clone(), notifier.clone()),
        relayed("a test"),
    ] {
        assert!(!line.is(&other) && !other.is(&line), "{other:?}");
    }
    assert!(!relayed("a test").is(&relayed("another")));
}
