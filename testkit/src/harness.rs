// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Suites of trials for `harness = false` test targets, on libtest-mimic, with needs, counted skips and time limits.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use testkit::harness::Suite;
//! use testkit::need::Need;
//!
//! fn main() -> ExitCode {
//!     Suite::new("resample")
//!         .test("line_falls_at_eoi", &[Need::FullIrqchip, Need::AcceptMode], || {
//!             assert_eq!(1 + 1, 2);
//!         })
//!         .run()
//! }
//! ```
//!
//! * A trial fails when it panics, and when it exceeds its limit of the program's own time ([`crate::progress`]), which
//!   excludes the time in which other programs use the CPUs. A trial runs on a thread of its own with the trial's name.
//!   A trial that hangs is reported as failed by name; its thread ends with the process.
//! * A trial whose need is not met is *ignored*, and after the summary this line goes to stdout, one for each:
//!   `skip: <suite>::<test>: <reason>`.
//! * A trial that meets another answer of the kernel than the conformance list's, and knows that answer, says so with
//!   [`differs`] and passes. After the summary this line goes to stdout, one for each: `differs: <suite>::<test>:
//!   <what>`.
//! * With [`REQUIRE_KVM`] set to 1, on a host that has `/dev/kvm`, a trial that would be skipped because a facility of
//!   KVM is missing ([`crate::need::Missing::facility`]) fails instead. A trial still skips if it needs a newer kernel
//!   or other hardware.
//! * The command line is libtest's (`--list`, a filter, `--exact`, `--test-threads`, ...).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::lab::in_lab;
use crate::need::{Missing, Need};
use crate::progress::{Meter, TICK};

/// Name of the environment variable under which a missing KVM facility is a failure.
pub const REQUIRE_KVM: &str = "IRQ_TEST_REQUIRE_KVM";

/// The default time limit of a trial, in the program's own time.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

type Body = Box<dyn FnOnce() + Send>;

struct Test {
    name: String,
    needs: Vec<Need>,
    limit: Duration,
    body: Body,
}

/// A named list of trials. See the [module](self).
#[must_use = "a suite does nothing until it is run"]
pub struct Suite {
    name: String,
    serial: bool,
    tests: Vec<Test>,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite")
            .field("name", &self.name)
            .field("serial", &self.serial)
            .field("tests", &self.tests.iter().map(|t| &t.name).collect::<Vec<_>>())
            .finish()
    }
}

impl Suite {
    /// An empty suite. Its name comes first in a skip line: use the name of the test target.
    pub fn new(name: impl Into<String>) -> Self {
        Suite {
            name: name.into(),
            serial: false,
            tests: Vec::new(),
        }
    }

    /// Runs one trial at a time: for suites that measure, or that count objects of the whole process, such as fds.
    pub fn serial(mut self) -> Self {
        self.serial = true;
        self
    }

    /// Adds a trial with [`TIME_LIMIT`].
    pub fn test(self, name: impl Into<String>, needs: &[Need], body: impl FnOnce() + Send + 'static) -> Self {
        self.test_within(TIME_LIMIT, name, needs, body)
    }

    /// Adds a trial with a limit of its own, in the program's own time.
    pub fn test_within(
        mut self,
        limit: Duration,
        name: impl Into<String>,
        needs: &[Need],
        body: impl FnOnce() + Send + 'static,
    ) -> Self {
        self.tests.push(Test {
            name: name.into(),
            needs: needs.to_vec(),
            limit,
            body: Box::new(body),
        });
        self
    }

    /// Runs the trials that the command line selects, prints the skip lines, and returns the exit code for `main`.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        if self.serial {
            arguments.test_threads = Some(1);
        }
        let skips = Skips::default();
        let trials = self
            .tests
            .into_iter()
            .map(|test| trial(&self.name, test, &skips))
            .collect();
        let conclusion = libtest_mimic::run(&arguments, trials);
        skips.print();
        for line in lock(&DIFFERENCES).drain(..) {
            println!("{line}");
        }
        conclusion.exit_code()
    }
}

/// The lines of [`differs`], printed at the end as the skip lines are.
static DIFFERENCES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says that this kernel answers otherwise than the conformance list, and how. Only the trial's own thread may say it,
/// because that thread has the trial's name.
///
/// # Panics
/// On a thread without a name.
pub fn differs(what: &str) {
    let thread = thread::current();
    let name = thread.name().expect("differs() belongs to the trial's own thread");
    let line = format!("differs: {name}: {what}");
    let mut lines = lock(&DIFFERENCES);
    if !lines.contains(&line) {
        lines.push(line);
    }
}

/// Locks a list of lines. A thread that panicked under the lock has left whole lines.
fn lock(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The skip lines. They are printed at the end, because libtest-mimic has an unfinished line on stdout while trials
/// run.
#[derive(Clone, Default)]
struct Skips(Arc<Mutex<Vec<String>>>);

impl Skips {
    fn add(&self, line: String) {
        lock(&self.0).push(line);
    }

    fn print(&self) {
        let mut lines = lock(&self.0);
        lines.sort();
        for line in lines.drain(..) {
            println!("{line}");
        }
    }
}

fn trial(suite: &str, test: Test, skips: &Skips) -> Trial {
    let full_name = format!("{suite}::{}", test.name);
    let skips = skips.clone();
    Trial::ignorable_test(test.name, move || {
        let verdict = within(test.limit, &full_name, move || match missing(&test.needs) {
            Some(missing) => Some(missing),
            None => {
                (test.body)();
                None
            }
        })?;
        match verdict {
            None => Ok(Completion::Completed),
            Some(missing) if missing.facility && kvm_is_required() => {
                Err(format!("{REQUIRE_KVM}=1 and this host has /dev/kvm, but: {}", missing.reason).into())
            }
            Some(missing) => {
                skips.add(format!("skip: {full_name}: {}", missing.reason));
                Ok(Completion::ignored_with(missing.reason))
            }
        }
    })
}

fn missing(needs: &[Need]) -> Option<Missing> {
    needs.iter().find_map(|need| need.probe().err())
}

fn kvm_is_required() -> bool {
    std::env::var_os(REQUIRE_KVM).is_some_and(|value| value == "1") && Path::new("/dev/kvm").exists()
}

fn within<T: Send + 'static>(
    limit: Duration,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failed> {
    let (done, result) = channel();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(body));
            // The receiver is gone only if the trial has already failed by its time limit.
            let _ = done.send(result);
        })
        .map_err(|e| format!("no thread for the trial: {e}"))?;
    // The lab does not see the load of the build machine, so its limit only catches a trial that sleeps for ever.
    // `cargo xtask` limits the time of the emulator.
    let limit = if in_lab() { limit * 10 } else { limit };
    let mut meter = Meter::new(std::process::id());
    let outcome = loop {
        match result.recv_timeout(limit.min(TICK)) {
            Err(RecvTimeoutError::Timeout) if meter.look().own < limit => {}
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => Err(format!("panicked: {}", message(panic.as_ref())).into()),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("{name} hangs: not done within {limit:?} of its own time").into())
        }
        Err(RecvTimeoutError::Disconnected) => Err(format!("{name}: its thread ended without a result").into()),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("with a payload that is no text")
}
