// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance list, part E, on the model device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::guest::SoftGuest;
use common::model_rig::{level, pulse};
use common::{rows, vfio_rows};
use vfio_intx::ModelIntx;

fn soft() -> (Arc<ModelIntx>, SoftGuest) {
    (level(), SoftGuest::new())
}

#[test]
fn row_87_info() {
    vfio_rows::row_87_info(&level());
}

#[test]
fn row_88_unmask_before_trigger() {
    vfio_rows::row_88_unmask_before_trigger(&level());
}

#[test]
fn row_88_trigger_before_unmask() {
    rows::row_88_trigger_before_unmask(soft);
}

#[test]
fn row_89_malformed_requests() {
    vfio_rows::row_89_malformed_requests(&level());
}

#[test]
fn row_90_one_unmask_eventfd() {
    vfio_rows::row_90_one_unmask_eventfd(&level());
}

#[test]
fn row_91_one_signal_until_unmask() {
    vfio_rows::row_91_one_signal_until_unmask(&level());
}

#[test]
fn row_92_unmask_with_the_line_high() {
    vfio_rows::row_92_unmask_with_the_line_high(&level());
}

#[test]
fn row_93_unmask_with_the_line_low() {
    vfio_rows::row_93_unmask_with_the_line_low(&level());
}

#[test]
fn row_94_the_mask_is_a_flag() {
    vfio_rows::row_94_the_mask_is_a_flag(&level());
}

#[test]
fn row_96_full_loop() {
    rows::row_96_full_loop(soft, 10_000);
}

#[test]
fn without_an_eoi_nothing_more_comes() {
    rows::without_an_eoi_nothing_more_comes(soft);
}

#[test]
fn row_98_disable_at_any_moment() {
    rows::row_98_disable_at_any_moment(soft);
}

#[test]
fn row_99_route_change_at_any_moment() {
    rows::row_99_route_change_at_any_moment(soft);
}

#[test]
fn row_99_path_change_at_any_moment() {
    rows::row_99_path_change_at_any_moment(soft);
}

#[test]
fn row_101_asserts_while_masked() {
    vfio_rows::row_101_asserts_while_masked(&level());
}

#[test]
fn row_102_no_trigger() {
    vfio_rows::row_102_no_trigger(&level());
}

#[test]
fn row_104_no_access_after_eoi() {
    rows::row_104_no_access_after_eoi(soft);
}

#[test]
fn row_105_msi_excludes_intx() {
    vfio_rows::row_105_msi_excludes_intx(&level());
}

#[test]
fn row_105_msi_and_back() {
    rows::row_105_msi_and_back(soft);
}

#[test]
fn trigger_exchange_keeps_the_mask() {
    vfio_rows::trigger_exchange_keeps_the_mask(&level());
}

#[test]
fn disintx_suppresses() {
    vfio_rows::disintx_suppresses(&level());
}

#[test]
fn reset_at_any_moment() {
    rows::reset_at_any_moment(soft, |device| device.reset());
}

#[test]
fn a_reset_keeps_interrupt_disable() {
    rows::a_reset_keeps_interrupt_disable(soft, |device| device.reset());
}

#[test]
fn held_at_any_moment() {
    rows::held_at_any_moment(soft);
}

#[test]
fn asserted_before_the_pin_is_enabled() {
    rows::asserted_before_the_pin_is_enabled(soft);
}

#[test]
fn two_devices_on_one_line() {
    rows::two_devices_on_one_line(soft, level);
}

#[test]
fn save_and_restore_at_any_moment() {
    rows::save_and_restore_at_any_moment(soft);
}

#[test]
fn the_pulsing_model_is_one() {
    assert!(!common::Rig::interrupt(&pulse()).info().unwrap().automasked);
}

#[test]
fn row_99_registry_changes_path_at_any_moment() {
    rows::registry_changes_path_at_any_moment(soft);
}

#[test]
fn row_127_either_side_leaves_at_any_moment() {
    rows::either_side_leaves_at_any_moment(soft);
}
