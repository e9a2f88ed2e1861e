// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with the model device and a real KVM: irqfds, the kernel's IOAPIC or one in this
//! process, and a guest's EOI that signals the eventfd which unmasks the device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use common::guest::{Guest, LineId};
use common::kvm_guest::KvmGuest;
use common::model_rig::level;
use common::rows;
use common::split_guest::{SplitGuest, eoi_broadcast_can_be_chosen};
use common::world::World;
use interrupt_core::forward::Path;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::{ModelIntx, State};

const COUNT: u32 = 10_000;

fn full() -> (Arc<ModelIntx>, KvmGuest) {
    (level(), KvmGuest::new())
}

fn split() -> (Arc<ModelIntx>, SplitGuest) {
    (level(), SplitGuest::new())
}

fn on_the_vmms_irqfds() -> (Arc<ModelIntx>, SplitGuest) {
    (level(), SplitGuest::on_the_vmms_irqfds())
}

fn reset(device: &Arc<ModelIntx>) {
    device.reset();
}

fn main() -> ExitCode {
    let suite = Suite::new("kvm");
    let suite = rows::all(
        suite,
        "full",
        &[Need::FullIrqchip, Need::AcceptMode],
        full,
        reset,
        COUNT,
    );
    let suite = rows::all(
        suite,
        "split",
        &[Need::SplitIrqchip, Need::AcceptMode],
        split,
        reset,
        COUNT,
    );
    let suite = rows::all(
        suite,
        "vmms_irqfds",
        &[Need::SplitIrqchip, Need::AcceptMode],
        on_the_vmms_irqfds,
        reset,
        COUNT,
    );
    suite
        .test(
            "full::two_devices_on_one_line",
            &[Need::FullIrqchip, Need::AcceptMode],
            || {
                rows::two_devices_on_one_line(full, level);
            },
        )
        .test(
            "split::two_devices_on_one_line",
            &[Need::SplitIrqchip, Need::AcceptMode],
            || {
                rows::two_devices_on_one_line(split, level);
            },
        )
        .test(
            "split::what_an_absent_lapic_swallowed_is_signalled_again",
            &[Need::SplitIrqchip, Need::AcceptMode],
            || what_an_absent_lapic_swallowed_is_signalled_again(split),
        )
        .test(
            "vmms_irqfds::what_an_absent_lapic_swallowed_is_signalled_again",
            &[Need::SplitIrqchip, Need::AcceptMode],
            || what_an_absent_lapic_swallowed_is_signalled_again(on_the_vmms_irqfds),
        )
        .test(
            "vmms_irqfds::two_devices_on_one_line",
            &[Need::SplitIrqchip, Need::AcceptMode],
            || rows::two_devices_on_one_line(on_the_vmms_irqfds, level),
        )
        .test(
            "full::row_150_a_oneshot_handler",
            &[Need::FullIrqchip, Need::AcceptMode, Need::KernelAtLeast(6, 3)],
            || {
                for state in [State::Carried(Path::KernelLoop), State::Carried(Path::Relay)] {
                    assert_eq!(oneshot(full(), state), 0, "{state}");
                }
            },
        )
        .test(
            "split::row_150_a_oneshot_handler",
            &[Need::SplitIrqchip, Need::AcceptMode],
            || {
                for state in [State::Carried(Path::SplitKick), State::Carried(Path::Relay)] {
                    assert_eq!(oneshot(split(), state), 0, "{state}");
                    assert_eq!(oneshot(on_the_vmms_irqfds(), state), 0, "{state}");
                }
            },
        )
        .test(
            "split::row_163_directed_eois",
            &[
                Need::SplitIrqchip,
                Need::AcceptMode,
                Need::Host("a choice of EOI broadcast", eoi_broadcast_can_be_chosen),
            ],
            || rows::row_96_full_loop(|| (level(), SplitGuest::directing_eois()), 1000),
        )
        .run()
}

const ONESHOTS: u32 = 50;

/// A guest whose handler masks the pin, ends the interrupt, and then serves the device and unmasks the pin (IRQF_ONESHOT
/// in Linux). Returns how often the handler found nothing to do. Nothing is lost.
fn oneshot<G: Guest>((device, guest): (Arc<ModelIntx>, G), state: State) -> u32 {
    let mut world = World::in_state(device, guest, state);
    let by_message = state == State::Carried(Path::SplitKick);
    for n in 1..=ONESHOTS {
        world.rig.raise(1);
        world.until("an interrupt", |world| world.guest.accept(LineId::A));
        let mut is_more = true;
        while is_more {
            world.guest.set_masked(LineId::A, true);
            world.guest.eoi(LineId::A);
            world.until("the device has stated its level", |world| {
                let arrived = by_message || world.guest.is_high(LineId::A);
                world.rig.status() == 0 || world.rig.is_masked() && arrived
            });
            world.serve();
            world.guest.set_masked(LineId::A, false);
            world.settle();
            is_more = world.guest.accept(LineId::A);
        }
        assert_eq!((world.served, world.rig.status()), (n, 0), "{state}");
        assert!(!world.rig.is_masked(), "{state}");
    }
    world.spurious
}

/// The message of a split kick goes to a LAPIC that is not there, and KVM drops it. The guest then gives the entry a
/// LAPIC that is there, at once or by way of a mask: the IOAPIC tells the pin's listeners, which unmasks the device.
fn what_an_absent_lapic_swallowed_is_signalled_again(split: fn() -> (Arc<ModelIntx>, SplitGuest)) {
    const ABSENT: u8 = 9;
    for by_mask in [false, true] {
        let (device, guest) = split();
        let mut world = World::in_state(device, guest, State::Carried(Path::SplitKick));
        world.works(1);
        world.guest.send_to(LineId::A, ABSENT, false);
        world.settle();
        world.rig.raise(1);
        world.settle();
        assert!(!world.guest_step() && world.rig.is_masked(), "by a mask: {by_mask}");
        if by_mask {
            world.guest.send_to(LineId::A, ABSENT, true);
        }
        world.guest.send_to(LineId::A, 0, false);
        world.until("the device is unmasked and served", |world| {
            world.guest_step();
            world.rig.status() == 0
        });
        world.works(2);
    }
}
