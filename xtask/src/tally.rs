// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts the results of test programs, from their output.
//!
//! The parser understands libtest and libtest-mimic (`running N tests`, `test NAME ... ok`, `test result: ..`) and, in
//! any program, two lines that a test announces: `skip: <suite>::<test>: <reason>` when it found at run time that it
//! cannot run here, and `differs: <suite>::<test>: <what>` when this kernel has another answer than the conformance
//! list, and the test knows that answer too.
//! The totals come from `test result:`; the names come from the lines before it, which other output may have torn
//! apart.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use crate::progress::Spent;

/// The results of some test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: usize,
    /// The names of the passed tests, except those whose line other output tore apart.
    passes: Vec<String>,
    /// The failed tests, one entry each.
    failed: Vec<String>,
    /// The tests that did not run, with the reason, one entry each.
    skipped: Vec<(String, String)>,
    /// Those of the passed tests that met another answer than the conformance list's, with that answer.
    differing: Vec<(String, String)>,
    /// How long each program took.
    times: Vec<(String, Spent)>,
}

impl Tally {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.passes.extend(other.passes);
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.differing.extend(other.differing);
        self.times.extend(other.times);
    }

    /// Adds the time that one program or step took.
    pub fn took(&mut self, name: &str, spent: Spent) {
        self.times.push((name.to_owned(), spent));
    }

    /// Makes one step, and adds the time that it took.
    pub fn timed<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = step();
        let wall = start.elapsed();
        self.took(
            name,
            Spent {
                wall,
                ..Spent::default()
            },
        );
        done
    }

    /// The programs and steps that took longest, at most this many lines.
    pub fn longest(&self, lines: usize) -> String {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.wall));
        let line = |(name, spent): &&(String, Spent)| format!("  {name}: {spent}\n");
        times.iter().take(lines).map(line).collect()
    }

    /// Adds one check of this program, and prints its result.
    pub fn one(&mut self, suite: &str, name: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                println!("test {name} ... ok");
                self.passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED: {error}");
                self.failed.push(format!("{suite}::{name}: {error}"));
            }
        }
    }

    /// Adds one failure.
    pub fn fail(&mut self, test: String) {
        self.failed.push(test);
    }

    /// Adds one test that did not run, and why.
    pub fn skip(&mut self, test: &str, reason: &str) {
        self.skipped.push((test.to_owned(), reason.to_owned()));
    }

    /// The names of the passed tests.
    pub fn passes(&self) -> &[String] {
        &self.passes
    }

    /// The failed tests: each begins with the name, or with the suite and what happened to it.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// The names of the skipped tests, with the reason.
    pub fn skipped(&self) -> &[(String, String)] {
        &self.skipped
    }

    /// The passed tests that met another answer than the conformance list's, with that answer.
    pub fn differing(&self) -> &[(String, String)] {
        &self.differing
    }

    /// The same count with `prefix` before every name.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        for name in self
            .passes
            .iter_mut()
            .chain(&mut self.failed)
            .chain(self.skipped.iter_mut().map(|(test, _)| test))
            .chain(self.differing.iter_mut().map(|(test, _)| test))
            .chain(self.times.iter_mut().map(|(name, _)| name))
        {
            name.insert_str(0, prefix);
        }
        self
    }

    /// The last line of a summary.
    pub fn counts(&self) -> String {
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped.len());
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Success when at least one test ran and none failed.
    pub fn exit_code(&self) -> ExitCode {
        if self.all_is_well() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn all_is_well(&self) -> bool {
        self.passed > 0 && self.failed.is_empty()
    }
}

/// The skipped tests with their reasons, the other answers of this kernel, the failed tests, and `N passed, N failed, N
/// skipped` as the last line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.skipped.is_empty() {
            writeln!(f, "skipped:")?;
        }
        for (test, reason) in &self.skipped {
            writeln!(f, "  {test}: {reason}")?;
        }
        if !self.differing.is_empty() {
            writeln!(f, "differs from the conformance list:")?;
        }
        for (test, what) in &self.differing {
            writeln!(f, "  {test}: {what}")?;
        }
        if !self.failed.is_empty() {
            writeln!(f, "failed:")?;
        }
        for test in &self.failed {
            writeln!(f, "  {test}")?;
        }
        if self.passed == 0 && self.failed.is_empty() {
            writeln!(f, "no test ran")?;
        }
        writeln!(f, "{}", self.counts())
    }
}

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    Ignored(String),
}

impl Outcome {
    fn parse(text: &str) -> Option<Self> {
        match text.trim_end() {
            "ok" => Some(Self::Ok),
            "FAILED" => Some(Self::Failed),
            "ignored" => Some(Self::Ignored("ignored".to_owned())),
            other => {
                // The comma is libtest's, the parentheses are libtest-mimic's.
                let bracketed = || other.strip_prefix("ignored (")?.strip_suffix(')');
                let reason = other.strip_prefix("ignored, ").or_else(bracketed)?;
                Some(Self::Ignored(reason.to_owned()))
            }
        }
    }
}

/// The three totals of a `test result:` line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Totals {
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let number = counts.split(';').find_map(|part| part.trim().strip_suffix(what))?;
            number.trim_end().parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

/// Reads the output of one test program.
#[derive(Debug)]
pub struct Parser {
    suite: String,
    /// The line that is not complete yet.
    partial: Vec<u8>,
    /// Inside `running N tests` .. `test result:`.
    in_group: bool,
    /// Inside the captured output of failed tests, which may contain any text.
    in_failures: bool,
    /// The test whose outcome has not been printed yet.
    pending: Option<String>,
    outcomes: BTreeMap<String, Outcome>,
    announced: Vec<(String, String)>,
    differing: Vec<(String, String)>,
    totals: Option<Totals>,
}

impl Parser {
    /// A parser for a program whose tests are listed under `suite`.
    pub fn new(suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            partial: Vec::new(),
            in_group: false,
            in_failures: false,
            pending: None,
            outcomes: BTreeMap::new(),
            announced: Vec::new(),
            differing: Vec::new(),
            totals: None,
        }
    }

    /// Takes the next piece of the program's standard output, cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            }
        }
    }

    fn line(&mut self, line: &str) {
        if self.in_failures {
            // Only the real end of a failed run leads out; a captured "test result: ok" does not.
            if line.starts_with("test result: FAILED") {
                self.end_group(line);
            }
        } else if line == "failures:" && self.in_group {
            self.in_failures = true;
        } else if let Some(difference) = announced("differs: ", line) {
            self.differing.push(difference);
            self.pending = test_line(line).map(|(name, _)| name).or(self.pending.take());
        } else if let Some(skip) = announced("skip: ", line) {
            if !self.announced.iter().any(|(test, _)| *test == skip.0) {
                self.announced.push(skip);
            }
            self.pending = test_line(line).map(|(name, _)| name).or(self.pending.take());
        } else if line.starts_with("test result: ") {
            self.end_group(line);
        } else if line.starts_with("running ") && line.trim_end_matches('s').ends_with(" test") {
            self.in_group = true;
        } else if let Some((name, rest)) = test_line(line) {
            match Outcome::parse(rest) {
                Some(outcome) => _ = self.outcomes.insert(name, outcome),
                None => self.pending = Some(name),
            }
        } else if let Some(outcome) = Outcome::parse(line) {
            if let Some(name) = self.pending.take() {
                self.outcomes.insert(name, outcome);
            }
        }
    }

    fn end_group(&mut self, line: &str) {
        let Some(group) = Totals::parse(line) else {
            return;
        };
        let totals = self.totals.get_or_insert_default();
        totals.passed += group.passed;
        totals.failed += group.failed;
        totals.ignored += group.ignored;
        self.in_group = false;
        self.in_failures = false;
        self.pending = None;
    }

    /// The count, once the program has ended: `success` and `how` are its exit status.
    ///
    /// A program that prints no `test result:` is one test by itself. A program that ends in the middle of its tests,
    /// or with a failing status and no failed test, is a failure.
    pub fn finish(mut self, success: bool, how: &str) -> Tally {
        if !self.partial.is_empty() {
            self.feed(b"\n");
        }
        let suite = std::mem::take(&mut self.suite);
        let seen = |outcome: fn(&Outcome) -> bool| self.outcomes.values().filter(|o| outcome(o)).count();
        let (seen_ok, seen_failed, seen_ignored) = (
            seen(|o| *o == Outcome::Ok),
            seen(|o| *o == Outcome::Failed),
            seen(|o| matches!(o, Outcome::Ignored(_))),
        );
        let reported = self.totals.is_some() || self.in_group;
        let mut totals = self.totals.take().unwrap_or_default();
        if self.in_group {
            // The program died in the middle: count the results so far.
            totals = Totals {
                passed: seen_ok,
                failed: seen_failed,
                ignored: seen_ignored,
            };
        }

        let mut tally = Tally {
            passed: totals.passed,
            ..Tally::default()
        };
        for (test, what) in self.differing {
            let name = self.outcomes.keys().find(|name| is_named(&test, name));
            tally
                .differing
                .push((name.map_or(test, |name| format!("{suite}::{name}")), what));
        }
        // Tests that the totals count and whose line was torn apart.
        let mut unseen_ok = totals.passed.saturating_sub(seen_ok);
        let mut unseen_ignored = totals.ignored.saturating_sub(seen_ignored);
        for (name, outcome) in &self.outcomes {
            match outcome {
                // A test that announced its skip did not pass.
                Outcome::Ok if self.announced.iter().any(|(test, _)| is_named(test, name)) => {}
                Outcome::Ok => tally.passes.push(format!("{suite}::{name}")),
                Outcome::Failed => tally.failed.push(format!("{suite}::{name}")),
                Outcome::Ignored(reason) => {
                    // A test that announced its skip and then reported itself ignored is one skip, listed below.
                    if !self.announced.iter().any(|(test, _)| is_named(test, name)) {
                        tally.skipped.push((format!("{suite}::{name}"), reason.clone()));
                    }
                }
            }
        }
        for (test, reason) in self.announced {
            match self.outcomes.iter().find(|(name, _)| is_named(&test, name)) {
                Some((_, Outcome::Failed)) => continue,
                Some((_, Outcome::Ignored(_))) => {}
                Some((_, Outcome::Ok)) => tally.passed -= 1,
                None if unseen_ignored > 0 => unseen_ignored -= 1,
                None if unseen_ok > 0 => {
                    unseen_ok -= 1;
                    tally.passed -= 1;
                }
                None => {}
            }
            let name = self.outcomes.keys().find(|name| is_named(&test, name));
            let test = name.map_or(test, |name| format!("{suite}::{name}"));
            tally.skipped.push((test, reason));
        }
        for _ in 0..unseen_ignored {
            tally.skipped.push((format!("{suite}::?"), "ignored".to_owned()));
        }
        for _ in seen_failed..totals.failed {
            tally.failed.push(format!("{suite}::?"));
        }

        if self.in_group {
            let during = self.pending.map(|name| format!(" during {name}")).unwrap_or_default();
            tally
                .failed
                .push(format!("{suite}: ended{during} before its summary: {how}"));
        } else if !success && tally.failed.is_empty() {
            tally.failed.push(format!("{suite}: {how}"));
        } else if !reported && tally.skipped.is_empty() && tally.failed.is_empty() {
            tally.passed += 1;
        }
        tally
    }
}

/// Whether the announced test `id`, `<suite>::<test>`, is the test that the harness calls `name`.
fn is_named(id: &str, name: &str) -> bool {
    id == name || id.strip_suffix(name).is_some_and(|suite| suite.ends_with("::"))
}

/// Name and rest of a line `test NAME ... REST`.
fn test_line(line: &str) -> Option<(String, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name.trim_end().to_owned(), rest))
}

/// Test and reason of a line `<what><suite>::<test>: <reason>`, also behind a `test NAME ... ` that was being printed.
fn announced(what: &str, line: &str) -> Option<(String, String)> {
    let line = test_line(line).map_or(line, |(_, rest)| rest);
    let (test, reason) = line.strip_prefix(what)?.split_once(": ")?;
    test.contains("::").then(|| (test.to_owned(), reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(output: &str) -> Tally {
        count_ended(output, true)
    }

    fn count_ended(output: &str, success: bool) -> Tally {
        let mut parser = Parser::new("s");
        parser.feed(output.as_bytes());
        Tally {
            passes: Vec::new(), // the test of the names looks at them
            ..parser.finish(success, "exit status: 101")
        }
    }

    #[test]
    fn passes_have_names_and_a_difference_is_no_skip() {
        let output = "running 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... ok\n\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\n\
             skip: s::b: no KVM\ndiffers: package::s::c: the second is accepted\n";
        let mut parser = Parser::new("s");
        parser.feed(output.as_bytes());
        let tally = parser.finish(true, "");
        assert_eq!(tally.passes(), ["s::a", "s::c"]);
        assert_eq!(tally.differing(), [skip("s::c", "the second is accepted")]);
        assert!(
            tally
                .to_string()
                .ends_with("list:\n  s::c: the second is accepted\n2 passed, 0 failed, 1 skipped\n")
        );
    }

    fn skip(test: &str, reason: &str) -> (String, String) {
        (test.to_owned(), reason.to_owned())
    }

    const RESULT: &str = "finished in 0.00s";

    #[test]
    fn libtest_counts_ignored_as_skipped() {
        let tally = count(&format!(
            "\nrunning 4 tests\ntest a::b ... ok\ntest c - should panic ... ok\ntest d ... ignored\n\
             test e ... ignored, takes an hour\n\n\
             test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; {RESULT}\n\n"
        ));
        let skipped = vec![skip("s::d", "ignored"), skip("s::e", "takes an hour")];
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: vec![],
                skipped,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn an_announced_skip_is_not_a_pass() {
        // libtest-mimic pads the names, and prints what a test prints.
        let tally = count(&format!(
            "running 2 tests\nskip: s::needs_kvm: no /dev/kvm: ENOENT\n\
             test needs_kvm ... ok\ntest other     ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
        ));
        let skipped = vec![skip("s::needs_kvm", "no /dev/kvm: ENOENT")];
        assert_eq!(
            tally,
            Tally {
                passed: 1,
                failed: vec![],
                skipped,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_skip_announced_and_reported_ignored_counts_once() {
        let tally = count(&format!(
            "running 2 tests\nskip: s::a: no /dev/kvm\nskip: s::a: no /dev/kvm\n\
             test a ... ignored (no /dev/kvm)\ntest b ... ignored (no VFIO)\n\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; {RESULT}\n"
        ));
        assert_eq!(tally.skipped, [skip("s::b", "no VFIO"), skip("s::a", "no /dev/kvm")]);
        assert!(!tally.all_is_well());
    }

    #[test]
    fn torn_lines_do_not_change_the_totals() {
        // One thread: the announcement and other output come between a test's name and its outcome.
        let tally = count(&format!(
            "running 3 tests\ntest a ... skip: s::a: no KVM\nok\ntest b ... a word from b ok\ntest c ... \nok\n\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
        ));
        assert_eq!(
            tally,
            Tally {
                passed: 2,
                failed: vec![],
                skipped: vec![skip("s::a", "no KVM")],
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_torn_failure_keeps_its_name() {
        let tally = count_ended(
            &format!(
                "running 1 test\ntest a ... skip: s::a: no KVM\nFAILED\n\nfailures:\n\nfailures:\n    a\n\n\
                 test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
            ),
            false,
        );
        assert_eq!(
            tally,
            Tally {
                failed: vec!["s::a".to_owned()],
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_lost_line_of_an_ignored_test_is_one_skip() {
        let tally = count(&format!(
            "running 2 tests\nskip: s::a: no KVM\nnoise test a ... ignored\nnoise test b ... ignored\n\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; {RESULT}\n"
        ));
        assert_eq!(tally.skipped, [skip("s::a", "no KVM"), skip("s::?", "ignored")]);
    }

    #[test]
    fn a_skip_whose_line_is_lost_is_still_no_pass() {
        let tally = count(&format!(
            "running 2 tests\nskip: s::a: no KVM\nnoise test a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
        ));
        assert_eq!(
            tally,
            Tally {
                passed: 1,
                failed: vec![],
                skipped: vec![skip("s::a", "no KVM")],
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_failed_test_is_named_and_its_captured_output_is_not_counted() {
        let tally = count_ended(
            &format!(
                "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\n\
                 test result: ok. 70 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                 test x ... ok\nskip: s::y: captured\n\nfailures:\n    b\n\n\
                 test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
            ),
            false,
        );
        assert_eq!(
            tally,
            Tally {
                passed: 1,
                failed: vec!["s::b".to_owned()],
                ..Tally::default()
            }
        );
        assert!(!tally.all_is_well());
    }

    #[test]
    fn a_skip_does_not_excuse_a_failure() {
        let tally = count_ended(
            &format!(
                "running 1 test\nskip: s::a: no KVM\ntest a ... FAILED\n\nfailures:\n\nfailures:\n    a\n\n\
                 test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; {RESULT}\n"
            ),
            false,
        );
        assert_eq!(
            tally,
            Tally {
                passed: 0,
                failed: vec!["s::a".to_owned()],
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_program_that_dies_in_the_middle_has_failed() {
        let tally = count_ended("running 3 tests\ntest a ... ok\ntest b ... \n", false);
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, ["s: ended during b before its summary: exit status: 101"]);
        // Also when it says that all is well.
        assert_eq!(count("running 3 tests\ntest a ... ok\n").failed.len(), 1);
    }

    #[test]
    fn a_failing_status_is_a_failure_whatever_was_printed() {
        let tally = count_ended(
            &format!("running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; {RESULT}\n"),
            false,
        );
        assert_eq!(tally.failed, ["s: exit status: 101"]);
        assert_eq!(count_ended("", false).failed, ["s: exit status: 101"]);
    }

    #[test]
    fn several_groups_add_up() {
        // Doctests: one group per package, and one for those that cannot be merged.
        let group =
            |n: usize| format!("running {n} tests\n\ntest result: ok. {n} passed; 0 failed; 0 ignored; 0 measured\n");
        assert_eq!(count(&(group(2) + &group(3))).passed, 5);
    }

    #[test]
    fn a_program_without_a_harness_is_one_test() {
        assert_eq!(
            count("hello\n"),
            Tally {
                passed: 1,
                ..Tally::default()
            }
        );
        let tally = count("skip: s::all: no VFIO");
        assert_eq!(
            tally,
            Tally {
                skipped: vec![skip("s::all", "no VFIO")],
                ..Tally::default()
            }
        );
        // An empty harness is none.
        assert_eq!(
            count("running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n").passed,
            0
        );
    }

    #[test]
    fn prose_that_begins_with_skip_is_no_skip() {
        assert_eq!(announced("skip: ", "skip: this one: for now"), None);
        assert_eq!(announced("skip: ", "skip: a::b"), None);
        assert_eq!(
            announced("skip: ", "skip: a::b::c d: r: s"),
            Some(skip("a::b::c d", "r: s"))
        );
    }

    #[test]
    fn input_may_be_cut_anywhere() {
        let output = "running 1 test\ntest ü ... ignored, wörd\n\ntest result: ok. 0 passed; 0 failed; 1 ignored; x\n";
        let whole = count(output);
        let mut parser = Parser::new("s");
        output.as_bytes().chunks(1).for_each(|byte| parser.feed(byte));
        assert_eq!(parser.finish(true, ""), whole);
        assert_eq!(whole.skipped, [skip("s::ü", "wörd")]);
    }

    #[test]
    fn the_summary_ends_with_the_plain_line() {
        let tally = Tally {
            passed: 2,
            failed: vec!["s::b".to_owned()],
            skipped: vec![skip("s::a", "no KVM")],
            ..Tally::default()
        };
        assert_eq!(
            tally.to_string(),
            "skipped:\n  s::a: no KVM\nfailed:\n  s::b\n2 passed, 1 failed, 1 skipped\n"
        );
        assert_eq!(
            Tally::default().to_string(),
            "no test ran\n0 passed, 0 failed, 0 skipped\n"
        );
    }

    #[test]
    fn what_took_longest_comes_first() {
        let spent = |wall| Spent {
            wall: std::time::Duration::from_secs(wall),
            ..Spent::default()
        };
        let mut tally = Tally::default();
        for (name, wall) in [("a", 1), ("b", 3), ("c", 2)] {
            tally.took(name, spent(wall));
        }
        let text = tally.prefixed("lab: ").longest(2);
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.rsplit_once(": "))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["  lab: b", "  lab: c"]);
    }
}
