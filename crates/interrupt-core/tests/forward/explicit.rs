// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Explicit forward and unforward: rows 128 and 129 of the conformance list.

use std::sync::Arc;

use interrupt_core::Gsi;
use interrupt_core::forward::{
    DeviceIrq, Error, EventfdId, ForwardIrq, Path, Policy, Producer, Registration, Registry,
};
use interrupt_core::testing::{RecordingConsumer, RecordingProducer};

use super::World;
use super::reentrant::Acting;

const DEVICE: i32 = 30;
const INTX: u32 = 0;
const MSIX: u32 = 2;
const GSI: [Gsi; 1] = [Gsi(11)];

fn irq(index: u32, sub: u32) -> Option<DeviceIrq> {
    Some(DeviceIrq {
        device: DEVICE,
        index,
        sub,
    })
}

/// A pair that is relayed until it is forwarded.
fn explicit() -> (World, Registration, Registration) {
    let world = World::with(Registry::new(Policy::Explicit));
    world.producer.set_info(|info| info.irq = irq(INTX, 0));
    let (producer, consumer) = (world.add_producer(), world.add_consumer());
    assert_eq!(world.path(), Some(Path::Relay));
    (world, producer, consumer)
}

#[test]
fn forward_and_unforward() {
    let (world, _producer, _consumer) = explicit();
    let request = ForwardIrq::new(DEVICE, INTX, 0, &GSI);
    world.registry.forward(&request).unwrap();
    assert_eq!(world.path(), Some(Path::KernelLoop));
    world.journal.take();
    world.registry.forward(&request).unwrap();
    assert!(world.journal.take().is_empty(), "it is forwarded already");
    world.registry.unforward(&request).unwrap();
    assert_eq!(world.path(), Some(Path::Relay));
    assert!(
        world.said().contains("not kernel loop: relay is asked for"),
        "{}",
        world.said()
    );
}

#[test]
fn row_128_masked_or_active_is_eagain_and_unforward_works_at_any_time() {
    let (world, _producer, _consumer) = explicit();
    let request = ForwardIrq::new(DEVICE, INTX, 0, &GSI);
    for (masked, active, what) in [(true, false, "masked"), (false, true, "active")] {
        world.producer.set_now(masked, active);
        let error = world.registry.forward(&request).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.errno(), Some(11));
        assert_eq!(world.path(), Some(Path::Relay));
        world.producer.set_now(false, false);
        world.registry.forward(&request).unwrap();
        assert_eq!(world.path(), Some(Path::KernelLoop));
        world.producer.set_now(masked, active);
        world.registry.unforward(&request).unwrap();
        assert_eq!(world.path(), Some(Path::Relay));
        world.producer.set_now(false, false);
    }
}

/// An interrupt that would not go to the relay is asked for the relay all the same, and is not taken for forwarded.
#[test]
fn row_128_an_unforward_that_fails_is_an_error() {
    let (world, _producer, consumer) = explicit();
    let request = ForwardIrq::new(DEVICE, INTX, 0, &GSI);
    world.registry.forward(&request).unwrap();
    world.producer.refuse(0, 1);
    assert_eq!(world.registry.unforward(&request).unwrap_err().errno(), Some(5));
    assert_eq!(world.path(), Some(Path::KernelLoop), "it would not be stopped");
    world.producer.set_now(true, false);
    assert_eq!(world.registry.forward(&request).unwrap_err().errno(), Some(11));
    world.producer.set_now(false, false);
    world.registry.forward(&request).unwrap();
    // Nor is one that has lost its line.
    drop(consumer);
    world.producer.set_now(true, false);
    assert_eq!(world.registry.forward(&request).unwrap_err().errno(), Some(11));
}

/// The second interrupt is masked while the first is being forwarded.
#[test]
fn row_128_each_is_looked_at_again_when_its_turn_comes() {
    let registry = Registry::new(Policy::Explicit);
    let second = Arc::new(RecordingProducer::new("vector 1"));
    let first = Acting::new("connect");
    first.inner.set_info(|info| info.irq = irq(MSIX, 0));
    second.set_info(|info| info.irq = irq(MSIX, 1));
    let producers: [Arc<dyn Producer>; 2] = [first.clone(), second.clone()];
    let ends = (100..).map(EventfdId).zip(producers).zip(24..);
    let registrations = ends.map(|((id, producer), gsi)| {
        let line = Arc::new(RecordingConsumer::new(gsi));
        (
            registry.add_producer(id, producer).unwrap(),
            registry.add_consumer(id, line).unwrap(),
        )
    });
    let _registrations: Vec<_> = registrations.collect();
    first.acts(move || second.set_now(true, false));
    let both = ForwardIrq::new(DEVICE, MSIX, 0, &[Gsi(24), Gsi(25)]);
    assert_eq!(registry.forward(&both).unwrap_err().errno(), Some(11));
    for id in [100, 101] {
        assert_eq!(registry.connection(EventfdId(id)).unwrap().path(), Some(Path::Relay));
    }
}

#[test]
fn before_the_line_is_there() {
    for (gsi, expected) in [(11, Path::KernelLoop), (12, Path::Relay)] {
        let world = World::with(Registry::new(Policy::Explicit));
        world.producer.set_info(|info| info.irq = irq(INTX, 0));
        let _producer = world.add_producer();
        world
            .registry
            .forward(&ForwardIrq::new(DEVICE, INTX, 0, &[Gsi(gsi)]))
            .unwrap();
        // It holds for the line that it was asked for, and for no other.
        let _consumer = world.add_consumer();
        assert_eq!(world.path(), Some(expected));
    }
}

#[test]
fn row_129_malformed_requests_change_nothing() {
    let (world, _producer, _consumer) = explicit();
    world.journal.take();
    let good = ForwardIrq::new(DEVICE, INTX, 0, &GSI);
    let two = [Gsi(11), Gsi(12)];
    for (what, request, errno) in [
        ("argsz", ForwardIrq { argsz: 23, ..good }, 22),
        ("no argsz", ForwardIrq { argsz: 0, ..good }, 22),
        ("count 0", ForwardIrq { count: 0, ..good }, 22),
        (
            "overflow",
            ForwardIrq {
                start: u32::MAX,
                ..good
            },
            22,
        ),
        (
            "count without GSIs",
            ForwardIrq {
                count: 2,
                argsz: 28,
                ..good
            },
            22,
        ),
        (
            "count beyond all",
            ForwardIrq {
                count: u32::MAX,
                argsz: u32::MAX,
                ..good
            },
            22,
        ),
        (
            "a second interrupt that there is not",
            ForwardIrq::new(DEVICE, INTX, 0, &two),
            22,
        ),
        ("another index", ForwardIrq::new(DEVICE, MSIX, 0, &GSI), 22),
        ("another line", ForwardIrq::new(DEVICE, INTX, 0, &[Gsi(12)]), 22),
        ("another device", ForwardIrq::new(DEVICE + 1, INTX, 0, &GSI), 9),
        ("no device", ForwardIrq::new(-1, INTX, 0, &GSI), 9),
    ] {
        for outcome in [world.registry.forward(&request), world.registry.unforward(&request)] {
            let error = outcome.unwrap_err();
            assert_eq!(error.errno(), Some(errno), "{what}: {error}");
        }
    }
    assert!(world.journal.take().is_empty());
    assert_eq!(world.path(), Some(Path::Relay));
    world.registry.forward(&good).unwrap();
}

#[test]
fn of_several_interrupts_all_are_forwarded_or_none() {
    let registry = Registry::new(Policy::Explicit);
    let mut producers = Vec::new();
    let mut registrations = Vec::new();
    for sub in 0..3 {
        let id = EventfdId(100 + u64::from(sub));
        let producer = Arc::new(RecordingProducer::new(format!("vector {sub}")));
        producer.set_info(|info| info.irq = irq(MSIX, sub));
        registrations.push(registry.add_producer(id, producer.clone()).unwrap());
        registrations.push(
            registry
                .add_consumer(id, Arc::new(RecordingConsumer::new(24 + sub)))
                .unwrap(),
        );
        producers.push(producer);
    }
    let paths = || [0, 1, 2].map(|sub| registry.connection(EventfdId(100 + sub)).unwrap().path().unwrap());
    let gsis = [Gsi(24), Gsi(25), Gsi(26)];
    let all = ForwardIrq::new(DEVICE, MSIX, 0, &gsis);
    // The last one is masked, found before anything is done.
    producers[2].set_now(true, false);
    assert_eq!(registry.forward(&all).unwrap_err().errno(), Some(11));
    assert_eq!(paths(), [Path::Relay; 3]);
    assert!(registry.explain().iter().all(|pair| pair.changes == 0));
    producers[2].set_now(false, false);
    // The last one fails when the first two are forwarded.
    producers[2].refuse(0, 1);
    let error = registry.forward(&all).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.errno(), Some(5));
    assert_eq!(paths(), [Path::Relay; 3]);
    // It has nothing better than a relay.
    producers[2].set_info(|info| info.interrupt.unmask_fd = false);
    let error = registry.forward(&all).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("kernel loop: the device takes no unmask eventfd"),
        "{error}"
    );
    assert_eq!((error.errno(), paths()), (Some(95), [Path::Relay; 3]));
    producers[2].set_info(|info| info.interrupt.unmask_fd = true);
    let range = ForwardIrq::new(DEVICE, MSIX, 1, &gsis[1..]);
    registry.unforward(&all).unwrap();
    registry.forward(&range).unwrap();
    assert_eq!(paths(), [Path::Relay, Path::KernelLoop, Path::KernelLoop]);
}
