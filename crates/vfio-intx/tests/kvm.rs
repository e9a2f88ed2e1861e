// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with the model device and a real KVM: irqfds, the kernel's IOAPIC or one in this
//! process, and a guest's EOI that signals the eventfd which unmasks the device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use common::guest::LineId;
use common::kvm_guest::KvmGuest;
use common::model_rig::level;
use common::rows;
use common::split_guest::SplitGuest;
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
            what_an_absent_lapic_swallowed_is_signalled_again,
        )
        .run()
}

/// The message of a split kick goes to a LAPIC that is not there, and KVM drops it. The guest then gives the entry a
/// LAPIC that is there, at once or by way of a mask: the IOAPIC tells the pin's listeners, which unmasks the device.
fn what_an_absent_lapic_swallowed_is_signalled_again() {
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
