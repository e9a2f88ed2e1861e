// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with a real PCI device behind the kernel's vfio-pci: QEMU's `edu`, in the lab. The
//! guest is one in software, or one on the PC's KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod device;
#[cfg(target_arch = "x86_64")]
mod pc;

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::guest::SoftGuest;
use common::{Rig, new_eventfd, rows, vfio_rows};
use device::{Edu, first, second};
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::irq_set::IrqSet;

type Body = fn();

/// The own time that a row may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The number of interrupts of a row whose count does not matter.
const FEW: u32 = 100;

fn soft() -> (Arc<Edu>, SoftGuest) {
    (first(), SoftGuest::new())
}

fn reset(edu: &Arc<Edu>) {
    edu.reset();
}

fn main() -> ExitCode {
    let one = [Need::Host("edu", device::probe_first)];
    let two = [one[0], Need::Host("a second edu", device::probe_second)];

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
    let mut suite = Suite::new("edu").serial();
    for (name, body) in on_the_device {
        suite = suite.test_within(LIMIT, name, &one, body);
    }
    suite = rows::all(suite, "soft", &one, soft, reset, FEW);
    suite = suite.test_within(LIMIT, "soft::two_devices_on_one_line", &two, || {
        rows::two_devices_on_one_line(soft, second);
    });
    #[cfg(target_arch = "x86_64")]
    {
        suite = pc::of_a_pc(suite);
    }
    suite.run()
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
