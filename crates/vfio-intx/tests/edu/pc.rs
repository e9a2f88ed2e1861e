// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows with a guest on a PC's KVM: with a full irqchip, where the whole of a kernel loop is the kernel's, and with a
//! split one.

use std::sync::Arc;

use interrupt_core::forward::Path;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::State;

use crate::common::kvm_guest::KvmGuest;
use crate::common::rows;
use crate::common::split_guest::{SplitGuest, eoi_broadcast_can_be_chosen};
use crate::common::world::World;
use crate::device::{self, Edu, first, second};
use crate::{FEW, LIMIT, reset};

/// How many interrupts each path carries.
const COUNT: u32 = 5_000;

fn full() -> (Arc<Edu>, KvmGuest) {
    (first(), KvmGuest::new())
}

fn split() -> (Arc<Edu>, SplitGuest) {
    (first(), SplitGuest::new())
}

/// Adds these rows to `suite`.
pub fn of_a_pc(mut suite: Suite) -> Suite {
    let one = Need::Host("edu", device::probe_first);
    let two = Need::Host("a second edu", device::probe_second);
    let with_full = [one, Need::FullIrqchip, Need::AcceptMode];
    let with_split = [one, Need::SplitIrqchip, Need::AcceptMode];
    let directed = [
        one,
        Need::SplitIrqchip,
        Need::AcceptMode,
        Need::Host("a choice of EOI broadcast", eoi_broadcast_can_be_chosen),
    ];
    let two_with_full = [one, two, Need::FullIrqchip, Need::AcceptMode];
    let two_with_split = [one, two, Need::SplitIrqchip, Need::AcceptMode];
    suite = rows::all(suite, "full", &with_full, full, reset, FEW);
    suite = rows::all(suite, "split", &with_split, split, reset, FEW);
    suite
        .test_within(LIMIT, "full::five_thousand_on_each_path", &with_full, || {
            every_interrupt_was_the_hosts_too(|| rows::row_96_full_loop(full, COUNT), 2 * COUNT);
        })
        .test_within(LIMIT, "split::five_thousand_on_each_path", &with_split, || {
            every_interrupt_was_the_hosts_too(|| rows::row_96_full_loop(split, COUNT), 2 * COUNT);
        })
        .test_within(LIMIT, "full::two_devices_on_one_line", &two_with_full, || {
            rows::two_devices_on_one_line(full, second);
        })
        .test_within(LIMIT, "split::two_devices_on_one_line", &two_with_split, || {
            rows::two_devices_on_one_line(split, second);
        })
        .test_within(LIMIT, "split::row_163_directed_eois", &directed, || {
            rows::row_96_full_loop(|| (first(), SplitGuest::directing_eois()), 100);
        })
        .test("the_kernel_unmasks_by_itself", &with_full, the_kernel_unmasks_by_itself)
}

/// The host's kernel counts what it saw of the device while `body` ran: each raise once, and nothing else.
fn every_interrupt_was_the_hosts_too(body: impl FnOnce(), count: u32) {
    // Its number is the one of the pin only while the device is open.
    drop(first());
    let before = device::host_interrupts();
    body();
    let seen = device::host_interrupts() - before;
    assert_eq!(
        seen,
        u64::from(count),
        "interrupts that the host has handled, for as many raised"
    );
}

/// On the kernel loop nobody in this process does anything between the guest's EOI and the device's next signal.
fn the_kernel_unmasks_by_itself() {
    let mut world = World::in_state(first(), KvmGuest::new(), State::Carried(Path::KernelLoop));
    // Nobody runs the relay either.
    let relay = world.relay.take();
    for _ in 0..100 {
        world.round();
    }
    assert_eq!((world.served, world.spurious), (100, 0));
    assert_eq!(world.intx.status().state, State::Carried(Path::KernelLoop));
    drop(relay);
}
