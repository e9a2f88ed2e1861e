// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Series of patches in pairs. The first patch of a pair adds tests and names them in a line `Tests: NAME, NAME`; they
//! fail, or do not build, until the second patch is applied. Patches without tests may follow.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::patches::{apply, series};

/// The results of the patches of one run.
#[derive(Debug, Default)]
pub struct Shown {
    passed: usize,
    failed: usize,
}

impl Shown {
    /// Prints the head of the table.
    pub fn begin(of: &str) -> Self {
        println!("{of:<14} {:<7} {:<7} test", "before", "after");
        Self::default()
    }

    pub fn count(&mut self, good: bool) {
        self.passed += usize::from(good);
        self.failed += usize::from(!good);
    }

    fn row(&mut self, name: &str, what: &str, before: bool, after: bool) {
        self.count(!before && after);
        let say = |passes| if passes { "passes" } else { "fails" };
        println!("{name:<14} {:<7} {:<7} {what}", say(before), say(after));
    }

    /// Prints the sum.
    pub fn end(&self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Applies a series to `copy`, and runs each of its tests before and after the patch that mends what the test shows.
/// `cargo_test` is the `cargo test` of `copy` without the name of a test.
pub fn apply_pairs(
    name: &str,
    directory: &Path,
    copy: &Path,
    cargo_test: impl Fn() -> Result<Command>,
    shown: &mut Shown,
) -> Result<()> {
    let mut waiting: Vec<(String, bool)> = Vec::new();
    for patch in series(directory)? {
        apply(&patch, copy)?;
        let tests = tests_of(&patch)?;
        if tests.is_empty() {
            for (test, before) in waiting.drain(..) {
                let after = passes(cargo_test()?, &test)?;
                shown.row(name, &test, before, after);
            }
        }
        for test in tests {
            let before = passes(cargo_test()?, &test)?;
            waiting.push((test, before));
        }
    }
    match waiting.first() {
        Some((test, _)) => bail!("{}: no patch mends what {test} tests", directory.display()),
        None => Ok(()),
    }
}

/// The tests that a patch adds and names.
fn tests_of(patch: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(patch).with_context(|| format!("cannot read {}", patch.display()))?;
    let line = text
        .lines()
        .take_while(|line| *line != "---")
        .find_map(|line| line.strip_prefix("Tests: "));
    Ok(line
        .map(|names| names.split(',').map(|name| name.trim().to_owned()).collect())
        .unwrap_or_default())
}

/// Whether the tests whose names contain `test` build and pass, and there is at least one.
fn passes(mut cargo_test: Command, test: &str) -> Result<bool> {
    let output = cargo_test
        .args(["--", test])
        .stderr(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    Ok(output.status.success() && has_run_any(&String::from_utf8_lossy(&output.stdout)))
}

/// Whether one of the test programs that wrote this has run a test.
fn has_run_any(stdout: &str) -> bool {
    let mut programs = stdout.lines().filter_map(|line| line.strip_prefix("running "));
    programs.any(|tests| !tests.starts_with("0 "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_passes_before_its_patch_counts_as_failed() {
        let mut shown = Shown::default();
        shown.row("x", "t", false, true);
        assert_eq!((shown.passed, shown.failed), (1, 0));
        shown.row("x", "t", true, true);
        shown.row("x", "t", false, false);
        assert_eq!((shown.passed, shown.failed), (1, 2));
    }

    #[test]
    fn programs_without_tests_do_not_count_as_run() {
        assert!(!has_run_any("\nrunning 0 tests\n\nrunning 0 tests\n"));
        assert!(has_run_any("\nrunning 0 tests\n\nrunning 1 test\n.\n"));
    }
}
