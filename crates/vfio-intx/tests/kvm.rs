// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with the model device and a real KVM: irqfds, the kernel's IOAPIC or one in this process, and a
//! guest's EOI that signals the eventfd which unmasks the device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use common::kvm_guest::KvmGuest;
use common::model_rig::level;
use common::rows;
use common::split_guest::SplitGuest;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::ModelIntx;

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
        .run()
}
