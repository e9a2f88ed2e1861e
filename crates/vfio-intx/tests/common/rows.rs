// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of the conformance list, part E, that are about the state machine: a device, its INTx and a guest together.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use interrupt_core::forward::{EventfdId, Path, Registration, Registry};
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::irq_set::{IrqSet, MSI};
use vfio_intx::{Intx, Reason, State};

use super::guest::Guest;
use super::guest::LineId::{A, B};
use super::world::World;
use super::{PATIENCE, Rig, new_eventfd, take_within};

/// How long a row may take where all is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// Adds every row with one device to a suite; row 96 goes `count` times round on each path.
pub fn all<R: Rig + 'static, G: Guest + 'static>(
    suite: Suite,
    name: &str,
    needs: &[Need],
    new: fn() -> (R, G),
    reset: fn(&R),
    count: u32,
) -> Suite {
    type Row = Box<dyn FnOnce() + Send>;
    let rows: [(&str, Row); 15] = [
        (
            "row_88_trigger_before_unmask",
            Box::new(move || row_88_trigger_before_unmask(new)),
        ),
        ("row_96_full_loop", Box::new(move || row_96_full_loop(new, count))),
        (
            "without_an_eoi_nothing_more_comes",
            Box::new(move || without_an_eoi_nothing_more_comes(new)),
        ),
        (
            "row_98_disable_at_any_moment",
            Box::new(move || row_98_disable_at_any_moment(new)),
        ),
        (
            "row_99_route_change_at_any_moment",
            Box::new(move || row_99_route_change_at_any_moment(new)),
        ),
        (
            "row_99_path_change_at_any_moment",
            Box::new(move || row_99_path_change_at_any_moment(new)),
        ),
        (
            "row_104_no_access_after_eoi",
            Box::new(move || row_104_no_access_after_eoi(new)),
        ),
        ("row_105_msi_and_back", Box::new(move || row_105_msi_and_back(new))),
        ("reset_at_any_moment", Box::new(move || reset_at_any_moment(new, reset))),
        (
            "a_reset_keeps_interrupt_disable",
            Box::new(move || a_reset_keeps_interrupt_disable(new, reset)),
        ),
        ("held_at_any_moment", Box::new(move || held_at_any_moment(new))),
        (
            "asserted_before_the_pin_is_enabled",
            Box::new(move || asserted_before_the_pin_is_enabled(new)),
        ),
        (
            "save_and_restore_at_any_moment",
            Box::new(move || save_and_restore_at_any_moment(new)),
        ),
        (
            "row_99_registry_changes_path_at_any_moment",
            Box::new(move || registry_changes_path_at_any_moment(new)),
        ),
        (
            "row_127_either_side_leaves_at_any_moment",
            Box::new(move || either_side_leaves_at_any_moment(new)),
        ),
    ];
    rows.into_iter().fold(suite, |suite, (row, body)| {
        suite.test_within(LIMIT, format!("{name}::{row}"), needs, body)
    })
}

/// The states that the guest's lines lead to.
fn states<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) -> &'static [State] {
    new().1.states()
}

/// A world that is enabled on line A, in `state`.
#[track_caller]
fn start<R: Rig, G: Guest>(new: impl Fn() -> (R, G), state: State) -> World<R, G> {
    let (rig, guest) = new();
    World::in_state(rig, guest, state)
}

/// 88: whatever the path, the trigger is set before the unmask eventfd, and the interrupt works.
pub fn row_88_trigger_before_unmask<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        let mut world = start(&new, state);
        world.works(3);
        assert_eq!(world.intx.status().fallbacks, 0, "{path}: {}", world.intx.status());
    }
}

/// 96: the loop, many times over, with a device that drops its line only in the guest's handler.
pub fn row_96_full_loop<R: Rig, G: Guest>(new: impl Fn() -> (R, G), count: u32) {
    for &state in states(&new) {
        let path = state;
        let mut world = start(&new, state);
        world.works(count);
        assert_eq!((world.served, world.spurious), (count, 0), "{path}");
        assert_eq!(world.intx.status().state, state);
    }
}

/// The negative control of every EOI here: a handler that acknowledges its device and does not end the interrupt gets
/// no other.
pub fn without_an_eoi_nothing_more_comes<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let mut world = start(&new, state);
        world.rig.raise(1);
        world.until("it is taken", |world| world.guest.accept(A));
        world.serve();
        world.rig.raise(1);
        world.settle();
        assert!(
            !world.guest.accept(A),
            "{state}: an interrupt without the EOI of the one before"
        );
        assert_eq!(world.rig.status(), 1);
        world.guest.eoi(A);
        world.until("with its EOI it goes on", |world| world.guest_step());
        assert_eq!((world.served, world.spurious), (2, 0), "{state}");
    }
}

/// What is going on at the moment when something is torn down or changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moment {
    Idle,
    /// The device asserts and nobody has carried it anywhere yet.
    Signalled,
    /// The line is high, the guest has not looked yet.
    Pending,
    /// The guest's handler runs and the device still asserts.
    InService,
    /// The guest's handler runs and has acknowledged the device.
    Acknowledged,
    /// The guest has ended the interrupt, and nobody has told the device yet.
    EoiInFlight,
    /// The same, and the device asserts again.
    EoiInFlightReasserted,
}

pub const MOMENTS: [Moment; 7] = [
    Moment::Idle,
    Moment::Signalled,
    Moment::Pending,
    Moment::InService,
    Moment::Acknowledged,
    Moment::EoiInFlight,
    Moment::EoiInFlightReasserted,
];

impl Moment {
    /// Brings about this moment on line `a`.
    #[track_caller]
    pub fn bring_about<R: Rig, G: Guest>(self, world: &mut World<R, G>) {
        if self == Moment::Idle {
            return;
        }
        world.rig.raise(1);
        if self == Moment::Signalled {
            return;
        }
        world.until("an interrupt waits", |world| world.guest.waits(A));
        if self == Moment::Pending {
            return;
        }
        assert!(world.guest.accept(A));
        if self == Moment::InService {
            return;
        }
        world.serve();
        if self == Moment::Acknowledged {
            return;
        }
        world.guest.eoi(A);
        if self == Moment::EoiInFlightReasserted {
            world.rig.raise(1);
        }
    }

    /// How many interrupts may have been sent to a processor that keeps them, and are taken after the line has fallen.
    fn may_have_been_sent<G: Guest>(self, guest: &G) -> u32 {
        let sent = guest.keeps_what_was_sent() && (!self.in_service() || guest.sends_during_service());
        u32::from(sent && self.owed() > 0)
    }

    /// The line has been lowered for good: takes what has been sent before, with a handler that does not look at the
    /// device.
    fn take_what_was_sent<R: Rig, G: Guest>(self, world: &mut World<R, G>) {
        world.settle();
        if self.may_have_been_sent(&world.guest) > 0 && !self.in_service() && world.guest.accept(A) {
            world.guest.eoi(A);
        }
    }

    /// Whether the guest is inside its handler.
    pub fn in_service(self) -> bool {
        matches!(self, Moment::InService | Moment::Acknowledged)
    }

    /// How many handler runs the device still has to get.
    pub fn owed(self) -> u32 {
        match self {
            Moment::Signalled | Moment::Pending | Moment::InService | Moment::EoiInFlightReasserted => 1,
            Moment::Idle | Moment::Acknowledged | Moment::EoiInFlight => 0,
        }
    }
}

/// 98: after a disable at any moment the line is low and nothing comes any more; enabled again, it works, and what the
/// device still asserts is delivered.
pub fn row_98_disable_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        for moment in MOMENTS {
            let mut world = start(&new, state);
            moment.bring_about(&mut world);
            assert_eq!(world.intx.disable().unwrap(), State::Disabled);
            assert!(!world.guest.is_high(A), "{path}, {moment:?}: the line is low at once");
            moment.take_what_was_sent(&mut world);
            if moment.in_service() {
                world.guest.eoi(A);
            }
            world.rig.raise(2);
            world.rests();
            assert!(matches!(world.intx.status().reason, Reason::NotEnabled));
            let served = world.served;
            assert_eq!(world.intx.enable().unwrap(), state);
            world.until("what is asserted is delivered", |world| {
                world.guest_step();
                world.rig.status() == 0
            });
            assert_eq!((world.served, world.spurious), (served + 1, 0), "{path}, {moment:?}");
            world.works(2);
        }
    }
}

/// 99: a route change at any moment, between any two paths: the old line goes low, and what the device asserts comes up
/// on the new one, once.
pub fn row_99_route_change_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &from in states(&new) {
        for &to in states(&new) {
            for moment in MOMENTS {
                let mut world = start(&new, from);
                moment.bring_about(&mut world);
                let what = format!("{from} to {to}, {moment:?}");
                let served = world.served;
                assert_eq!(world.route(Some(world.guest.line(B, to))).unwrap(), to);
                assert!(!world.guest.is_high(A), "{what}: the old line is low at once");
                if moment.owed() > 0 {
                    world.until(&what, |world| world.guest.waits(B));
                }
                if moment.in_service() {
                    world.guest.eoi(A);
                }
                world.settle();
                assert!(!world.guest.is_high(A), "{what}: the old line stays low");
                while world.guest_step() {
                    world.settle();
                }
                assert_eq!(world.served, served + moment.owed(), "{what}");
                assert!(world.spurious <= moment.may_have_been_sent(&world.guest), "{what}");
                world.works(2);
                assert_eq!(world.intx.status().line.map(|(gsi, _)| gsi.0), Some(11));
            }
        }
    }
}

/// 99, on one line: the path changes under the interrupt, which is delivered once.
pub fn row_99_path_change_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &from in states(&new) {
        for &to in states(&new) {
            for moment in MOMENTS {
                let mut world = start(&new, from);
                moment.bring_about(&mut world);
                let what = format!("{from} to {to}, {moment:?}");
                let served = world.served;
                assert_eq!(world.route(Some(world.guest.line(A, to))).unwrap(), to);
                if moment == Moment::InService {
                    // It asserts still, and its handler has it: acknowledged, it is not to come again.
                    world.serve();
                }
                if moment.in_service() {
                    world.settle();
                    world.guest.eoi(A);
                }
                world.serve_all();
                assert_eq!(world.served, served + moment.owed(), "{what}");
                assert!(world.spurious <= moment.may_have_been_sent(&world.guest), "{what}");
                world.works(2);
            }
        }
    }
}

const ID: EventfdId = EventfdId(1);

/// A world whose device and line A are in a registry, enabled, on `path`. The line can do what leads to `best`.
#[track_caller]
fn registered<R: Rig, G: Guest>(
    new: impl Fn() -> (R, G),
    best: State,
    path: Path,
) -> (World<R, G>, Registry, Registration, Registration) {
    let (rig, guest) = new();
    let world = World::new(rig, guest);
    let registry = Registry::default();
    let device = registry.add_producer(ID, world.intx.clone()).unwrap();
    let line = registry.add_consumer(ID, Arc::new(world.guest.line(A, best))).unwrap();
    assert_eq!(
        registry.connection(ID).unwrap().restrict(Some(path)).unwrap(),
        Some(path)
    );
    assert_eq!(world.intx.enable().unwrap(), State::Carried(path));
    (world, registry, device, line)
}

/// 99, by a registry: as above, and exact. What is under way on the line stays under way; the guest's handler runs once
/// for it, and never for nothing.
pub fn registry_changes_path_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &best in states(&new) {
        let direct = match best {
            State::Carried(Path::KernelLoop) => Path::KernelLoop,
            State::Carried(Path::SplitKick) => Path::SplitKick,
            _ => continue,
        };
        for from in [direct, Path::Relay] {
            // Once, and there and back, and there again.
            for changes in 1..4 {
                for moment in MOMENTS {
                    let (mut world, registry, _device, _line) = registered(&new, best, from);
                    moment.bring_about(&mut world);
                    let mut to = from;
                    for _ in 0..changes {
                        to = if to == Path::Relay { direct } else { Path::Relay };
                        assert_eq!(registry.connection(ID).unwrap().restrict(Some(to)).unwrap(), Some(to));
                    }
                    let what = format!("{best}: {changes} changes from {from}, {moment:?}: {:?}", registry);
                    let served = world.served;
                    if moment == Moment::InService {
                        world.serve();
                    }
                    if moment.in_service() {
                        world.settle();
                        world.guest.eoi(A);
                    }
                    world.serve_all();
                    // In service it has been served by now.
                    assert_eq!(world.served, served + moment.owed(), "{what}");
                    assert_eq!(world.spurious, 0, "{what}");
                    world.works(2);
                    assert_eq!(world.intx.status().state, State::Carried(to), "{what}");
                    assert_eq!(world.intx.status().fallbacks, 0, "{what}");
                }
            }
        }
    }
}

/// 127: either side leaves at any moment, and comes back: the line is low meanwhile, and what the device asserts is
/// delivered.
pub fn either_side_leaves_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &best in states(&new) {
        let path = match best {
            State::Carried(Path::KernelLoop) => Path::KernelLoop,
            State::Carried(Path::SplitKick) => Path::SplitKick,
            _ => Path::Relay,
        };
        for leaving in [true, false] {
            for moment in MOMENTS {
                let (mut world, registry, device, line) = registered(&new, best, path);
                moment.bring_about(&mut world);
                let (goes, mut stays) = if leaving { (device, line) } else { (line, device) };
                drop(goes);
                let what = format!("{best}, {moment:?}, the device leaves: {leaving}");
                assert_eq!(world.intx.status().state, State::Disabled, "{what}");
                assert!(!world.guest.is_high(A), "{what}: the line is low at once");
                moment.take_what_was_sent(&mut world);
                if moment.in_service() {
                    world.guest.eoi(A);
                }
                world.rig.raise(2);
                world.rests();
                let served = world.served;
                let _back = if leaving {
                    registry.add_producer(ID, world.intx.clone()).unwrap()
                } else {
                    let line = Arc::new(world.guest.line(A, best));
                    registry.add_consumer(ID, line).unwrap()
                };
                world.until(&what, |world| {
                    world.guest_step();
                    world.rig.status() == 0
                });
                assert_eq!((world.served, world.spurious), (served + 1, 0), "{what}");
                world.works(2);
                // And now both, in the middle of an interrupt.
                moment.bring_about(&mut world);
                drop(_back);
                drop(std::mem::replace(
                    &mut stays,
                    registry.add_producer(EventfdId(2), world.intx.clone()).unwrap(),
                ));
                assert!(!world.guest.is_high(A), "{what}: low when both have left");
            }
        }
    }
}

/// 104: a device that is not touched after the EOI is unmasked by the EOI alone.
pub fn row_104_no_access_after_eoi<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        let mut world = start(&new, state);
        for bit in 0..8 {
            world.rig.raise(1 << bit);
            world.until("the line rises", |world| world.guest.accept(A));
            world.serve();
            world.settle();
            world.guest.eoi(A);
            // From here on nobody looks at the device until it raises again.
            world.until("the line falls", |world| !world.guest.is_high(A));
            world.settle();
        }
        assert_eq!((world.served, world.spurious), (8, 0), "{path}");
    }
}

/// 105: MSI is enabled at any moment: INTx is torn down and its line low; MSI works; INTx works again afterwards.
pub fn row_105_msi_and_back<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    let msi = |rig: &R, request: IrqSet<'_>| rig.set_irqs(&IrqSet { index: MSI, ..request });
    for &state in states(&new) {
        let path = state;
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = start(&new, state);
            moment.bring_about(&mut world);
            assert_eq!(world.intx.enter_msi().unwrap(), State::Disabled);
            assert!(!world.guest.is_high(A), "{what}");
            moment.take_what_was_sent(&mut world);
            if moment.in_service() {
                world.guest.eoi(A);
            }
            let message = new_eventfd();
            msi(&world.rig, IrqSet::trigger(Some(message.as_fd()))).unwrap();
            for _ in 0..3 {
                world.rig.raise(2);
                assert_eq!(take_within(message.as_fd(), PATIENCE), 1, "{what}");
            }
            world.rests();
            // Too early: the device says so, and a later enable is right.
            let early = world.intx.leave_msi().unwrap_err();
            assert_eq!(early.errno(), Some(22), "{early}");
            assert_eq!(world.intx.status().state, State::Disabled);
            msi(&world.rig, IrqSet::disable()).unwrap();
            world.rig.acknowledge(u32::MAX);
            assert_eq!(world.intx.leave_msi().unwrap(), state);
            world.works(3);
        }
    }
}

/// A reset at any moment and in any state: the line is low, nothing of before comes after, and INTx works.
pub fn reset_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G), reset: impl Fn(&R)) {
    for &state in states(&new) {
        let path = state;
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = start(&new, state);
            moment.bring_about(&mut world);
            let low = world
                .intx
                .reset(|| {
                    let low = !world.guest.is_high(A);
                    reset(&world.rig);
                    low
                })
                .unwrap();
            assert!(low, "{what}: the line is low before the device is reset");
            moment.take_what_was_sent(&mut world);
            if moment.in_service() {
                world.guest.eoi(A);
            }
            world.rests();
            assert_eq!(world.intx.status().state, state, "{what}");
            world.works(2);
        }
    }
}

/// VFIO_DEVICE_RESET saves and restores the command register: Interrupt Disable is after a reset what it was before.
pub fn a_reset_keeps_interrupt_disable<R: Rig, G: Guest>(new: impl Fn() -> (R, G), reset: impl Fn(&R)) {
    for &state in states(&new) {
        let mut world = start(&new, state);
        world.rig.set_disintx(true);
        world.intx.set_disintx(true).unwrap();
        world.intx.reset(|| reset(&world.rig)).unwrap();
        world.rig.raise(1);
        world.rests();
        // What the status says is what the device does.
        assert!(
            matches!(world.intx.status().reason, Reason::DisIntx),
            "{}",
            world.intx.status()
        );
        world.rig.set_disintx(false);
        assert_eq!(world.intx.set_disintx(false).unwrap(), state);
        world.until("it is served", |world| world.guest_step());
        world.works(2);
    }
}

/// Masked on the guest's behalf or by Interrupt Disable at any moment: the line is low and stays low, whatever else the
/// line's sharers end; afterwards what is asserted is delivered.
pub fn held_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        for moment in MOMENTS {
            for by_disintx in [false, true] {
                let what = format!("{path}, {moment:?}, DisINTx {by_disintx}");
                let mut world = start(&new, state);
                moment.bring_about(&mut world);
                let held = if by_disintx {
                    world.rig.set_disintx(true);
                    world.intx.set_disintx(true)
                } else {
                    world.intx.mask()
                };
                assert_eq!(held.unwrap(), State::Masked, "{what}");
                assert!(!world.guest.is_high(A), "{what}");
                moment.take_what_was_sent(&mut world);
                if moment.in_service() {
                    world.guest.eoi(A);
                }
                world.rig.raise(4);
                // A sharer's interrupt is ended: being told is no reason to unmask.
                world.guest.eoi(A);
                world.rests();
                let served = world.served;
                let released = if by_disintx {
                    world.rig.set_disintx(false);
                    world.intx.set_disintx(false)
                } else {
                    world.intx.unmask()
                };
                assert_eq!(released.unwrap(), state, "{what}");
                world.until(&what, |world| {
                    world.guest_step();
                    world.rig.status() == 0
                });
                assert_eq!((world.served, world.spurious), (served + 1, 0), "{what}");
                world.works(2);
            }
        }
    }
}

/// Asserted before the guest has enabled its pin: delivered once it has, and not wedged.
pub fn asserted_before_the_pin_is_enabled<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        let mut world = start(&new, state);
        world.guest.set_masked(A, true);
        world.rig.raise(1);
        world.settle();
        assert!(!world.guest_step());
        world.guest.set_masked(A, false);
        world.until("it is served", |world| world.guest_step());
        assert_eq!((world.served, world.spurious), (1, 0), "{path}");
        world.works(2);
    }
}

/// A second device on the line: each is told of the other's EOIs, and none is lost.
pub fn two_devices_on_one_line<R: Rig, G: Guest, S: Rig>(new: impl Fn() -> (R, G), second: impl Fn() -> S) {
    for &state in states(&new) {
        for &other_state in states(&new) {
            let what = format!("{state} and {other_state}");
            let mut world = start(&new, state);
            let other = second();
            let (intx, mut relay) = Intx::new(other.interrupt()).unwrap();
            let (intx, connection) = super::connection(intx);
            connection
                .set_consumer(super::to(world.guest.sharer(A, other_state)))
                .unwrap();
            assert_eq!(intx.enable().unwrap(), other_state);
            let mut runs = 0;
            let mut turn = |world: &mut World<R, G>| {
                relay.wait(Some(Duration::ZERO)).unwrap();
                other.pump();
                if world.guest.accept(A) {
                    runs += 1;
                    // The handlers of a shared line each look at their own device.
                    world.rig.acknowledge(u32::MAX);
                    other.acknowledge(u32::MAX);
                    world.guest.eoi(A);
                }
                world.rig.status() == 0 && other.status() == 0
            };
            for round in 0..30 {
                // Both at once, one after the other, or one alone.
                if round % 3 != 1 {
                    world.rig.raise(1);
                }
                if round % 6 == 0 {
                    world.until("an interrupt waits", |world| world.guest.waits(A));
                }
                if round % 3 != 2 {
                    other.raise(1);
                }
                world.until(&what, &mut turn);
            }
            // A signal that was under way when its device was acknowledged ends in a handler run for nothing.
            for _ in 0..8 {
                world.settle();
                turn(&mut world);
            }
            // Neither is left masked: each is heard alone.
            world.rig.raise(2);
            world.until(&what, &mut turn);
            other.raise(2);
            world.until(&what, &mut turn);
            for _ in 0..8 {
                world.settle();
                turn(&mut world);
            }
            assert!(runs >= 22, "{what}: {runs} handler runs");
            drop(intx);
            world.works(2);
        }
    }
}

/// Saved at any moment and restored on a new state machine over the same device: nothing is lost.
pub fn save_and_restore_at_any_moment<R: Rig, G: Guest>(new: impl Fn() -> (R, G)) {
    for &state in states(&new) {
        let path = state;
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = start(&new, state);
            moment.bring_about(&mut world);
            let saved = world.intx.save();
            // The machine is gone and another one takes its place, with the guest as it was.
            let World {
                connection,
                rig,
                intx,
                relay,
                guest,
                ..
            } = world;
            drop((connection, intx, relay));
            let mut world = World::new(rig, guest);
            world.route(Some(world.guest.line(A, state))).unwrap();
            assert_eq!(world.intx.restore(&saved).unwrap(), state, "{what}");
            if moment == Moment::InService {
                // Its handler was about to look at the device.
                world.serve();
            }
            if moment.in_service() {
                world.settle();
                world.guest.eoi(A);
            }
            world.serve_all();
            assert_eq!(world.served, moment.owed(), "{what}");
            assert!(world.spurious <= moment.may_have_been_sent(&world.guest), "{what}");
            world.works(2);
        }
    }
}
