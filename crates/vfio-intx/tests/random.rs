// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random sequences of everything that can be asked for and everything that can happen, steps that fail included. After
//! each sequence, with the guest willing to look: never masked with nobody to unmask, and no assertion lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::guest::TestLine;
use common::model_rig::{level, pulse};
use common::world::World;
use interrupt_core::forward::{GuestLine, Path};
use proptest::prelude::*;
use std::os::fd::AsFd;
use std::time::Duration;
use vfio_intx::irq_set::{IrqSet, MSI};
use vfio_intx::{ModelIntx, Reason, State};

#[derive(Clone, Copy, Debug)]
enum Op {
    Enable,
    Disable,
    /// Line (0 or 1) and kind (0 to 3), or nowhere.
    Route(Option<(usize, usize)>),
    Mask(bool),
    /// The connection is to take this path, or the best.
    Path(Option<Path>),
    /// The guest writes the bit; the state machine hears of it before or after the device does.
    DisIntx {
        set: bool,
        device_first: bool,
    },
    Reset,
    Msi(bool),
    Raise(u32),
    /// The guest takes the interrupt of a line, serves it, ends it.
    Accept(usize),
    Serve(usize),
    Eoi(usize),
    /// A sharer's interrupt is ended on this line.
    ForeignEoi(usize),
    MaskPin(usize, bool),
    RunRelay,
    RunKernel,
    SnapshotAndRestore,
    /// The n-th request from now, and some after it, fail.
    Refuse(usize, usize),
}

fn ops() -> impl Strategy<Value = Op> {
    let line = 0..2usize;
    prop_oneof![
        2 => Just(Op::Enable),
        1 => Just(Op::Disable),
        4 => prop::option::weighted(0.8, (0..2usize, 0..4usize)).prop_map(Op::Route),
        1 => any::<bool>().prop_map(Op::Mask),
        2 => prop::option::of(prop::sample::select(vec![Path::Relay, Path::KernelLoop])).prop_map(Op::Path),
        1 => any::<(bool, bool)>().prop_map(|(set, device_first)| Op::DisIntx { set, device_first }),
        1 => Just(Op::Reset),
        1 => any::<bool>().prop_map(Op::Msi),
        6 => (0..4u32).prop_map(|bit| Op::Raise(1 << bit)),
        6 => line.clone().prop_map(Op::Accept),
        6 => line.clone().prop_map(Op::Serve),
        6 => line.clone().prop_map(Op::Eoi),
        1 => line.clone().prop_map(Op::ForeignEoi),
        1 => (line, any::<bool>()).prop_map(|(line, masked)| Op::MaskPin(line, masked)),
        8 => Just(Op::RunRelay),
        8 => Just(Op::RunKernel),
        1 => Just(Op::SnapshotAndRestore),
        1 => (0..6usize, 1..4usize).prop_map(|(skip, times)| Op::Refuse(skip, times)),
    ]
}

/// A world, and what its guest is doing.
struct Machine {
    world: World<Arc<ModelIntx>>,
    in_service: [bool; 2],
    /// INTx and MSI were asked for at a time when VFIO has the other.
    msi_met_intx: bool,
    message: std::os::fd::OwnedFd,
}

impl Machine {
    fn new(device: Arc<ModelIntx>) -> Self {
        Self {
            world: World::soft(device),
            in_service: [false; 2],
            msi_met_intx: false,
            message: common::new_eventfd(),
        }
    }

    fn line(&self, line: usize) -> &TestLine {
        [&self.world.guest.a, &self.world.guest.b][line]
    }

    fn guest_line(&self, line: usize, kind: usize) -> GuestLine {
        let line = self.line(line);
        match kind {
            0 => line.relay(),
            1 => line.kernel(),
            2 => line.split(),
            _ => line.without_trigger(),
        }
    }

    fn apply(&mut self, op: Op) {
        let world = &mut self.world;
        // An operation may fail when a step is refused, or when it is asked for at the wrong time; what holds
        // afterwards is checked at the end.
        match op {
            Op::Enable => drop(world.intx.enable()),
            Op::Disable => drop(world.intx.disable()),
            Op::Route(to) => {
                let line = to.map(|(line, kind)| self.guest_line(line, kind));
                drop(self.world.route(line));
            }
            Op::Path(only) => drop(world.connection.restrict(only)),
            Op::Mask(true) => drop(world.intx.mask()),
            Op::Mask(false) => drop(world.intx.unmask()),
            Op::DisIntx { set, device_first } => {
                if device_first {
                    world.rig.set_disintx(set);
                }
                drop(world.intx.set_disintx(set));
                world.rig.set_disintx(set);
            }
            Op::Reset => drop(world.intx.reset(|| world.rig.reset())),
            Op::Msi(true) => {
                drop(world.intx.enter_msi());
                let request = IrqSet::trigger(Some(self.message.as_fd()));
                self.msi_met_intx |= world.rig.set_irqs(&IrqSet { index: MSI, ..request }).is_err();
            }
            Op::Msi(false) => {
                let request = IrqSet::disable();
                self.msi_met_intx |= world.rig.set_irqs(&IrqSet { index: MSI, ..request }).is_err();
                drop(world.intx.leave_msi());
            }
            Op::Raise(bits) => world.rig.raise(bits),
            Op::Accept(line) => {
                if self.line(line).accept() {
                    self.in_service[line] = true;
                }
            }
            Op::Serve(line) => {
                if self.in_service[line] {
                    world.rig.acknowledge(u32::MAX);
                }
            }
            Op::Eoi(line) => {
                if std::mem::take(&mut self.in_service[line]) {
                    self.line(line).eoi();
                }
            }
            Op::ForeignEoi(line) => {
                // It ends the level of every sharer, and not this device's interrupt, if that is in service.
                self.line(line).line.eoi().unwrap();
            }
            Op::MaskPin(line, masked) => self.line(line).set_masked(masked),
            Op::RunRelay => {
                if let Some(relay) = &mut world.relay {
                    drop(relay.wait(Some(Duration::ZERO)));
                }
            }
            Op::RunKernel => {
                world.guest.a.irqfd.poll();
                world.guest.b.irqfd.poll();
                world.rig.poll_unmask();
            }
            Op::SnapshotAndRestore => {
                let saved = world.intx.save();
                drop(world.intx.disable());
                drop(world.intx.restore(&saved));
            }
            Op::Refuse(skip, times) => world.rig.refuse(skip, times, 5),
        }
    }

    /// Looks at what must always hold, whatever is going on.
    fn check_always(&self) {
        let world = &self.world;
        let status = world.intx.status();
        match status.state {
            // A device that refused even to be disabled may say what it likes.
            State::Disabled if world.rig.is_enabled() => assert!(status.last_error.is_some(), "{status}"),
            State::Disabled | State::Masked => {
                assert!(
                    !world.guest.a.is_high() && !world.guest.b.is_high(),
                    "{status}: a line is high"
                );
            }
            State::Carried(Path::Relay) => assert!(
                !world.rig.has_unmask_eventfd() || status.last_error.is_some(),
                "{status}"
            ),
            State::Carried(Path::KernelLoop) | State::Carried(Path::SplitKick) | State::Carried(Path::HostForward) => {
                assert!(world.rig.has_unmask_eventfd(), "{status}")
            }
        }
    }

    /// The guest ends what it has begun and looks at everything until nothing more comes. Nobody mends anything: INTx
    /// is asked only to end a mask that it was asked for.
    fn check_at_the_end(mut self) {
        self.world.rig.refuse(0, 0, 0);
        for line in 0..2 {
            self.apply(Op::Eoi(line));
            self.apply(Op::MaskPin(line, false));
        }
        let saved = self.world.intx.save();
        if saved.disintx {
            self.apply(Op::DisIntx {
                set: false,
                device_first: true,
            });
        }
        if saved.masked {
            self.apply(Op::Mask(false));
        }
        let world = &mut self.world;
        for _ in 0..8 {
            world.settle();
            world.guest_step();
        }
        let status = world.intx.status();
        let what = format!("{status}: {:?}, {:?}", world.rig, world.connection);
        match (status.state, status.reason) {
            (State::Carried(_), _) => {
                assert_eq!(world.rig.status(), 0, "lost: {what}");
                assert!(!world.rig.is_masked(), "masked: {what}");
                world.works(2);
            }
            (State::Masked, _) => panic!("nobody masks it: {what}"),
            (State::Disabled, Reason::NotEnabled) => assert!(!saved.enabled, "{what}"),
            (State::Disabled, Reason::Msi) => assert!(saved.msi, "{what}"),
            // The connection says why there is no line, or INTx what has failed.
            (State::Disabled, Reason::NoLine) => assert_eq!(world.connection.path(), None, "{what}"),
            (State::Disabled, Reason::Failed(_)) => assert!(world.rig.refused() > 0 || self.msi_met_intx, "{what}"),
            (State::Disabled, _) => panic!("no reason: {what}"),
        }
        assert!(!world.any_line_is_high(), "{what}");
    }
}

/// More with PROPTEST_CASES. Failures are shrunk and printed; keeping them in a file is for whoever adds the regression
/// test.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(500),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_level_is_never_lost_nor_left_masked(ops in prop::collection::vec(ops(), 1..60)) {
        let mut machine = Machine::new(level());
        for op in ops {
            machine.apply(op);
            machine.check_always();
        }
        machine.check_at_the_end();
    }

    /// The state machine alone: enabled on a path from the start and never asked again, so that a loss cannot be mended
    /// by the final check's own operations.
    #[test]
    fn a_path_that_nobody_touches_recovers_by_itself(
        kind in 0..4usize,
        ops in prop::collection::vec(ops(), 1..60),
    ) {
        let mut machine = Machine::new(level());
        let line = machine.guest_line(0, kind);
        machine.world.route(Some(line)).unwrap();
        machine.world.intx.enable().unwrap();
        for op in ops {
            match op {
                // What the guest, the event loop and the kernel do, and changes that leave it enabled and routed.
                Op::Raise(_) | Op::Accept(_) | Op::Serve(_) | Op::Eoi(_) | Op::ForeignEoi(_) | Op::MaskPin(..)
                | Op::RunRelay | Op::RunKernel | Op::Route(Some(_)) | Op::Path(_) | Op::Reset => machine.apply(op),
                Op::Mask(_) => {
                    machine.apply(Op::Mask(true));
                    machine.apply(Op::Mask(false));
                }
                _ => {}
            }
            machine.check_always();
        }
        for line in 0..2 {
            machine.apply(Op::Eoi(line));
            machine.apply(Op::MaskPin(line, false));
        }
        let world = &mut machine.world;
        for _ in 0..8 {
            world.settle();
            world.guest_step();
        }
        prop_assert_eq!(world.rig.status(), 0, "lost: {:?} {:?}", world.intx, world.rig);
        prop_assert!(!world.rig.is_masked(), "masked: {:?} {:?}", world.intx, world.rig);
        prop_assert_eq!(world.intx.status().fallbacks, 0);
        world.works(2);
    }

    /// A pulse that nobody forwards is lost to the guest for ever, because the device does not repeat it.
    #[test]
    fn a_pulse_is_never_lost(ops in prop::collection::vec(ops(), 1..60)) {
        let mut machine = Machine::new(pulse());
        let line = machine.guest_line(0, 0);
        machine.world.route(Some(line)).unwrap();
        machine.world.intx.enable().unwrap();
        for op in ops {
            if let Op::Eoi(line) = op {
                // No handler ends an interrupt without having looked; the device would not say it twice.
                machine.apply(Op::Serve(line));
            }
            match op {
                Op::Raise(_) | Op::Accept(_) | Op::Serve(_) | Op::Eoi(_)
                | Op::RunRelay | Op::Route(Some(_)) => machine.apply(op),
                Op::Mask(_) => {
                    machine.apply(Op::Mask(true));
                    machine.apply(Op::Mask(false));
                }
                _ => {}
            }
        }
        for line in 0..2 {
            machine.apply(Op::Serve(line));
            machine.apply(Op::Eoi(line));
        }
        let world = &mut machine.world;
        for _ in 0..8 {
            world.settle();
            world.guest_step();
        }
        prop_assert_eq!(world.rig.status(), 0, "lost: {:?} {:?}", world.intx, world.rig);
        prop_assert!(!world.guest.a.is_high() && !world.guest.b.is_high());
    }
}
