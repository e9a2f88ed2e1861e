// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The harness reports what happened: this program runs itself as a suite of trials that fail, hang and skip, and reads
//! the output.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a trial fails")]

use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testkit::harness::{REQUIRE_KVM, Suite, differs};
use testkit::need::Need;

/// Set for the program when it runs itself.
const INNER: &str = "TESTKIT_HARNESS_INNER";

fn main() -> ExitCode {
    if std::env::var_os(INNER).is_some() {
        return inner();
    }
    Suite::new("harness")
        .test("a_panic_is_a_failure_with_its_message", &[], a_panic_is_a_failure)
        .test("a_hang_is_a_failure_by_name", &[], a_hang_is_a_failure)
        .test("a_skip_has_a_line_of_its_own", &[], a_skip_has_a_line)
        .test(
            "a_missing_facility_fails_where_kvm_is_required",
            &[Need::Kvm],
            required_kvm,
        )
        .test("another_answer_is_a_pass_with_a_line", &[], another_answer)
        .test("what_is_filtered_out_or_listed_is_not_probed", &[], not_probed)
        .run()
}

fn inner() -> ExitCode {
    let elsewhere = Need::Host("a unicorn", || Err("not on this host".into()));
    // A body must not run when a need is missing, so each of these would fail.
    let must_not_run = || panic!("ran without what it needs");
    Suite::new("inner")
        .test("passes", &[Need::KernelAtLeast(2, 6)], || {
            differs("this kernel says no");
            differs("this kernel says no");
        })
        .test("panics", &[], || panic!("the answer is {}", 42))
        .test_within(Duration::from_millis(200), "hangs", &[], || {
            let (_keep, never) = mpsc::channel::<()>();
            let _ = never.recv();
        })
        .test("hardware_elsewhere", &[elsewhere], must_not_run)
        .test("future_kernel", &[Need::KernelAtLeast(1000, 0)], must_not_run)
        .test(
            "no_facility",
            &[Need::Facility("a full moon", || Err("it is new moon".into()))],
            must_not_run,
        )
        .run()
}

fn run(arguments: &[&str], require_kvm: bool) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).env(INNER, "1").env_remove(REQUIRE_KVM);
    if require_kvm {
        command.env(REQUIRE_KVM, "1");
    }
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn skip_lines(output: &Output) -> Vec<String> {
    stdout(output)
        .lines()
        .filter(|line| line.starts_with("skip: "))
        .map(String::from)
        .collect()
}

fn a_panic_is_a_failure() {
    let output = run(&["--exact", "panics"], false);
    assert_eq!(output.status.code(), Some(101));
    let text = stdout(&output);
    assert!(text.contains("panicked: the answer is 42"), "{text}");
    assert!(text.contains("1 failed"), "{text}");
}

fn a_hang_is_a_failure() {
    for threads in ["1", "2"] {
        let start = Instant::now();
        let output = run(&["--test-threads", threads, "s"], false);
        assert!(start.elapsed() < Duration::from_secs(10), "not stopped at its limit");
        assert_eq!(output.status.code(), Some(101));
        let text = stdout(&output);
        assert!(text.contains("inner::hangs hangs: not done within 200ms"), "{text}");
        assert!(text.contains("1 passed; 2 failed"), "the others still ran: {text}");
    }
}

fn a_skip_has_a_line() {
    for threads in ["1", "2"] {
        let output = run(
            &["--test-threads", threads, "--skip", "hangs", "--skip", "panics"],
            false,
        );
        assert_eq!(output.status.code(), Some(0));
        let skips = skip_lines(&output);
        assert_eq!(skips.len(), 3, "{skips:?}");
        assert!(
            skips[0].starts_with("skip: inner::future_kernel: needs Linux 1000.0, this is "),
            "{skips:?}"
        );
        assert_eq!(skips[1], "skip: inner::hardware_elsewhere: a unicorn: not on this host");
        assert_eq!(skips[2], "skip: inner::no_facility: a full moon: it is new moon");
        let text = stdout(&output);
        assert!(text.contains("1 passed; 0 failed; 3 ignored"), "{text}");
    }
}

fn another_answer() {
    let output = run(&["--exact", "passes"], false);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.contains("1 passed; 0 failed"), "{text}");
    assert_eq!(
        text.matches("\ndiffers: inner::passes: this kernel says no\n").count(),
        1,
        "{text}"
    );
}

fn required_kvm() {
    assert!(Path::new("/dev/kvm").exists());
    let output = run(&["--skip", "hangs", "--skip", "panics"], true);
    assert_eq!(output.status.code(), Some(101));
    let text = stdout(&output);
    assert!(text.contains("1 passed; 1 failed; 2 ignored"), "{text}");
    assert!(
        text.contains("IRQ_TEST_REQUIRE_KVM=1 and this host has /dev/kvm, but: a full moon: it is new moon"),
        "{text}"
    );
    assert_eq!(skip_lines(&output).len(), 2, "{text}");
}

fn not_probed() {
    for arguments in [&["--list"][..], &["--exact", "passes"]] {
        let output = run(arguments, false);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(skip_lines(&output), [] as [String; 0]);
    }
}
