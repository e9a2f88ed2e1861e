// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab test suite: the tests that run in the lab, and the separation of their output.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};

use super::arch::Arch;
use super::machine::{Hung, Lab, PartHung, Run, Sink};
use super::script::{exports, quote_path};
use crate::cargo::{TestProgram, Workspace};
use crate::progress::Spent;
use crate::tally::{Parser, Tally};

/// Packages, and of each the files of `tests/` that run in the lab.
type Suite = &'static [(&'static str, &'static [&'static str])];

/// The integration tests that run in the PC as well as on the build machine, those of KVM and VFIO.
const X86_64: Suite = &[
    (
        "ioevent",
        &["conformance", "equivalence", "hot_path", "refusals", "under_load"],
    ),
    ("kvm-irqfd", &["conformance", "cost", "failures", "library", "split"]),
    ("testkit", &["kernel_rows", "machine"]),
    ("user-irqchip", &["differential"]),
    ("vfio-intx", &["edu"]),
    ("vmm-ref", &["linux", "nic", "passthrough"]),
];

/// The same in the arm64 machine.
const AARCH64: Suite = &[
    ("kvm-irqfd", &["conformance", "cost", "failures", "gic", "library"]),
    ("vfio-intx", &["edu"]),
    ("vmm-ref", &["passthrough"]),
];

fn suite(arch: Arch) -> Suite {
    match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    }
}

/// The suite wants two PCI devices, to share one GSI.
const EDU: u8 = 2;

/// The packages of the suite among `wanted`, of which none means all.
pub fn packages(arch: Arch, wanted: &[String]) -> Vec<String> {
    suite(arch)
        .iter()
        .map(|(package, _)| (*package).to_owned())
        .filter(|package| wanted.is_empty() || wanted.contains(package))
        .collect()
}

/// Builds the suite's programs of `packages`, with --release: everything is slow in the lab.
pub fn build(workspace: &Workspace, arch: Arch, packages: &[String]) -> Result<Vec<TestProgram>> {
    let tests = |package: &str| {
        suite(arch)
            .iter()
            .find(|(listed, _)| *listed == package)
            .map_or(&[][..], |(_, tests)| tests)
    };
    let mut names: Vec<&str> = packages.iter().flat_map(|package| tests(package)).copied().collect();
    names.sort_unstable();
    names.dedup();
    let mut programs = workspace.build_released_tests(packages, &names, arch.compiler(workspace.target())?.as_ref())?;
    // Cargo builds the tests of these names in each of the packages.
    programs.retain(|program| tests(&program.package).contains(&program.suite.as_str()));
    Ok(programs)
}

/// The number of hangs of the PC that are not yet a failure. The emulator loses an interrupt now and then, most likely
/// one that comes while an exit for an open interrupt window is due: seen in tests that wait for such exits.
const HANGS: usize = 2;

/// The destination of the output of the suite's programs.
pub type Output = Arc<Mutex<dyn Write + Send>>;

/// The name of a program in the counts: two packages may have test programs of one name.
pub fn name(program: &TestProgram) -> String {
    format!("{}/{}", program.package, program.suite)
}

/// The tests that one CPU skips: the programs, and the filter that picks their tests.
const ON_TWO_CPUS: ([(&str, &str); 2], &str) = ([("testkit", "kernel_rows"), ("kvm-irqfd", "conformance")], "row_30");

/// How the programs run.
#[derive(Clone, Copy, Debug)]
struct Way {
    cpus: u8,
    /// Picks the tests; none means all.
    filter: &'static str,
}

/// Boots the lab with two CPUs, and runs those of the programs' tests that one CPU skips. Otherwise as [`run`].
pub fn run_on_two_cpus(lab: &Lab, programs: &[TestProgram], time_limit: Duration, output: &Output) -> Tally {
    let (wanted, filter) = ON_TWO_CPUS;
    let is_wanted = |program: &&TestProgram| wanted.contains(&(&program.package, &program.suite));
    let programs: Vec<TestProgram> = programs.iter().filter(is_wanted).cloned().collect();
    run_so(Way { cpus: 2, filter }, lab, &programs, time_limit, false, output)
}

/// Runs the suite's programs in the lab and counts what they report. Their output goes to `output` as it comes. When
/// the PC hangs, the PC is booted again for the programs that had not ended, and the output says so. When the lab
/// fails, the programs have failed.
pub fn run(lab: &Lab, programs: &[TestProgram], time_limit: Duration, verbose: bool, output: &Output) -> Tally {
    run_so(Way { cpus: 1, filter: "" }, lab, programs, time_limit, verbose, output)
}

fn run_so(
    way: Way,
    lab: &Lab,
    programs: &[TestProgram],
    time_limit: Duration,
    verbose: bool,
    output: &Output,
) -> Tally {
    let (mut rest, mut tally, mut hangs) = (programs, Tally::default(), 0);
    while !rest.is_empty() {
        let (mut count, trouble) = boot(way, lab, rest, time_limit, verbose, output);
        match trouble {
            Some(error) if error.is::<PartHung>() => {
                rest = &rest[count.begun..];
                tally.add(count.of_the_begun(&format!("{error:#}")));
            }
            Some(error) if error.is::<Hung>() && hangs < HANGS => {
                hangs += 1;
                rest = &rest[count.ended()..];
                tally.add(count.of_the_ended());
                eprintln!(
                    "lab: booting again for what had not ended: {} test programs",
                    rest.len()
                );
            }
            trouble => {
                let text = trouble.map(|error| format!("{error:#}"));
                let line = text.as_deref().map(|text| text.lines().next().unwrap_or_default());
                tally.add(count.finish(line));
                break;
            }
        }
    }
    tally
}

/// Runs `programs` in one boot. Returns their reports, and the reason if the boot ended before the programs.
fn boot(
    way: Way,
    lab: &Lab,
    programs: &[TestProgram],
    time_limit: Duration,
    verbose: bool,
    output: &Output,
) -> (Count, Option<Error>) {
    let count = Arc::new(Mutex::new(Count::new(lab.arch().lab(), programs)));
    let parts_begun = Arc::new(AtomicUsize::new(0));
    let stdout: Sink = {
        let (count, parts_begun, output) = (Arc::clone(&count), Arc::clone(&parts_begun), Arc::clone(output));
        Box::new(move |bytes| {
            let mut out = output.lock().unwrap_or_else(PoisonError::into_inner);
            let mut count = lock(&count);
            count.feed(bytes, &mut *out)?;
            parts_begun.store(count.begun, Ordering::Relaxed);
            out.flush()
        })
    };
    let run = Run {
        script: script(programs, way.filter),
        cpus: way.cpus,
        edu: EDU,
        time_limit,
        verbose,
        parts_begun,
    };
    let trouble = lab.run(&run, stdout).err();
    if let Some(error) = &trouble {
        eprintln!("lab: {error:#}");
    }
    let count = std::mem::replace(&mut *lock(&count), Count::new("", &[]));
    (count, trouble)
}

/// Locks the output. A thread that panicked under the lock has left a whole piece of output.
fn lock(count: &Mutex<Count>) -> MutexGuard<'_, Count> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a marker in the output of the script, and keeps it apart from the output of the tests.
const MARK: u8 = 0x1e;

/// The script that runs the programs one after the other, with `MARK begin` before each and `MARK end STATUS` after it.
fn script(programs: &[TestProgram], filter: &str) -> String {
    let mut script = exports(&[("IRQ_TEST_REQUIRE_KVM", "1")]);
    for program in programs {
        script += &format!(
            "printf '\\036begin\\n'\n\
             (cd {directory} && CARGO_MANIFEST_DIR={directory} CARGO_PKG_NAME={package} CARGO_PKG_VERSION={version} \
             exec {executable} {filter})\n\
             printf '\\036end %s\\n' $?\n",
            directory = quote_path(&program.directory),
            package = program.package,
            version = program.version,
            executable = quote_path(&program.executable),
        );
    }
    script
}

/// The meaning of the shell's `$?`.
fn how(status: u8) -> String {
    match status {
        129.. => format!("killed by signal {}", status - 128),
        _ => format!("exit status {status}"),
    }
}

/// Divides the output of the script by program.
#[derive(Debug)]
struct Count {
    /// Heading and suite of each program.
    programs: Vec<(String, String)>,
    /// The output of the program that is running.
    current: Option<Parser>,
    /// The number of programs that have begun.
    begun: usize,
    /// The time at which the running program began.
    start: Instant,
    /// A marker that has begun and is not complete.
    marker: Option<Vec<u8>>,
    tally: Tally,
}

impl Count {
    fn new(lab: &'static str, programs: &[TestProgram]) -> Self {
        let name = |program: &TestProgram| (format!("{} in the {lab}", program.heading()), name(program));
        Self {
            programs: programs.iter().map(name).collect(),
            current: None,
            begun: 0,
            start: Instant::now(),
            marker: None,
            tally: Tally::default(),
        }
    }

    /// Takes the next piece of output, cut anywhere, and passes the tests' own output on to `out`.
    fn feed(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(marker) = &mut self.marker {
                let end = rest
                    .iter()
                    .position(|&byte| byte == b'\n')
                    .map_or(rest.len(), |at| at + 1);
                marker.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
                if marker.ends_with(b"\n") {
                    let marker = self.marker.take().unwrap_or_default();
                    self.marker(&marker, out)?;
                }
            } else {
                let mark = rest.iter().position(|&byte| byte == MARK);
                self.output(&rest[..mark.unwrap_or(rest.len())], out)?;
                self.marker = mark.map(|_| Vec::new());
                rest = mark.map_or(&[], |at| &rest[at + 1..]);
            }
        }
        Ok(())
    }

    fn output(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        if let Some(parser) = &mut self.current {
            parser.feed(bytes);
        }
        out.write_all(bytes)
    }

    fn marker(&mut self, marker: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let text = String::from_utf8_lossy(marker);
        let words: Vec<&str> = text.split_whitespace().collect();
        match (words.as_slice(), self.current.take()) {
            (["begin"], None) => {
                let Some((heading, suite)) = self.programs.get(self.begun) else {
                    return Ok(());
                };
                self.current = Some(Parser::new(suite));
                self.start = Instant::now();
                self.begun += 1;
                writeln!(out, "\n{heading}")
            }
            (["end", status], Some(parser)) => {
                let status = status.parse().unwrap_or(u8::MAX);
                let suite = self.programs.get(self.begun - 1).map_or("", |(_, suite)| suite);
                let wall = self.start.elapsed();
                self.tally.took(
                    suite,
                    Spent {
                        wall,
                        ..Spent::default()
                    },
                );
                self.tally.add(parser.finish(status == 0, &how(status)));
                Ok(())
            }
            (_, current) => {
                // The byte belongs to a test's output.
                self.current = current;
                self.output(&[MARK], out)?;
                self.output(marker, out)
            }
        }
    }

    /// The number of programs that have ended.
    fn ended(&self) -> usize {
        self.begun - usize::from(self.current.is_some())
    }

    /// The count of the programs that have ended. Running programs do not count.
    fn of_the_ended(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// The count of the programs that have begun. The running program has failed because of `trouble`.
    fn of_the_begun(&mut self, trouble: &str) -> Tally {
        let mut tally = std::mem::take(&mut self.tally);
        if let Some(parser) = self.current.take() {
            tally.add(parser.finish(false, trouble));
        }
        tally
    }

    /// The count after the end of the lab; `trouble` is the reason if the lab ended before the script.
    fn finish(&mut self, trouble: Option<&str>) -> Tally {
        let mut tally = std::mem::take(&mut self.tally);
        if let Some(parser) = self.current.take() {
            tally.add(parser.finish(false, trouble.unwrap_or("the lab ended")));
        } else if let Some(trouble) = trouble {
            tally.fail(trouble.to_owned());
        }
        for (_, suite) in &self.programs[self.begun..] {
            tally.fail(format!("{suite}: did not run"));
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count() -> Count {
        let programs = ["a", "b"].map(|name| (format!("Running {name}"), name.to_owned()));
        Count {
            programs: programs.to_vec(),
            current: None,
            begun: 0,
            start: Instant::now(),
            marker: None,
            tally: Tally::default(),
        }
    }

    /// Feeds `output` in pieces of `size` bytes; returns the count after `trouble`, and the text that was shown.
    fn after(output: &str, size: usize, trouble: Option<&str>) -> (String, String) {
        let (mut count, mut out) = (count(), Vec::new());
        for piece in output.as_bytes().chunks(size) {
            count.feed(piece, &mut out).unwrap();
        }
        (count.finish(trouble).to_string(), String::from_utf8(out).unwrap())
    }

    const A_PASSES: &str =
        "running 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";

    #[test]
    fn programs_are_told_apart_and_markers_not_shown() {
        let output = format!("\x1ebegin\n{A_PASSES}no newline\x1eend 0\n\x1ebegin\nboo\n\x1eend 101\n");
        for size in [1, 2, 7, 1000] {
            let (tally, out) = after(&output, size, None);
            assert_eq!(tally, "failed:\n  b: exit status 101\n1 passed, 1 failed, 0 skipped\n");
            assert_eq!(out, format!("\nRunning a\n{A_PASSES}no newline\nRunning b\nboo\n"));
        }
    }

    #[test]
    fn an_announced_skip_is_counted() {
        let output = "\x1ebegin\nskip: a::x: no VFIO\n\x1eend 0\n\x1ebegin\n\x1eend 0\n";
        let (tally, _) = after(output, 4, None);
        assert_eq!(tally, "skipped:\n  a::x: no VFIO\n1 passed, 0 failed, 1 skipped\n");
    }

    #[test]
    fn a_mark_of_a_test_is_output() {
        let output = "\x1ebegin\n\x1ebegin\n\x1eend\n\x1eend 0\n\x1ebegin\n\x1eend 0\n";
        let (tally, out) = after(output, 3, None);
        assert_eq!(tally, "2 passed, 0 failed, 0 skipped\n");
        assert_eq!(out, "\nRunning a\n\x1ebegin\n\x1eend\n\nRunning b\n");
    }

    #[test]
    fn a_lab_that_ends_early_fails_what_it_did_not_finish() {
        let output = format!("\x1ebegin\n{A_PASSES}");
        let (tally, _) = after(&output, 5, Some("time limit"));
        assert_eq!(
            tally,
            "failed:\n  a: time limit\n  b: did not run\n1 passed, 2 failed, 0 skipped\n"
        );
        let (tally, _) = after("", 1, Some("no boot"));
        assert_eq!(
            tally,
            "failed:\n  no boot\n  a: did not run\n  b: did not run\n0 passed, 3 failed, 0 skipped\n"
        );
        let (tally, _) = after("\x1ebegin\n\x1eend 0\n", 1, None);
        assert_eq!(tally, "failed:\n  b: did not run\n1 passed, 1 failed, 0 skipped\n");
    }

    #[test]
    fn what_ran_when_the_pc_hung_does_not_count_and_runs_again() {
        let (mut count, mut out) = (count(), Vec::new());
        let output = format!("\x1ebegin\n{A_PASSES}\x1eend 0\n\x1ebegin\n{A_PASSES}");
        count.feed(output.as_bytes(), &mut out).unwrap();
        assert_eq!(count.ended(), 1);
        assert_eq!(count.of_the_ended().to_string(), "1 passed, 0 failed, 0 skipped\n");
    }

    #[test]
    fn a_program_that_hangs_is_named_and_the_rest_is_left_for_another_boot() {
        let (mut count, mut out) = (count(), Vec::new());
        count.feed(b"\x1ebegin\nrunning 1 test\ntest x ... ", &mut out).unwrap();
        assert_eq!(count.begun, 1);
        assert_eq!(
            count.of_the_begun(&PartHung.to_string()).to_string(),
            "failed:\n  a: ended during x before its summary: took more than 600 s of the PC's own time\n\
             0 passed, 1 failed, 0 skipped\n"
        );
    }
}
