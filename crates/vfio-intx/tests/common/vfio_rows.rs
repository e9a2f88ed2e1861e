// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of the conformance list, part E, that are about VFIO itself: what a device's interrupt does when it is
//! asked. The model has to answer as the kernel.

use std::os::fd::AsFd;

use vfio_intx::irq_set::{Data, INTX, IrqSet, MSI, flags};

use super::{PATIENCE, Rig, new_eventfd, no_eventfd, signal, take, take_within};

const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

#[track_caller]
fn refused(rig: &impl Rig, request: &IrqSet<'_>) -> i32 {
    rig.set_irqs(request)
        .expect_err("the request should be refused")
        .raw_os_error()
        .unwrap()
}

/// The signals that come, which is one at most when the device masks itself.
#[track_caller]
fn comes(rig: &impl Rig, trigger: impl AsFd) {
    rig.pump();
    assert_eq!(take_within(trigger.as_fd(), PATIENCE), 1, "one signal");
}

#[track_caller]
fn stays_silent(rig: &impl Rig, trigger: impl AsFd) {
    rig.pump();
    assert_eq!(take_within(trigger.as_fd(), rig.quiet()), 0, "no signal");
}

/// 87, the device's part: vfio-pci shows one maskable, automasked interrupt that signals an eventfd.
pub fn row_87_info(rig: &impl Rig) {
    let info = rig.irq_info();
    assert_eq!(info.count, 1);
    assert_eq!(
        info.flags & (flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED),
        flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED
    );
}

/// 88, the device's part: nothing but a trigger is accepted before a trigger.
pub fn row_88_unmask_before_trigger(rig: &impl Rig) {
    let fd = new_eventfd();
    let early = [
        IrqSet::unmask_eventfd(Some(fd.as_fd())),
        IrqSet::unmask_eventfd(None),
        IrqSet::unmask(),
        IrqSet::mask(),
        IrqSet::signal(),
        IrqSet::disable(),
    ];
    for request in &early {
        assert_eq!(refused(rig, request), EINVAL, "{request}");
    }
    rig.set_irqs(&IrqSet::trigger(Some(fd.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(fd.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::disable()).unwrap();
    assert_eq!(refused(rig, &IrqSet::disable()), EINVAL, "a second time");
}

/// 89: malformed requests.
pub fn row_89_malformed_requests(rig: &impl Rig) {
    let (fd, other) = (new_eventfd(), no_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(fd.as_fd()))).unwrap();
    let mask_by_eventfd = IrqSet {
        flags: flags::DATA_EVENTFD | flags::ACTION_MASK,
        ..IrqSet::unmask_eventfd(Some(fd.as_fd()))
    };
    assert_eq!(refused(rig, &mask_by_eventfd), ENOTTY);
    let invalid = [
        (
            "start 1",
            IrqSet {
                start: 1,
                ..IrqSet::unmask()
            },
        ),
        (
            "count 2",
            IrqSet {
                count: 2,
                ..IrqSet::unmask()
            },
        ),
        (
            "count 0",
            IrqSet {
                count: 0,
                ..IrqSet::unmask()
            },
        ),
        (
            "a huge count",
            IrqSet {
                count: u32::MAX,
                ..IrqSet::unmask()
            },
        ),
        (
            "argsz below the header",
            IrqSet {
                argsz: 19,
                ..IrqSet::unmask()
            },
        ),
        (
            "argsz without the data",
            IrqSet {
                argsz: 20,
                ..IrqSet::trigger(Some(fd.as_fd()))
            },
        ),
        (
            "two data types",
            IrqSet {
                flags: flags::DATA_NONE | flags::DATA_BOOL | flags::ACTION_MASK,
                ..IrqSet::mask()
            },
        ),
        (
            "no data type",
            IrqSet {
                flags: flags::ACTION_MASK,
                ..IrqSet::mask()
            },
        ),
        (
            "an unknown flag",
            IrqSet {
                flags: flags::DATA_NONE | flags::ACTION_MASK | 1 << 20,
                ..IrqSet::mask()
            },
        ),
        (
            "an unknown index",
            IrqSet {
                index: 99,
                ..IrqSet::mask()
            },
        ),
        ("no eventfd", IrqSet::trigger(Some(other.as_fd()))),
        ("no eventfd to unmask", IrqSet::unmask_eventfd(Some(other.as_fd()))),
    ];
    for (what, request) in &invalid {
        assert_eq!(refused(rig, request), EINVAL, "{what}");
    }
    let two_actions = IrqSet {
        flags: flags::DATA_NONE | flags::ACTION_MASK | flags::ACTION_UNMASK,
        ..IrqSet::mask()
    };
    assert_eq!(refused(rig, &two_actions), ENOTTY);
    // None of it has disturbed the interrupt.
    rig.raise(1);
    comes(rig, &fd);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 90: one unmask eventfd at a time; -1 takes it away; a count that waits in it is honoured when it is set.
pub fn row_90_one_unmask_eventfd(rig: &impl Rig) {
    let (trigger, first, second) = (new_eventfd(), new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(first.as_fd()))).unwrap();
    assert_eq!(refused(rig, &IrqSet::unmask_eventfd(Some(second.as_fd()))), EBUSY);
    assert_eq!(refused(rig, &IrqSet::unmask_eventfd(Some(first.as_fd()))), EBUSY);
    rig.set_irqs(&IrqSet::unmask_eventfd(None)).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(None)).unwrap();

    rig.raise(1);
    comes(rig, &trigger);
    signal(&first);
    stays_silent(rig, &trigger);
    signal(&second);
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(second.as_fd()))).unwrap();
    comes(rig, &trigger);
    // Linux leaves that count in the eventfd until the next signal, and then takes both.
    signal(&second);
    comes(rig, &trigger);
    assert_eq!(take(&second), 0, "the device drains it");
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 91: the device masks itself when it signals.
pub fn row_91_one_signal_until_unmask(rig: &impl Rig) {
    let trigger = new_eventfd();
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.raise(1);
    comes(rig, &trigger);
    rig.raise(2);
    stays_silent(rig, &trigger);
    rig.acknowledge(3);
    rig.raise(1);
    stays_silent(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 92: an unmask with the line high signals again, and the interrupt stays masked; by request and by eventfd.
pub fn row_92_unmask_with_the_line_high(rig: &impl Rig) {
    let (trigger, unmask) = (new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(unmask.as_fd()))).unwrap();
    rig.raise(1);
    comes(rig, &trigger);
    for _ in 0..3 {
        rig.set_irqs(&IrqSet::unmask()).unwrap();
        comes(rig, &trigger);
        signal(&unmask);
        comes(rig, &trigger);
    }
    stays_silent(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 93: an unmask with the line low unmasks: the next assertion signals once.
pub fn row_93_unmask_with_the_line_low(rig: &impl Rig) {
    let (trigger, unmask) = (new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(unmask.as_fd()))).unwrap();
    for by_eventfd in [false, true] {
        rig.raise(1);
        comes(rig, &trigger);
        rig.acknowledge(1);
        if by_eventfd {
            signal(&unmask);
        } else {
            rig.set_irqs(&IrqSet::unmask()).unwrap();
        }
        stays_silent(rig, &trigger);
        rig.raise(1);
        comes(rig, &trigger);
        stays_silent(rig, &trigger);
        rig.acknowledge(1);
        rig.set_irqs(&IrqSet::unmask()).unwrap();
    }
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 94: the mask is a flag. Also: unmasking what is not masked does nothing, and DATA_BOOL does as it says.
pub fn row_94_the_mask_is_a_flag(rig: &impl Rig) {
    let trigger = new_eventfd();
    let bool_set = |request: IrqSet<'static>, value| IrqSet {
        argsz: 21,
        flags: request.flags & flags::ACTIONS | flags::DATA_BOOL,
        data: Data::Bool(value),
        ..request
    };
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::mask()).unwrap();
    rig.set_irqs(&IrqSet::mask()).unwrap();
    rig.raise(1);
    stays_silent(rig, &trigger);
    rig.set_irqs(&bool_set(IrqSet::unmask(), 0)).unwrap();
    stays_silent(rig, &trigger);
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&bool_set(IrqSet::unmask(), 1)).unwrap();
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    rig.set_irqs(&bool_set(IrqSet::mask(), 0)).unwrap();
    rig.raise(1);
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 101: a device that asserts while masked is delivered at the unmask.
pub fn row_101_asserts_while_masked(rig: &impl Rig) {
    let trigger = new_eventfd();
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.raise(1);
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.raise(4);
    stays_silent(rig, &trigger);
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    comes(rig, &trigger);
    rig.acknowledge(4);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 102: without a trigger, neither loop-back nor an unmask with the line high signals anybody (CVE-2024-26812).
pub fn row_102_no_trigger(rig: &impl Rig) {
    let (trigger, unmask) = (new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::signal()).unwrap();
    comes(rig, &trigger);
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(unmask.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::trigger(None)).unwrap();
    rig.set_irqs(&IrqSet::signal()).unwrap();
    rig.raise(1);
    signal(&unmask);
    rig.pump();
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    stays_silent(rig, &trigger);
    // It is still enabled, and speaks again when it has somebody to speak to.
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// A trigger that takes another's place keeps the mask, and is the only one that hears the device.
pub fn trigger_exchange_keeps_the_mask(rig: &impl Rig) {
    let (old, new) = (new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(old.as_fd()))).unwrap();
    rig.raise(1);
    comes(rig, &old);
    rig.set_irqs(&IrqSet::trigger(Some(new.as_fd()))).unwrap();
    stays_silent(rig, &new);
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    comes(rig, &new);
    stays_silent(rig, &old);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// Interrupt Disable suppresses signals, whatever is unmasked, and its end brings up what is still asserted.
pub fn disintx_suppresses(rig: &impl Rig) {
    let (trigger, unmask) = (new_eventfd(), new_eventfd());
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.set_irqs(&IrqSet::unmask_eventfd(Some(unmask.as_fd()))).unwrap();
    rig.set_disintx(true);
    rig.raise(1);
    stays_silent(rig, &trigger);
    rig.set_irqs(&IrqSet::unmask()).unwrap();
    signal(&unmask);
    stays_silent(rig, &trigger);
    rig.set_disintx(false);
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}

/// 105, the device's part: one kind of interrupt at a time, in both directions.
pub fn row_105_msi_excludes_intx(rig: &impl Rig) {
    let (trigger, message) = (new_eventfd(), new_eventfd());
    let msi = |request: IrqSet<'_>| rig.set_irqs(&IrqSet { index: MSI, ..request });
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    let while_intx = msi(IrqSet::trigger(Some(message.as_fd())));
    assert_eq!(while_intx.unwrap_err().raw_os_error(), Some(EINVAL));
    rig.set_irqs(&IrqSet::disable()).unwrap();
    msi(IrqSet::trigger(Some(message.as_fd()))).unwrap();
    for request in [
        IrqSet::trigger(Some(trigger.as_fd())),
        IrqSet::unmask(),
        IrqSet::disable(),
    ] {
        assert_eq!(request.index, INTX);
        assert_eq!(refused(rig, &request), EINVAL, "{request}");
    }
    rig.raise(1);
    comes(rig, &message);
    stays_silent(rig, &trigger);
    rig.acknowledge(1);
    msi(IrqSet::disable()).unwrap();
    rig.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    rig.raise(1);
    comes(rig, &trigger);
    rig.acknowledge(1);
    rig.set_irqs(&IrqSet::disable()).unwrap();
}
