// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bad input and failing steps on the model device: what the caller is told, and that the interrupt works afterwards or
//! is disabled, and is never left masked.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::guest::Guest as _;
use common::guest::LineId;
use common::model_rig::{level, pulse};
use common::new_eventfd;
use common::rows::{MOMENTS, Moment};
use common::world::World;
use interrupt_core::forward::{DeviceInterrupt, GuestLine, InterruptInfo, Path, Producer};
use interrupt_core::testing::{ManualNotifier, RecordingSource};
use interrupt_core::{Delivery, EoiNotifier, Gsi, LevelSource, Listener, SourceKey};
use vfio_intx::irq_set::{IrqInfo, IrqSet, MSI, flags};
use vfio_intx::{Error, Intx, IntxState, ModelIntx, Reason, State};

const STATES: [State; 3] = [
    State::Carried(Path::Relay),
    State::Carried(Path::KernelLoop),
    State::Carried(Path::SplitKick),
];

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

/// Nothing is left masked: INTx is disabled at the device, or unmasked, or has signalled somebody who answers.
#[track_caller]
fn is_not_left_masked(world: &mut World<Arc<ModelIntx>>) {
    world.until("the device is unmasked, or disabled", |world| {
        world.guest_step();
        !world.rig.is_masked()
    });
    let enabled = world.intx.status().state != State::Disabled;
    assert_eq!(world.rig.is_enabled(), enabled, "{:?} {:?}", world.intx, world.rig);
}

/// What the connection says against the paths that it does not take.
fn why_not(world: &World<Arc<ModelIntx>>) -> String {
    world.connection.explain().to_string()
}

#[test]
fn row_87_no_pin_no_eventfd() {
    let all = flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED;
    for (flags, count, errno, words) in [
        (all, 0, ENODEV, "find an INTx pin"),
        (all & !flags::INFO_EVENTFD, 1, ENOTTY, "by eventfd"),
    ] {
        let device = ModelIntx::with_info("0000:00:03.0", IrqInfo { flags, count });
        let error = Intx::new(Arc::new(device)).unwrap_err();
        assert!(matches!(error, Error::NoInterrupt { .. }));
        assert_eq!(error.errno(), Some(errno));
        let text = error.to_string();
        assert!(text.contains("0000:00:03.0") && text.contains(words), "{text}");
    }
    let gone = level();
    gone.vanish();
    assert_eq!(Intx::new(gone).unwrap_err().errno(), Some(ENODEV));
}

#[test]
fn row_87_not_automasked_is_a_pulse_and_nothing_assumes_a_mask() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.kernel())).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::Relay));
    assert!(why_not(&world).contains("not kernel loop: the device pulses"));
    world.works(50);
    world.intx.mask().unwrap();
    world.intx.unmask().unwrap();
    world.works(2);
    let requests = world.rig.recent_requests();
    assert!(
        requests.iter().all(|request| request.contains("trigger")),
        "only triggers are set on a device that can do no more: {requests:?}"
    );
}

#[test]
fn a_pulse_in_service_is_followed_by_another_handler_run() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.relay())).unwrap();
    world.intx.enable().unwrap();
    world.rig.raise(1);
    world.until("the interrupt is taken", |world| world.guest.a.accept());
    world.serve();
    // After the handler's look at the device, and before its EOI.
    world.rig.raise(2);
    world.settle();
    world.guest.a.eoi();
    world.until("the second pulse is served", |world| {
        world.guest_step();
        world.rig.status() == 0
    });
    world.rests();
    assert_eq!((world.served, world.spurious), (2, 0));
}

#[test]
fn a_pulse_is_kept_while_the_wires_change() {
    for moment in ["masked", "rerouted"] {
        let mut world = World::soft(pulse());
        world.route(Some(world.guest.a.relay())).unwrap();
        world.intx.enable().unwrap();
        match moment {
            "masked" => {
                world.intx.mask().unwrap();
                world.rig.raise(1);
                // The event loop meets it now, and may not forward it.
                world.rests();
                world.intx.unmask().unwrap();
            }
            _ => {
                world.rig.raise(1);
                world.until("the line rises", |world| world.guest.a.is_high());
                world.route(Some(world.guest.b.relay())).unwrap();
                assert!(!world.guest.a.is_high());
            }
        }
        world.until(moment, |world| world.guest_step());
        world.settle();
        while world.guest_step() {
            world.settle();
        }
        world.rests();
        // The relay cannot tell whose EOI the first one is: the handler runs once more than needed.
        assert_eq!((world.served, world.spurious), (1, 1), "{moment}");
    }
}

#[test]
fn a_pulse_that_is_pending_survives_a_snapshot() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.relay())).unwrap();
    world.intx.enable().unwrap();
    world.rig.raise(1);
    world.until("the line rises", |world| world.guest.a.is_high());
    let saved = world.intx.save();
    assert!(saved.pulse_pending);
    let World {
        rig,
        intx,
        relay,
        connection,
        ..
    } = world;
    drop((connection, intx, relay));
    let mut world = World::soft(rig);
    world.intx.restore(&saved).unwrap();
    assert!(matches!(world.intx.status().reason, Reason::NoLine));
    world.route(Some(world.guest.a.relay())).unwrap();
    world.until("the pulse is served", |world| world.guest_step());
    assert_eq!((world.served, world.spurious), (1, 0));
}

/// The EOI of another device's interrupt, whose handlers looked at this device before it pulsed. With an irqfd nothing
/// tells the relay that this EOI is not the pulse's own.
#[test]
fn a_pulse_survives_the_eoi_of_a_sharer() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.kernel())).unwrap();
    world.intx.enable().unwrap();
    let sharer = world.guest.sharer(LineId::A, State::Carried(Path::KernelLoop));
    sharer.source().assert().unwrap();
    world.until("the sharer's interrupt is taken", |world| world.guest.a.accept());
    world.serve();
    assert_eq!((world.served, world.spurious), (0, 1));
    world.rig.raise(1);
    world.settle();
    world.guest.a.eoi();
    world.until("the pulse is served", |world| {
        world.guest_step();
        world.rig.status() == 0
    });
    world.rests();
    assert_eq!((world.served, world.spurious), (1, 1));
}

#[test]
fn the_status_says_that_a_change_of_path_waits_for_an_eoi() {
    let mut world = World::soft(level());
    world.route(Some(world.guest.a.kernel())).unwrap();
    world.connection.restrict(Some(Path::Relay)).unwrap();
    world.intx.enable().unwrap();
    world.works(1);
    world.rig.raise(1);
    world.until("the line rises", |world| world.guest.a.is_high());
    world.connection.restrict(None).unwrap();
    let status = world.intx.status();
    assert_eq!(status.state, State::Carried(Path::Relay));
    assert!(
        matches!(status.reason, Reason::HandingOver(Path::KernelLoop)),
        "{status}"
    );
    world.until("the kernel takes over", |world| {
        world.guest_step();
        world.intx.status().state == State::Carried(Path::KernelLoop)
    });
    assert!(matches!(world.intx.status().reason, Reason::Connected));
    world.works(2);
}

/// A pulse that lies in the trigger eventfd, which no event loop has looked at, is part of a snapshot, and a pulse that
/// has been served is not.
#[test]
fn a_pulse_that_no_event_loop_has_seen_survives_a_snapshot() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.relay())).unwrap();
    world.intx.enable().unwrap();
    world.works(2);
    assert!(!world.intx.save().pulse_pending, "every pulse has been served");
    world.rig.raise(1);
    let saved = world.intx.save();
    assert!(saved.pulse_pending);
    let World {
        rig,
        intx,
        relay,
        connection,
        ..
    } = world;
    drop((connection, intx, relay));
    let mut world = World::soft(rig);
    world.route(Some(world.guest.a.relay())).unwrap();
    world.intx.restore(&saved).unwrap();
    assert!(world.intx.save().pulse_pending, "nobody has carried the pulse");
    world.until("the pulse is served", |world| world.guest_step());
    // The relay cannot tell whose EOI the first one is: the handler runs once more than needed.
    world.serve_all();
    world.rests();
    assert_eq!((world.served, world.spurious), (1, 1));
    assert!(!world.intx.save().pulse_pending);
}

#[test]
fn a_pulse_from_before_a_reset_is_not_seen_after() {
    let mut world = World::soft(pulse());
    world.route(Some(world.guest.a.relay())).unwrap();
    world.intx.enable().unwrap();
    world.rig.raise(1);
    // No event loop has looked at the trigger.
    let status = world.rig.status();
    world.intx.reset(|| world.rig.acknowledge(status)).unwrap();
    world.rests();
    world.works(2);
}

/// Row 97, and more than it asks: any one step of an operation fails, at any moment, from any path to any other.
#[test]
fn row_97_any_step_fails() {
    let mut fallbacks = 0;
    for from in STATES {
        for to in STATES {
            for moment in MOMENTS {
                for step in 0.. {
                    let mut world = World::soft_in(level(), from);
                    moment.bring_about(&mut world);
                    world.rig.refuse(step, 1, EIO);
                    let outcome = world.route(Some(world.guest.b.leading_to(to)));
                    // Whether the refusal has been used up: one that is left over is no failure.
                    let requests = world.rig.recent_requests();
                    world.rig.refuse(0, 0, 0);
                    let what = format!("{from} to {to}, {moment:?}, step {step}: {requests:?}");
                    let status = world.intx.status();
                    // Whatever was done about it, the status names the last request that was refused.
                    let named = status.last_error.as_ref().map(|error| error.errno());
                    assert_eq!(named, (world.rig.refused() > 0).then_some(Some(EIO)), "{what}");
                    // One step that fails costs no more than the direct path.
                    let state = outcome.as_ref().unwrap();
                    assert!([to, State::Carried(Path::Relay)].contains(state), "{what}");
                    if status.fallbacks > 0 {
                        fallbacks += 1;
                        assert!(why_not(&world).contains("it failed"), "{what}");
                        assert_eq!(status.state, State::Carried(Path::Relay), "{what}");
                    }
                    let served = world.served;
                    if moment.in_service() {
                        world.guest.a.eoi();
                    }
                    world.settle();
                    while world.guest_step() {
                        world.settle();
                    }
                    assert_eq!((world.served, world.spurious), (served + moment.owed(), 0), "{what}");
                    is_not_left_masked(&mut world);
                    world.works(2);
                    if outcome.is_ok() && status.fallbacks == 0 && status.last_error.is_none() {
                        break;
                    }
                    assert!(step < 20, "{what}");
                }
            }
        }
    }
    assert!(fallbacks > 0);
}

#[test]
fn row_97_enable_fails_at_each_step() {
    for to in STATES {
        let mut reached = Vec::new();
        for step in 0..12 {
            let mut world = World::soft(level());
            world.route(Some(world.guest.a.leading_to(to))).unwrap();
            world.rig.raise(1);
            world.rig.refuse(step, 1, EIO);
            let outcome = world.intx.enable();
            world.rig.refuse(0, 0, 0);
            match outcome {
                Ok(state) => reached.push(state),
                Err(error) => {
                    assert_eq!(error.errno(), Some(EIO));
                    assert!(matches!(
                        error,
                        Error::Step {
                            state: State::Disabled,
                            ..
                        }
                    ));
                    assert!(!world.rig.is_enabled());
                    let status = world.intx.status();
                    assert_eq!(status.last_error.as_ref().map(|error| error.errno()), Some(Some(EIO)));
                    assert!(matches!(status.reason, Reason::Failed(_)), "{status}");
                    reached.push(world.intx.enable().unwrap());
                }
            }
            world.until("it is served", |world| world.guest_step());
            is_not_left_masked(&mut world);
            world.works(2);
            assert_eq!(world.spurious, 0);
        }
        assert!(
            reached.contains(&to) && reached.contains(&State::Carried(Path::Relay)),
            "{reached:?}"
        );
    }
}

/// The second half of an unwinding fails too, and everything after it: INTx is disabled or works, never masked.
#[test]
fn any_step_and_all_after_it_fail() {
    for from in STATES {
        for to in STATES {
            for times in [2, 3, 4, usize::MAX] {
                for step in 0..12 {
                    let mut world = World::soft_in(level(), from);
                    world.rig.raise(1);
                    world.rig.refuse(step, times, EIO);
                    let outcome = world.route(Some(world.guest.b.leading_to(to)));
                    world.rig.refuse(0, 0, 0);
                    let status = world.intx.status();
                    let what = format!("{from} to {to}, {times} from {step}: {status}");
                    match outcome {
                        Ok(state) => assert_eq!(state, status.state),
                        Err(error) => assert_eq!(error.errno(), Some(EIO), "{what}"),
                    }
                    if status.state == State::Disabled {
                        // The connection has given up: it says why, and tries again when asked to.
                        assert!(why_not(&world).contains("it failed"), "{what}: {}", why_not(&world));
                        assert!(!world.guest.a.is_high() && !world.guest.b.is_high(), "{what}");
                        world.connection.changed().unwrap();
                    }
                    world.until("it is served", |world| world.guest_step());
                    is_not_left_masked(&mut world);
                    world.works(2);
                    assert_eq!(world.spurious, 0, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_fallback_is_tried_again_when_enabled_again_and_not_before() {
    let mut world = World::soft(level());
    world.route(Some(world.guest.a.kernel())).unwrap();
    // Trigger, mask, trigger; then the unmask eventfd.
    world.rig.refuse(3, 1, ENOMEM);
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::Relay));
    let status = world.intx.status();
    assert_eq!(
        status.to_string(),
        "model: relay on gsi 10 (irqfd): kernel loop failed: \
         VFIO_DEVICE_SET_IRQS(set the unmask eventfd) on device model: Cannot allocate memory (os error 12)"
    );
    world.works(3);
    world.intx.mask().unwrap();
    assert_eq!(world.intx.unmask().unwrap(), State::Carried(Path::Relay));
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::KernelLoop));
    let status = world.intx.status();
    assert!(matches!(status.reason, Reason::Connected));
    assert_eq!(status.fallbacks, 1);
    world.works(3);
}

#[test]
fn an_unmask_eventfd_of_somebody_elses_is_replaced() {
    let mut world = World::soft_in(level(), State::Carried(Path::Relay));
    let foreign = new_eventfd();
    world
        .rig
        .set_irqs(&IrqSet::unmask_eventfd(Some(foreign.as_fd())))
        .unwrap();
    assert_eq!(
        world.route(Some(world.guest.a.kernel())).unwrap(),
        State::Carried(Path::KernelLoop)
    );
    world.works(3);
}

#[test]
fn a_trigger_that_will_not_go_back_is_replaced_by_a_set_up_from_scratch() {
    let mut world = World::soft(level());
    world.route(Some(world.guest.a.kernel())).unwrap();
    // The unmask eventfd is refused, and so is the mask before what would undo it.
    world.rig.refuse(3, 2, EIO);
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::Relay));
    assert!(matches!(world.intx.status().reason, Reason::FellBack { .. }));
    world.works(3);
}

#[test]
fn a_device_that_refuses_to_be_disabled_does_not_reach_the_line_any_more() {
    for state in STATES {
        let mut world = World::soft_in(level(), state);
        world.rig.refuse(0, 1, EIO);
        assert_eq!(world.intx.disable().unwrap(), State::Disabled);
        assert_eq!(world.intx.status().last_error.unwrap().errno(), Some(EIO));
        world.rig.raise(1);
        world.rests();
        assert_eq!(world.intx.enable().unwrap(), state);
        world.until("it is served", |world| world.guest_step());
        world.works(3);
    }
}

#[test]
fn a_device_that_refuses_even_that_is_lowered_when_it_gives_in() {
    for back in [State::Disabled, State::Carried(Path::KernelLoop)] {
        let mut world = World::soft_in(level(), State::Carried(Path::KernelLoop));
        // To be disabled, and to signal the relay instead.
        world.rig.refuse(0, 2, EIO);
        world.intx.disable().unwrap();
        world.rig.raise(1);
        world.until("it signals its old line", |world| world.guest.a.is_high());
        let line = world.guest.b.leading_to(State::Carried(Path::KernelLoop));
        world.route(Some(line)).unwrap();
        match back {
            State::Disabled => world.intx.disable().unwrap(),
            _ => world.intx.enable().unwrap(),
        };
        assert!(!world.guest.a.is_high(), "{back}");
        assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::KernelLoop));
        world.serve_all();
        assert_eq!((world.served, world.spurious), (1, 0));
        world.works(3);
    }
}

#[test]
fn a_source_without_a_trigger_and_a_device_without_an_unmask_eventfd_are_relayed() {
    let mut world = World::soft(level());
    world.route(Some(world.guest.a.without_trigger())).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::Relay));
    assert!(why_not(&world).contains("not kernel loop: the source has no trigger eventfd"));
    world.works(3);

    let flags = flags::INFO_EVENTFD | flags::INFO_AUTOMASKED;
    let unmaskable = ModelIntx::with_info("unmaskable", IrqInfo { flags, count: 1 });
    let mut world = World::soft(Arc::new(unmaskable));
    world.route(Some(world.guest.a.kernel())).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::Relay));
    assert!(why_not(&world).contains("not kernel loop: the device takes no unmask eventfd"));
    world.works(3);
}

#[test]
fn a_line_that_refuses_leaves_the_old_one_working() {
    let mut world = World::soft_in(level(), State::Carried(Path::KernelLoop));
    // Its source has a listener already.
    let taken = world
        .guest
        .b
        .line
        .subscribe(world.guest.b.irqfd.key().into(), Listener::callback(|_| {}));
    let error = world.route(Some(world.guest.b.kernel())).unwrap_err();
    assert_eq!(error.errno(), Some(EBUSY));
    // And the notifier of another line does not know it.
    let stranger = GuestLine::kernel(world.guest.b.plain.clone(), world.guest.a.line.clone());
    let error = world.route(Some(stranger)).unwrap_err();
    assert_eq!(error.errno(), Some(ENOENT));
    world.works(3);
    drop(taken.unwrap());
    assert_eq!(
        world.route(Some(world.guest.b.kernel())).unwrap(),
        State::Carried(Path::KernelLoop)
    );
    world.works(3);

    let world = World::soft(level());
    let stranger = GuestLine::kernel(world.guest.b.plain.clone(), world.guest.a.line.clone());
    world.route(Some(stranger)).unwrap();
    let error = world.intx.enable().unwrap_err();
    assert_eq!(error.errno(), Some(ENOENT));
    assert!(!world.rig.is_enabled());
}

#[test]
fn another_handle_of_the_same_notifier_keeps_the_subscription() {
    #[derive(Debug)]
    struct Handle(Arc<dyn EoiNotifier>);
    impl EoiNotifier for Handle {
        fn subscribe(
            &self,
            subject: interrupt_core::EoiScope,
            listener: Listener,
        ) -> interrupt_core::Result<interrupt_core::EoiGuard> {
            self.0.subscribe(subject, listener)
        }
    }
    let mut world = World::soft_in(level(), State::Carried(Path::Relay));
    let handle = Arc::new(Handle(world.guest.a.line.clone()));
    let line = GuestLine::kernel(world.guest.a.irqfd.clone(), handle);
    assert_eq!(world.route(Some(line)).unwrap(), State::Carried(Path::KernelLoop));
    world.works(3);
}

#[test]
fn without_a_relay_only_direct_paths_work() {
    let mut world = World::soft_in(level(), State::Carried(Path::Relay));
    world.relay = None;
    assert_eq!(world.intx.status().state, State::Disabled);
    assert!(matches!(world.intx.status().reason, Reason::NoRelay));
    assert!(!world.rig.is_enabled());
    assert!(matches!(world.intx.enable().unwrap_err(), Error::NoRelay { .. }));
    assert_eq!(
        world.route(Some(world.guest.a.kernel())).unwrap(),
        State::Carried(Path::KernelLoop)
    );
    world.works(3);
    // And a direct path that fails has nothing to fall back to.
    world.intx.disable().unwrap();
    world.rig.refuse(3, 1, EIO);
    assert!(matches!(world.intx.enable().unwrap_err(), Error::NoRelay { .. }));
    assert!(!world.rig.is_enabled());
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::KernelLoop));
}

#[test]
fn a_device_that_vanishes_leaves_the_line_low_and_every_operation_typed() {
    for state in STATES {
        let path = state;
        for moment in MOMENTS {
            let mut world = World::soft_in(level(), state);
            moment.bring_about(&mut world);
            world.rig.vanish();
            let mut errors = Vec::new();
            for _ in 0..4 {
                if let Err(error) = world.relay.as_mut().unwrap().wait(Some(Duration::ZERO)) {
                    errors.push(error);
                }
                world.guest.a.irqfd.poll();
                if world.guest.a.accept() {
                    world.guest.a.eoi();
                }
            }
            let refused = world.route(Some(world.guest.b.kernel())).err();
            assert!(
                refused.is_none_or(|error| error.errno() == Some(ENODEV)),
                "{path}, {moment:?}"
            );
            for error in errors {
                assert_eq!(error.errno(), Some(ENODEV), "{path}, {moment:?}: {error}");
                assert!(error.to_string().contains("model"), "{error}");
            }
            world.intx.disable().unwrap();
            assert_eq!(world.intx.status().state, State::Disabled);
            assert!(
                !world.guest.a.is_high() && !world.guest.b.is_high(),
                "{path}, {moment:?}"
            );
        }
    }
}

#[test]
fn a_relayed_unmask_that_fails_is_replaced_by_a_set_up_from_scratch() {
    let mut world = World::soft_in(level(), State::Carried(Path::Relay));
    world.rig.raise(1);
    world.until("it is taken", |world| world.guest.a.accept());
    world.serve();
    world.rig.refuse(0, 1, EIO);
    world.guest.a.eoi();
    let error = world.relay.as_mut().unwrap().wait(None).unwrap_err();
    assert_eq!(error.errno(), Some(EIO));
    assert_eq!(
        error.to_string(),
        "relay INTx of model: VFIO_DEVICE_SET_IRQS(unmask) on device model: Input/output error (os error 5); it is now in \
         state: relay"
    );
    world.works(3);
}

#[test]
fn a_line_that_cannot_be_asserted_disables_the_device() {
    let device = level();
    let (intx, mut relay) = Intx::new(device.clone()).unwrap();
    let (intx, connection) = common::connection(intx);
    let source = Arc::new(RecordingSource::new(Gsi(5)));
    let notifier = Arc::new(ManualNotifier::default());
    connection
        .set_consumer(common::to(GuestLine::relay(source.clone(), notifier, "a test")))
        .unwrap();
    intx.enable().unwrap();
    relay.wait(Some(Duration::ZERO)).unwrap();
    source.refuse_next(1);
    device.raise(1);
    let error = relay.wait(None).unwrap_err();
    assert_eq!(error.errno(), Some(EIO));
    assert_eq!(intx.status().state, State::Disabled);
    assert!(matches!(intx.status().reason, Reason::Failed(_)));
    assert!(!device.is_enabled());
    assert_eq!(intx.enable().unwrap(), State::Carried(Path::Relay));
    relay.wait(None).unwrap();
    assert_eq!(source.asserts(), 1);
}

/// A reset that nobody told INTx of: VFIO keeps what is set up, and the device's cause is gone.
#[test]
fn a_reset_behind_its_back_changes_nothing() {
    for state in STATES {
        let mut world = World::soft_in(level(), state);
        world.works(1);
        world.rig.raise(1);
        world.rig.reset();
        world.guest.pump();
        if world.guest.a.accept() {
            world.guest.a.eoi();
        }
        world.works(3);
        assert_eq!(world.intx.status().state, state);
    }
}

/// INTx is disabled at the device by somebody else, as by a switch to MSI that INTx was not told of.
#[test]
fn what_is_disabled_behind_its_back_is_set_up_again() {
    for state in STATES {
        let mut world = World::soft_in(level(), state);
        world.rig.set_irqs(&IrqSet::disable()).unwrap();
        assert_eq!(world.route(Some(world.guest.b.leading_to(state))).unwrap(), state);
        world.works(3);
        world.rig.set_irqs(&IrqSet::disable()).unwrap();
        assert_eq!(world.intx.disable().unwrap(), State::Disabled);
        assert_eq!(world.intx.enable().unwrap(), state);
        world.works(3);
    }
}

#[test]
fn a_saved_state_that_cannot_be_is_refused() {
    let world = World::soft(level());
    world.route(Some(world.guest.a.kernel())).unwrap();
    let good = IntxState {
        version: IntxState::VERSION,
        enabled: true,
        msi: false,
        masked: true,
        disintx: true,
        pulse_pending: false,
    };
    for bad in [
        IntxState { version: 0, ..good },
        IntxState {
            pulse_pending: true,
            ..good
        },
    ] {
        let error = world.intx.restore(&bad).unwrap_err();
        assert!(matches!(error, Error::Saved { .. }));
        assert_eq!(error.errno(), Some(EINVAL));
        assert!(!world.intx.save().enabled);
    }
    assert_eq!(world.intx.restore(&good).unwrap(), State::Masked);
    assert_eq!(world.intx.save(), good);
    assert!(matches!(world.intx.restore(&good).unwrap_err(), Error::Saved { .. }));
    world.intx.unmask().unwrap();
    assert!(matches!(world.intx.status().reason, Reason::DisIntx));
    assert_eq!(world.intx.set_disintx(false).unwrap(), State::Carried(Path::KernelLoop));
}

#[test]
fn a_change_of_path_has_the_device_state_its_level_once() {
    let mut world = World::soft_in(level(), State::Carried(Path::Relay));
    world.works(5);
    world.rig.raise(1);
    let signals = world.rig.signals();
    // The EOI eventfd has counted the five EOIs, which are not to be taken for new ones.
    world.route(Some(world.guest.a.kernel())).unwrap();
    assert_eq!(world.rig.signals(), signals + 1);
}

#[test]
fn asking_for_what_is_already_so_touches_nothing() {
    for state in STATES {
        let world = World::soft_in(level(), state);
        let requests = world.rig.recent_requests();
        assert_eq!(world.intx.enable().unwrap(), state);
        assert_eq!(world.intx.unmask().unwrap(), state);
        assert_eq!(Some(world.connection.changed().unwrap()), Some(world.connection.path()));
        assert_eq!(world.rig.recent_requests(), requests);
    }
}

/// Row 145: VFIO_DEVICE_RESET saves and restores the command register. Interrupt Disable is after the reset what it was before.
#[test]
fn a_reset_keeps_interrupt_disable_and_the_mask() {
    let mut world = World::soft_in(level(), State::Carried(Path::KernelLoop));
    world.rig.set_disintx(true);
    assert_eq!(world.intx.set_disintx(true).unwrap(), State::Masked);
    world.intx.reset(|| world.rig.reset()).unwrap();
    assert!(matches!(world.intx.status().reason, Reason::DisIntx));
    // The VMM clears the bit as QEMU does before a reset, and says so.
    let cleared = world.intx.reset(|| {
        world.rig.set_disintx(false);
        let follows = world.intx.set_disintx(false);
        world.rig.reset();
        follows
    });
    assert_eq!(cleared.unwrap().unwrap(), State::Disabled);
    assert_eq!(world.intx.status().state, State::Carried(Path::KernelLoop));
    world.works(3);
    world.intx.mask().unwrap();
    world.intx.reset(|| world.rig.reset()).unwrap();
    assert_eq!(world.intx.status().state, State::Masked);
    world.intx.unmask().unwrap();
    world.works(3);
}

#[test]
fn masked_before_it_is_enabled_is_masked_at_the_device() {
    let world = World::soft(level());
    world.route(Some(world.guest.a.kernel())).unwrap();
    assert_eq!(world.intx.mask().unwrap(), State::Disabled);
    world.rig.raise(1);
    assert_eq!(world.intx.enable().unwrap(), State::Masked);
    assert!(world.rig.is_masked());
    assert_eq!(world.intx.unmask().unwrap(), State::Carried(Path::KernelLoop));
}

#[test]
fn the_relay_ends_with_its_intx() {
    let World {
        connection,
        intx,
        relay,
        rig,
        ..
    } = World::soft_in(level(), State::Carried(Path::KernelLoop));
    let mut relay = relay.unwrap();
    let waiter = std::thread::spawn(move || while relay.wait(None).unwrap() {});
    drop((connection, intx));
    waiter.join().unwrap();
    assert!(!rig.is_enabled());
}

#[test]
fn labels_reach_the_status() {
    let world = World::soft(level());
    assert_eq!(world.intx.status().to_string(), "model: disabled: not enabled");
    world.route(Some(world.guest.a.split())).unwrap();
    world.intx.enable().unwrap();
    assert_eq!(
        format!("{:?}", world.intx),
        "INTx of model: split kick on gsi 10 (irqfd): connected so"
    );
    assert!(world.intx.status().last_error.is_none());
}

/// A mask and an unmask of a device whose other end is gone are errors, of a device that masks itself and of one that
/// pulses.
#[test]
fn a_mask_of_a_device_that_is_gone_is_an_error() {
    for device in [level, pulse] {
        for unmask in [false, true] {
            let world = World::soft_in(device(), State::Carried(Path::Relay));
            if unmask {
                world.intx.mask().unwrap();
            }
            world.rig.vanish();
            let outcome = if unmask { world.intx.unmask() } else { world.intx.mask() };
            assert_eq!(
                outcome.unwrap_err().errno(),
                Some(ENODEV),
                "unmask {unmask}: {:?}",
                world.intx
            );
            assert!(matches!(world.intx.status().reason, Reason::Failed(_)));
        }
    }
}

/// MSI is left while it is still enabled: INTx cannot be set up, and the next enable tries again.
#[test]
fn what_msi_still_holds_is_enabled_later() {
    let message = new_eventfd();
    let mut world = World::soft_in(level(), State::Carried(Path::KernelLoop));
    world.intx.enter_msi().unwrap();
    let msi = |request: IrqSet<'_>| world.rig.set_irqs(&IrqSet { index: MSI, ..request });
    msi(IrqSet::trigger(Some(message.as_fd()))).unwrap();
    assert_eq!(world.intx.leave_msi().unwrap_err().errno(), Some(EINVAL));
    assert!(
        matches!(world.intx.status().reason, Reason::Failed(_)),
        "{:?}",
        world.intx
    );
    msi(IrqSet::disable()).unwrap();
    assert_eq!(world.intx.enable().unwrap(), State::Carried(Path::KernelLoop));
    world.works(3);
}

/// The relay goes while it carries an interrupt, and INTx is connected by a direct path: because the relay was to hand
/// over, or because it stood in for a direct path that had failed.
#[test]
fn without_its_relay_a_direct_path_is_taken_at_once() {
    for (moment, fell_back) in MOMENTS.into_iter().flat_map(|moment| [(moment, false), (moment, true)]) {
        let mut world = World::soft(level());
        world.route(Some(world.guest.a.kernel())).unwrap();
        world.intx.enable().unwrap();
        if fell_back {
            world.intx.mask().unwrap();
            world.rig.refuse(0, 1, EIO);
            world.intx.unmask().unwrap();
            assert!(matches!(world.intx.status().reason, Reason::FellBack { .. }));
            moment.bring_about(&mut world);
        } else {
            world.connection.restrict(Some(Path::Relay)).unwrap();
            moment.bring_about(&mut world);
            world.connection.restrict(None).unwrap();
        }
        world.relay = None;
        let status = world.intx.status();
        assert_eq!(status.state, State::Carried(Path::KernelLoop), "{moment:?}: {status}");
        if moment == Moment::InService {
            world.serve();
        }
        if moment.in_service() {
            world.guest.a.eoi();
        }
        world.serve_all();
        world.works(2);
    }
}

/// A server that unmasks an INTx which nobody has set up is no second user.
#[test]
fn a_device_that_accepts_an_unmask_before_a_trigger_is_enabled() {
    #[derive(Debug)]
    struct Lenient(Arc<ModelIntx>);
    impl DeviceInterrupt for Lenient {
        fn label(&self) -> &str {
            "lenient"
        }
        fn info(&self) -> interrupt_core::Result<InterruptInfo> {
            self.0.info()
        }
        fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> interrupt_core::Result<()> {
            self.0.set_trigger(fd)
        }
        fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> interrupt_core::Result<()> {
            self.0.set_unmask(fd)
        }
        fn mask(&self) -> interrupt_core::Result<()> {
            self.0.mask()
        }
        fn unmask(&self) -> interrupt_core::Result<()> {
            self.0.unmask().or(Ok(()))
        }
    }
    let guest = common::guest::SoftGuest::new();
    let (intx, _relay) = Intx::new(Arc::new(Lenient(level()))).unwrap();
    let (intx, connection) = common::connection(intx);
    connection.set_consumer(common::to(guest.a.kernel())).unwrap();
    assert_eq!(intx.enable().unwrap(), State::Carried(Path::KernelLoop));
}

/// The line owns what uses INTx: a source, or a notifier, that masks INTx when it is dropped.
#[test]
fn what_the_line_owns_is_dropped_without_a_lock() {
    #[derive(Debug)]
    struct Owns(Arc<RecordingSource>, Mutex<Option<Arc<Intx>>>, Arc<AtomicUsize>);
    impl Drop for Owns {
        fn drop(&mut self) {
            if let Some(intx) = self.1.lock().unwrap().take() {
                intx.mask().unwrap();
                intx.unmask().unwrap();
                self.2.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    impl LevelSource for Owns {
        fn key(&self) -> SourceKey {
            self.0.key()
        }
        fn label(&self) -> &str {
            "owns INTx"
        }
        fn assert(&self) -> interrupt_core::Result<Delivery> {
            self.0.assert()
        }
        fn deassert(&self) -> interrupt_core::Result<()> {
            self.0.deassert()
        }
        fn force_deassert(&self) -> interrupt_core::Result<()> {
            self.0.force_deassert()
        }
        fn trigger(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let (intx, relay) = Intx::new(level()).unwrap();
    let intx = Arc::new(intx);
    intx.enable().unwrap();
    let (done, end) = std::sync::mpsc::channel();
    let counted = Arc::clone(&dropped);
    // A drop under a lock would wait for ever.
    let thread = std::thread::spawn(move || {
        let _relay = relay;
        for _ in 0..3 {
            let owns = Owns(
                Arc::new(RecordingSource::new(Gsi(5))),
                Mutex::new(Some(intx.clone())),
                counted.clone(),
            );
            let line = GuestLine::relay(Arc::new(owns), Arc::new(ManualNotifier::default()), "a test");
            // As a connection does, which would keep the line.
            let producer: &dyn Producer = &*intx;
            producer.stop().unwrap();
            producer.connect(Path::Relay, &line).unwrap();
            drop(line);
            producer.start().unwrap();
        }
        Producer::disconnect(&*intx);
        done.send(()).unwrap();
    });
    end.recv_timeout(common::PATIENCE)
        .expect("the line is dropped under a lock");
    thread.join().unwrap();
    assert_eq!(dropped.load(Ordering::Relaxed), 3);
}

/// Without a connection nobody takes the line back: the relay's end must not set INTx up for nobody.
#[test]
fn the_end_of_the_relay_sets_up_no_intx_that_is_gone() {
    let device = level();
    let (intx, relay) = Intx::new(device.clone()).unwrap();
    let guest = World::soft(level()).guest;
    intx.enable().unwrap();
    intx.connect(Path::KernelLoop, &guest.a.kernel()).unwrap();
    assert!(device.is_enabled());
    drop(intx);
    assert!(!device.is_enabled());
    drop(relay);
    assert!(!device.is_enabled(), "{:?}", device.recent_requests());
}

#[test]
fn a_reset_that_panics_is_over() {
    let mut world = World::soft_in(level(), State::Carried(Path::KernelLoop));
    let reset = std::panic::AssertUnwindSafe(|| world.intx.reset(|| panic!("the device would not be reset")));
    assert!(std::panic::catch_unwind(reset).is_err());
    assert_eq!(world.intx.status().state, State::Carried(Path::KernelLoop));
    world.works(3);
}

/// INTx stays disabled until the last of several resets has ended.
#[test]
fn resets_at_once_end_with_the_last() {
    for state in STATES {
        let mut world = World::soft_in(level(), state);
        let outer = world.intx.reset(|| {
            world.intx.reset(|| world.rig.reset()).unwrap();
            (world.intx.status().state, world.rig.is_enabled())
        });
        assert_eq!(outer.unwrap(), (State::Disabled, false));
        assert_eq!(world.intx.status().state, state);
        world.works(10);
    }
}
