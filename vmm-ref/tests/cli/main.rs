// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as its users meet it: exit status, standard output and standard error.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod forwarding;
mod interruption;
mod linux;
mod output;
mod probe;
mod program;
mod refusal;
mod runs;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use testkit::harness::Suite;
use testkit::need::Need;

/// How long a storm may take, where all is emulated.
const STORM: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let pic = [Need::GenuinePicEoi];
    let lapic = [Need::GenuineLapicEoi];
    let kvm = [Need::FullIrqchip];
    // One at a time: these are timed against one another's CPUs otherwise.
    Suite::new("vmm-ref::cli")
        .serial()
        .test(
            "no_arguments_make_ten_thousand_round_trips",
            &pic,
            runs::without_arguments,
        )
        .test("every_composition_works_on_the_8259", &pic, runs::on_the_pic)
        .test("every_composition_works_on_the_ioapic", &lapic, runs::on_the_ioapic)
        .test("every_composition_works_without_kvm", &[], runs::on_the_soft_machine)
        .test(
            "the_ioapic_loses_nothing_on_any_host",
            &kvm,
            runs::on_the_ioapic_of_any_host,
        )
        .test(
            "the_default_controller_is_one_whose_eoi_is_observable",
            &kvm,
            runs::default_controller,
        )
        .test(
            "the_negative_control_of_the_8259_sees_no_eoi",
            &pic,
            runs::control_on_the_pic,
        )
        .test(
            "the_negative_control_says_what_the_lapic_does",
            &kvm,
            runs::control_on_the_ioapic,
        )
        .test("the_connection_picks_the_kernel_loop", &pic, forwarding::in_the_kernel)
        .test(
            "the_connection_picks_what_this_process_has",
            &[],
            forwarding::in_this_process,
        )
        .test_within(STORM, "a_storm_without_kvm", &[], forwarding::storm_without_kvm)
        .test_within(STORM, "a_storm_in_the_kernel", &pic, forwarding::storm_in_the_kernel)
        .test_within(
            STORM,
            "a_storm_in_the_kernels_ioapic",
            &lapic,
            forwarding::storm_in_the_kernels_ioapic,
        )
        .test_within(
            STORM,
            "a_storm_on_a_split_irqchip",
            &lapic,
            forwarding::storm_on_a_split_irqchip,
        )
        .test("no_forwarder_makes_an_eoi_of_its_own", &pic, forwarding::control)
        .test("explain_says_the_path_and_why", &kvm, forwarding::explains)
        .test("json_has_the_documented_fields_in_order", &pic, output::json_fields)
        .test(
            "text_has_every_part_and_a_pipe_gets_no_escape",
            &pic,
            output::text_lines,
        )
        .test("a_reader_that_has_had_enough_is_no_error", &pic, output::broken_pipe)
        .test(
            "a_terminal_gets_colour_and_a_progress_bar",
            &pic,
            terminal::colour_and_bar,
        )
        .test("no_color_is_honoured_at_a_terminal", &pic, terminal::no_color)
        .test("ctrl_c_ends_with_the_summary_so_far", &pic, interruption::ctrl_c)
        .test("sigterm_does_the_same", &pic, interruption::sigterm)
        .test(
            "ctrl_c_during_the_negative_control",
            &pic,
            interruption::during_the_control,
        )
        .test("bad_input_gets_one_line_and_status_2", &[], bad_input::command_lines)
        .test("what_is_not_kvm_gets_one_line_and_status_2", &[], bad_input::devices)
        .test(
            "no_permission_gets_one_line_and_status_2",
            &[Need::Host("root", bad_input::is_root)],
            bad_input::permission,
        )
        .test(
            "a_kernel_that_refuses_gets_one_line_and_status_2",
            &kvm,
            refusal::ioctls,
        )
        .test(
            "without_an_ioapic_in_the_kernel_the_irqchip_is_split",
            &[Need::FullIrqchip, Need::SplitIrqchip],
            refusal::no_kernel_irqchip,
        )
        .test("a_guest_that_fails_ends_the_run", &kvm, refusal::kvm_run)
        .test(
            "what_a_linux_guest_cannot_be_made_of_gets_one_line",
            &[],
            linux::bad_input,
        )
        .test(
            "a_host_that_would_take_hours_says_so_at_once",
            &[Need::Host("a KVM that emulates", linux::is_slow)],
            linux::slow_host,
        )
        .test("probe_agrees_with_what_the_tests_find", &kvm, probe::agrees)
        .test("probe_without_kvm_says_so", &[], probe::without_kvm)
        .test("help_and_version_are_no_errors", &[], output::help)
        .run()
}
