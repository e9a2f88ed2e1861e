// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with a real PCI device behind the kernel's vfio-pci: QEMU's `edu`, in the lab. The
//! guest is one in software, or one on the lab's KVM: with a full irqchip, where the whole of a kernel loop is the
//! kernel's, and with a split one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod device;

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::guest::SoftGuest;
use common::kvm_guest::KvmGuest;
use common::split_guest::{SplitGuest, eoi_broadcast_can_be_chosen};
use common::world::World;
use common::{Rig, new_eventfd, rows, vfio_rows};
use device::{Edu, first, second};
use interrupt_core::forward::Path;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::State;
use vfio_intx::irq_set::IrqSet;

type Body = fn();

/// How many interrupts each path carries.
const COUNT: u32 = 5_000;

fn soft() -> (Arc<Edu>, SoftGuest) {
    (first(), SoftGuest::new())
}

fn full() -> (Arc<Edu>, KvmGuest) {
    (first(), KvmGuest::new())
}

fn split() -> (Arc<Edu>, SplitGuest) {
    (first(), SplitGuest::new())
}

fn reset(edu: &Arc<Edu>) {
    edu.reset();
}

fn main() -> ExitCode {
    let one = [Need::Host("edu", device::probe_first)];
    let two = [one[0], Need::Host("a second edu", device::probe_second)];
    let with_full = [one[0], Need::FullIrqchip, Need::AcceptMode];
    let with_split = [one[0], Need::SplitIrqchip, Need::AcceptMode];
    let directed = [
        one[0],
        Need::SplitIrqchip,
        Need::AcceptMode,
        Need::Host("a choice of EOI broadcast", eoi_broadcast_can_be_chosen),
    ];
    let two_with_full = [two[0], two[1], Need::FullIrqchip, Need::AcceptMode];
    let two_with_split = [two[0], two[1], Need::SplitIrqchip, Need::AcceptMode];

    let on_the_device: [(&str, Body); 14] = [
        ("row_87_info", || vfio_rows::row_87_info(&first())),
        ("row_88_unmask_before_trigger", || {
            vfio_rows::row_88_unmask_before_trigger(&first())
        }),
        ("row_89_malformed_requests", || {
            vfio_rows::row_89_malformed_requests(&first())
        }),
        ("row_89_closed_eventfd", closed_eventfd),
        ("row_90_one_unmask_eventfd", || {
            vfio_rows::row_90_one_unmask_eventfd(&first())
        }),
        ("row_91_one_signal_until_unmask", || {
            vfio_rows::row_91_one_signal_until_unmask(&first())
        }),
        ("row_92_unmask_with_the_line_high", || {
            vfio_rows::row_92_unmask_with_the_line_high(&first())
        }),
        ("row_93_unmask_with_the_line_low", || {
            vfio_rows::row_93_unmask_with_the_line_low(&first())
        }),
        ("row_94_the_mask_is_a_flag", || {
            vfio_rows::row_94_the_mask_is_a_flag(&first())
        }),
        ("row_101_asserts_while_masked", || {
            vfio_rows::row_101_asserts_while_masked(&first())
        }),
        ("row_102_no_trigger", || vfio_rows::row_102_no_trigger(&first())),
        ("row_105_msi_excludes_intx", || {
            vfio_rows::row_105_msi_excludes_intx(&first())
        }),
        ("trigger_exchange_keeps_the_mask", || {
            vfio_rows::trigger_exchange_keeps_the_mask(&first())
        }),
        ("disintx_suppresses", || vfio_rows::disintx_suppresses(&first())),
    ];
    let limit = Duration::from_secs(120);
    let mut suite = Suite::new("edu").serial();
    for (name, body) in on_the_device {
        suite = suite.test_within(limit, name, &one, body);
    }
    let few = 100;
    suite = rows::all(suite, "soft", &one, soft, reset, few);
    suite = rows::all(suite, "full", &with_full, full, reset, few);
    suite = rows::all(suite, "split", &with_split, split, reset, few);
    suite
        .test_within(limit, "full::five_thousand_on_each_path", &with_full, || {
            every_interrupt_was_the_hosts_too(|| rows::row_96_full_loop(full, COUNT), 2 * COUNT);
        })
        .test_within(limit, "split::five_thousand_on_each_path", &with_split, || {
            every_interrupt_was_the_hosts_too(|| rows::row_96_full_loop(split, COUNT), 2 * COUNT);
        })
        .test_within(limit, "soft::two_devices_on_one_line", &two, || {
            rows::two_devices_on_one_line(soft, second);
        })
        .test_within(limit, "full::two_devices_on_one_line", &two_with_full, || {
            rows::two_devices_on_one_line(full, second);
        })
        .test_within(limit, "split::two_devices_on_one_line", &two_with_split, || {
            rows::two_devices_on_one_line(split, second);
        })
        .test_within(limit, "split::row_163_directed_eois", &directed, || {
            rows::row_96_full_loop(|| (first(), SplitGuest::directing_eois()), 100);
        })
        .test("the_kernel_unmasks_by_itself", &with_full, the_kernel_unmasks_by_itself)
        .run()
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

/// A file that is not open, which only a kernel can be shown.
fn closed_eventfd() {
    let edu = first();
    // SAFETY: no file of this process has this number (its limit is lower), so that nobody's is borrowed; the kernel
    // takes a number and says EBADF.
    let closed = unsafe { BorrowedFd::borrow_raw(1 << 28) };
    let refused = |request: IrqSet<'_>| edu.set_irqs(&request).unwrap_err().raw_os_error();
    assert_eq!(refused(IrqSet::trigger(Some(closed))), Some(9));
    // Nothing came of it: INTx is not enabled.
    assert_eq!(refused(IrqSet::unmask()), Some(22));
    let trigger = new_eventfd();
    edu.set_irqs(&IrqSet::trigger(Some(trigger.as_fd()))).unwrap();
    assert_eq!(refused(IrqSet::unmask_eventfd(Some(closed))), Some(9));
    edu.set_irqs(&IrqSet::disable()).unwrap();
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
