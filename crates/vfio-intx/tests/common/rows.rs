// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of the conformance list, part E, that are about the state machine: a device, its INTx and a guest together.

use std::os::fd::AsFd;

use vfio_intx::irq_set::{IrqSet, MSI};
use vfio_intx::{Because, State};

use super::world::{PATHS, World, line_for};
use super::{PATIENCE, Rig, new_eventfd, take_within};

/// 88: whatever the path, the trigger is set before the unmask eventfd, and the interrupt works.
pub fn row_88_trigger_before_unmask<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        let mut world = World::in_state(new(), state);
        world.works(3);
        assert_eq!(world.intx.status().fallbacks, 0, "{path}: {}", world.intx.status());
    }
}

/// 96: the loop, many times over, with a device that drops its line only in the guest's handler.
pub fn row_96_full_loop<R: Rig>(new: impl Fn() -> R, count: u32) {
    for (path, state) in PATHS {
        let mut world = World::in_state(new(), state);
        world.works(count);
        assert_eq!((world.served, world.spurious), (count, 0), "{path}");
        assert_eq!(world.intx.status().state, state);
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
    pub fn bring_about<R: Rig>(self, world: &mut World<R>) {
        if self == Moment::Idle {
            return;
        }
        world.rig.raise(1);
        if self == Moment::Signalled {
            return;
        }
        world.until("the line rises", |world| world.a.is_high());
        if self == Moment::Pending {
            return;
        }
        assert!(world.a.accept());
        if self == Moment::InService {
            return;
        }
        world.serve();
        if self == Moment::Acknowledged {
            return;
        }
        world.a.eoi();
        if self == Moment::EoiInFlightReasserted {
            world.rig.raise(1);
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
pub fn row_98_disable_at_any_moment<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        for moment in MOMENTS {
            let mut world = World::in_state(new(), state);
            moment.bring_about(&mut world);
            assert_eq!(world.intx.disable().unwrap(), State::Disabled);
            assert!(!world.a.is_high(), "{path}, {moment:?}: the line is low at once");
            if moment.in_service() {
                world.a.eoi();
            }
            world.rig.raise(2);
            world.rests();
            assert!(matches!(world.intx.status().because, Because::NotEnabled));
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

/// 99: a route change at any moment, between any two paths: the old line goes low, and what the device asserts comes up on the
/// new one, once.
pub fn row_99_route_change_at_any_moment<R: Rig>(new: impl Fn() -> R) {
    for (_, from) in PATHS {
        for (_, to) in PATHS {
            for moment in MOMENTS {
                let mut world = World::in_state(new(), from);
                moment.bring_about(&mut world);
                let what = format!("{from} to {to}, {moment:?}");
                let served = world.served;
                assert_eq!(world.intx.set_line(Some(line_for(&world.b, to))).unwrap(), to);
                assert!(!world.a.is_high(), "{what}: the old line is low at once");
                if moment.owed() > 0 {
                    world.until(&what, |world| world.b.is_high());
                }
                if moment.in_service() {
                    world.a.eoi();
                }
                world.settle();
                assert!(!world.a.is_high(), "{what}: the old line stays low");
                while world.guest_step() {
                    world.settle();
                }
                assert_eq!((world.served, world.spurious), (served + moment.owed(), 0), "{what}");
                world.works(2);
                assert_eq!(world.intx.status().line.map(|(gsi, _)| gsi.0), Some(11));
            }
        }
    }
}

/// 99, on one line: the path changes under the interrupt, which is delivered once.
pub fn row_99_path_change_at_any_moment<R: Rig>(new: impl Fn() -> R) {
    for (_, from) in PATHS {
        for (_, to) in PATHS {
            for moment in MOMENTS {
                let mut world = World::in_state(new(), from);
                moment.bring_about(&mut world);
                let what = format!("{from} to {to}, {moment:?}");
                let served = world.served;
                assert_eq!(world.intx.set_line(Some(line_for(&world.a, to))).unwrap(), to);
                if moment == Moment::InService {
                    // It asserts still, and its handler has it: acknowledged, it is not to come again.
                    world.serve();
                }
                if moment.in_service() {
                    world.settle();
                    world.a.eoi();
                }
                world.settle();
                while world.guest_step() {
                    world.settle();
                }
                assert_eq!((world.served, world.spurious), (served + moment.owed(), 0), "{what}");
                world.works(2);
            }
        }
    }
}

/// 104: a device that is not touched after the EOI is unmasked by the EOI alone.
pub fn row_104_no_access_after_eoi<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        let mut world = World::in_state(new(), state);
        for bit in 0..8 {
            world.rig.raise(1 << bit);
            world.until("the line rises", |world| world.a.accept());
            world.serve();
            world.settle();
            world.a.eoi();
            // From here on nobody looks at the device until it raises again.
            world.until("the line falls", |world| !world.a.is_high());
            world.settle();
        }
        assert_eq!((world.served, world.spurious), (8, 0), "{path}");
    }
}

/// 105: MSI is enabled at any moment: INTx is torn down and its line low; MSI works; INTx works again afterwards.
pub fn row_105_msi_and_back<R: Rig>(new: impl Fn() -> R) {
    let msi = |rig: &R, request: IrqSet<'_>| rig.set_irqs(&IrqSet { index: MSI, ..request });
    for (path, state) in PATHS {
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = World::in_state(new(), state);
            moment.bring_about(&mut world);
            assert_eq!(world.intx.enter_msi().unwrap(), State::Disabled);
            assert!(!world.a.is_high(), "{what}");
            if moment.in_service() {
                world.a.eoi();
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
pub fn reset_at_any_moment<R: Rig>(new: impl Fn() -> R, reset: impl Fn(&R)) {
    for (path, state) in PATHS {
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = World::in_state(new(), state);
            moment.bring_about(&mut world);
            let low = world
                .intx
                .reset(|| {
                    let low = !world.a.is_high();
                    reset(&world.rig);
                    low
                })
                .unwrap();
            assert!(low, "{what}: the line is low before the device is reset");
            if moment.in_service() {
                world.a.eoi();
            }
            world.rests();
            assert_eq!(world.intx.status().state, state, "{what}");
            world.works(2);
        }
    }
}

/// Masked on the guest's behalf or by Interrupt Disable at any moment: the line is low and stays low, whatever else the line's
/// sharers end; afterwards what is asserted is delivered.
pub fn held_at_any_moment<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        for moment in MOMENTS {
            for by_disintx in [false, true] {
                let what = format!("{path}, {moment:?}, DisINTx {by_disintx}");
                let mut world = World::in_state(new(), state);
                moment.bring_about(&mut world);
                let held = if by_disintx {
                    world.rig.set_disintx(true);
                    world.intx.set_disintx(true)
                } else {
                    world.intx.mask()
                };
                assert_eq!(held.unwrap(), State::Masked, "{what}");
                assert!(!world.a.is_high(), "{what}");
                if moment.in_service() {
                    world.a.eoi();
                }
                world.rig.raise(4);
                // A sharer's interrupt is ended: being told is no reason to unmask.
                world.a.eoi();
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
pub fn asserted_before_the_pin_is_enabled<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        let mut world = World::in_state(new(), state);
        world.a.set_masked(true);
        world.rig.raise(1);
        world.settle();
        assert!(!world.guest_step());
        world.a.set_masked(false);
        world.until(path, |world| world.guest_step());
        assert_eq!((world.served, world.spurious), (1, 0), "{path}");
        world.works(2);
    }
}

/// A second device on the line: each is told of the other's EOIs, and none is lost.
pub fn two_devices_on_one_line<R: Rig, S: Rig>(first: impl Fn() -> R, second: impl Fn() -> S) {
    for (path, state) in PATHS {
        for (other_path, other_state) in PATHS {
            let what = format!("{path} and {other_path}");
            let mut one = World::in_state(first(), state);
            let mut two = World::new(second());
            // Its own source on the first one's line.
            two.a = super::guest::TestLine::beside(&one.a);
            two.intx.set_line(Some(line_for(&two.a, other_state))).unwrap();
            assert_eq!(two.intx.enable().unwrap(), other_state);
            for round in 0..20 {
                let (mut a, mut b) = (round % 3 != 0, round % 3 != 1);
                if a {
                    one.rig.raise(1);
                }
                if b {
                    two.rig.raise(1);
                }
                one.until(&what, |one| {
                    two.pump();
                    if one.a.accept() {
                        // The guest's handlers of a shared line each look at their own device.
                        for (status, served) in [(one.rig.status(), &mut a), (two.rig.status(), &mut b)] {
                            *served &= status == 0;
                        }
                        one.rig.acknowledge(u32::MAX);
                        two.rig.acknowledge(u32::MAX);
                        one.a.eoi();
                    }
                    !a && !b
                });
                one.settle();
                two.settle();
                assert!(!one.a.accept(), "{what}: an interrupt too many");
            }
        }
    }
}

/// Saved at any moment and restored on a new state machine over the same device: nothing is lost.
pub fn save_and_restore_at_any_moment<R: Rig>(new: impl Fn() -> R) {
    for (path, state) in PATHS {
        for moment in MOMENTS {
            let what = format!("{path}, {moment:?}");
            let mut world = World::in_state(new(), state);
            moment.bring_about(&mut world);
            let saved = world.intx.save();
            let World { rig, intx, relay, .. } = world;
            drop((intx, relay));
            let mut world = World::new(rig);
            world.intx.set_line(Some(line_for(&world.a, state))).unwrap();
            assert_eq!(world.intx.restore(&saved).unwrap(), state, "{what}");
            let served = world.served;
            world.settle();
            while world.guest_step() {
                world.settle();
            }
            assert_eq!((world.served, world.spurious), (served + moment.owed(), 0), "{what}");
            world.works(2);
        }
    }
}
