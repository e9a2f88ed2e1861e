// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, with the model device and a real KVM: resample irqfds, the kernel's IOAPIC, and a guest's EOI
//! that signals the eventfd which unmasks the device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::kvm_guest::KvmGuest;
use common::model_rig::level;
use common::rows;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::ModelIntx;

fn new() -> (Arc<ModelIntx>, KvmGuest) {
    (level(), KvmGuest::new())
}

fn main() -> ExitCode {
    let needs = &[Need::FullIrqchip, Need::AcceptMode];
    Suite::new("kvm")
        .test("row_88_trigger_before_unmask", needs, || {
            rows::row_88_trigger_before_unmask(new)
        })
        .test_within(Duration::from_secs(300), "row_96_full_loop", needs, || {
            rows::row_96_full_loop(new, 10_000);
        })
        .test("without_an_eoi_nothing_more_comes", needs, || {
            rows::without_an_eoi_nothing_more_comes(new);
        })
        .test("row_98_disable_at_any_moment", needs, || {
            rows::row_98_disable_at_any_moment(new)
        })
        .test("row_99_route_change_at_any_moment", needs, || {
            rows::row_99_route_change_at_any_moment(new);
        })
        .test("row_99_path_change_at_any_moment", needs, || {
            rows::row_99_path_change_at_any_moment(new);
        })
        .test("row_104_no_access_after_eoi", needs, || {
            rows::row_104_no_access_after_eoi(new)
        })
        .test("row_105_msi_and_back", needs, || rows::row_105_msi_and_back(new))
        .test("reset_at_any_moment", needs, || {
            rows::reset_at_any_moment(new, |device: &Arc<ModelIntx>| device.reset());
        })
        .test("held_at_any_moment", needs, || rows::held_at_any_moment(new))
        .test("asserted_before_the_pin_is_enabled", needs, || {
            rows::asserted_before_the_pin_is_enabled(new);
        })
        .test("two_devices_on_one_line", needs, || {
            rows::two_devices_on_one_line(new, level)
        })
        .test("save_and_restore_at_any_moment", needs, || {
            rows::save_and_restore_at_any_moment(new);
        })
        .run()
}
