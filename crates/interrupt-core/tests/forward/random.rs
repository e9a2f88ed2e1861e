// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Anything in any order, with any step failing, against a model that says in a few lines what must hold.

use interrupt_core::Irqchip;
use interrupt_core::forward::Consumer as _;
use interrupt_core::forward::{Limits, Path, Producer, Registration, decide};
use proptest::prelude::*;

use super::{ID, World};

#[derive(Clone, Debug)]
enum Step {
    AddProducer,
    AddConsumer,
    DropProducer,
    DropConsumer,
    /// The line is routed to an irqchip in the kernel, a split one, or none.
    Route(u8),
    Trigger(bool),
    UnmaskEventfd(bool),
    Relay(bool),
    Host(bool),
    Mask(bool),
    Changed,
    Restrict(Option<u8>),
    /// This side's step after so many fails, and so many after it.
    FailProducer(usize, usize),
    FailConsumer(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::AddProducer),
        3 => Just(Step::AddConsumer),
        1 => Just(Step::DropProducer),
        1 => Just(Step::DropConsumer),
        2 => (0..3u8).prop_map(Step::Route),
        1 => any::<bool>().prop_map(Step::Trigger),
        1 => any::<bool>().prop_map(Step::UnmaskEventfd),
        1 => any::<bool>().prop_map(Step::Relay),
        1 => any::<bool>().prop_map(Step::Host),
        1 => any::<bool>().prop_map(Step::Mask),
        3 => Just(Step::Changed),
        2 => proptest::option::of(0..4u8).prop_map(Step::Restrict),
        2 => (0..8usize, 0..8usize).prop_map(|(skip, calls)| Step::FailProducer(skip, calls)),
        2 => (0..8usize, 0..8usize).prop_map(|(skip, calls)| Step::FailConsumer(skip, calls)),
    ]
}

/// A world, and what is registered in it.
struct Run {
    world: World,
    producer: Option<Registration>,
    consumer: Option<Registration>,
    only: Option<Path>,
}

impl Run {
    fn new() -> Self {
        Self {
            world: World::new(),
            producer: None,
            consumer: None,
            only: None,
        }
    }

    fn take(&mut self, step: &Step) {
        let (world, registry) = (&self.world, &self.world.registry);
        match step {
            Step::AddProducer if self.producer.is_some() => {
                let error = registry.add_producer(ID, world.producer.clone()).unwrap_err();
                assert_eq!(error.errno(), Some(16));
            }
            Step::AddProducer => self.producer = registry.add_producer(ID, world.producer.clone()).ok(),
            Step::AddConsumer if self.consumer.is_some() => {
                let error = registry.add_consumer(ID, world.consumer.clone()).unwrap_err();
                assert_eq!(error.errno(), Some(16));
            }
            Step::AddConsumer => self.consumer = registry.add_consumer(ID, world.consumer.clone()).ok(),
            Step::DropProducer => self.producer = None,
            Step::DropConsumer => self.consumer = None,
            Step::Route(end) => world.consumer.set_info(|info| {
                info.irqchip = [Irqchip::Kernel, Irqchip::Split, Irqchip::User][*end as usize];
            }),
            Step::Trigger(there) => world.consumer.set_info(|info| info.trigger = *there),
            Step::UnmaskEventfd(there) => world.producer.set_info(|info| info.interrupt.unmask_fd = *there),
            Step::Relay(there) => world.producer.set_info(|info| info.relay = *there),
            Step::Host(there) => world.consumer.set_info(|info| {
                info.host_forward = there.then_some(()).ok_or_else(|| "no attribute".into());
            }),
            Step::Mask(masked) => world.producer.set_now(*masked, false),
            Step::Changed => drop(registry.connection(ID).map(|connection| connection.changed())),
            Step::Restrict(path) => {
                let path = path.map(|path| Path::ALL[path as usize]);
                let known = self.producer.is_some() || self.consumer.is_some();
                let outcome = registry.connection(ID).and_then(|connection| connection.restrict(path));
                if known {
                    self.only = path;
                }
                assert!(known || outcome.unwrap_err().errno() == Some(2));
            }
            Step::FailProducer(skip, calls) => {
                world.producer.refuse(*skip, *calls);
            }
            Step::FailConsumer(skip, calls) => {
                world.consumer.refuse(*skip, *calls);
            }
        }
        if self.producer.is_none() && self.consumer.is_none() {
            self.only = None;
            assert!(self.world.registry.explain().is_empty());
        }
    }

    /// What holds at any time.
    fn holds(&self) {
        let world = &self.world;
        let path = world.path();
        assert!(!world.producer.is_stopped(), "left masked on {path:?}");
        if self.producer.is_none() || self.consumer.is_none() {
            assert_eq!(path, None);
        }
        // Both sides are where the registry says.
        assert_eq!(world.producer.state().path, path);
        assert_eq!(world.consumer.path(), path);
    }

    /// With nothing failing any more, the best path that there is.
    fn settles(&mut self) {
        self.world.producer.refuse(0, 0);
        self.world.consumer.refuse(0, 0);
        if self.producer.is_none() || self.consumer.is_none() {
            return;
        }
        let outcome = self.world.connection().changed();
        let limits = Limits {
            only: self.only,
            failed: Vec::new(),
        };
        let best = decide(&self.world.producer.info(), &self.world.consumer.info(), &limits);
        assert_eq!(outcome.ok().flatten(), best.path);
        self.holds();
        let explained = self.world.registry.explain().pop().unwrap();
        assert_eq!(explained.why_not.len(), best.why_not.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn never_masked_never_two_ideas_of_the_path_and_the_best_in_the_end(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut run = Run::new();
        for step in &steps {
            run.take(step);
            run.holds();
        }
        run.settles();
    }
}
