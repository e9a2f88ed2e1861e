// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: every test of the workspace, with an honest count.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{TestProgram, Workspace};
use crate::lab::{self, Arch, Lab};
use crate::tally::Tally;
use crate::{adoption, citations, imports, kernels, program};

/// Run every test of the workspace and count passes, failures and skips apart.
///
/// Unit tests, integration tests, doctests and interrupt-core's model checks are built with all features and run one
/// program after the other. A test that cannot run here announces itself on standard output as `skip: <suite>::<test>:
/// <reason>`; such a test, and one that is marked ignored, is a skip and never a pass. The last line is `N passed, N
/// failed, N skipped`. The exit code is not 0 when a test failed or when none ran. A test program is ended, and has
/// failed, when it takes more than 600 s of its own time, or 1200 s of CPU time. Time in which other work has the CPUs
/// is not a program's own. Before the summary comes what took longest, builds too.
///
/// Then come the checks of the documents (`cargo xtask documents`), of the imports (`cargo xtask imports`) and what
/// adopters rely on: each crate of `crates/`'s dependencies and features, the oldest compiler and aarch64, and the
/// packages of `consumers/`.
///
/// The tests that need KVM or VFIO are also built with --release and run in the labs, an emulated PC and an emulated
/// arm64 machine that have both: beside the others where there are two CPUs and 6 GiB of memory to spare, and after them
/// elsewhere. Where there can be no lab that is one skip; with CI=true in the environment it is a failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                             every test
  cargo xtask test --no-lab                    without the emulated machines
  cargo xtask test -p interrupt-core           one package
  cargo xtask test --kernels                   the lab suite on each kernel, and a table of rows by kernel
  cargo xtask test --kernels --only 7.3 --json
  IRQ_TEST_REQUIRE_KVM=1 cargo xtask test      a KVM test that skips is a failure")]
pub struct Options {
    /// Test this package alone; may be given more than once
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,

    /// Leave the labs out (see `cargo xtask lab --help`)
    #[arg(long)]
    no_lab: bool,

    #[command(flatten)]
    kernels: kernels::Kernels,
}

/// The number of programs in the list of the slowest.
const LONGEST: usize = 8;

/// Runs the tests and prints the summary.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.kernels.wanted() {
        return kernels::run(&options.kernels, &options.packages);
    }
    let workspace = Workspace::load()?;
    let mut total = Tally::default();
    let programs = total.timed("build of the tests", || workspace.build_tests(&options.packages))?;
    let mut labs = Vec::new();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let packages = lab::suite::packages(arch, &options.packages);
        if options.no_lab || packages.is_empty() {
            continue;
        }
        match Lab::open(workspace.target(), &lab::Setup::of(arch)) {
            Ok(lab) => {
                let name = format!("build for the {}", arch.lab());
                let programs = total.timed(&name, || lab::suite::build(&workspace, arch, &packages))?;
                labs.push((lab, programs));
            }
            Err(error) if in_ci() => total.fail(format!("{}: {error:#}", arch.lab())),
            Err(error) => total.skip(arch.lab(), &format!("{error:#}")),
        }
    }
    let lab_suites = LabSuites::begin(labs, &workspace)?;
    for program in &programs {
        println!("\n{}", program.heading());
        total.add(program::run(&program.suite, command(program))?);
    }
    if let Some(doctests) = workspace.doctests(&options.packages) {
        total.add(program::run("doctests", doctests)?);
    }
    if let Some(model_checks) = workspace.model_checks(&options.packages) {
        println!("\ninterrupt-core: model checks");
        total.add(program::run("model-checks", model_checks)?);
    }
    if options.packages.is_empty() {
        total.add(citations::run(&workspace)?);
        total.add(imports::check(&workspace)?);
        total.add(adoption::check(&workspace)?);
    }
    total.add(lab_suites.end()?);
    print!("\nlongest:\n{}\n{total}", total.longest(LONGEST));
    Ok(total.exit_code())
}

/// The suites of the labs, one after the other, beside the tests of this machine if there is room for both.
enum LabSuites {
    Beside {
        suites: JoinHandle<Result<Tally>>,
        log: PathBuf,
    },
    After(Vec<(Lab, Vec<TestProgram>)>),
}

impl LabSuites {
    /// Starts the suites when a second CPU and the memory for the PC are free.
    fn begin(labs: Vec<(Lab, Vec<TestProgram>)>, workspace: &Workspace) -> Result<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        if labs.is_empty() || cpus < 2 || available_memory() < ROOM {
            return Ok(Self::After(labs));
        }
        let log = workspace.target().join("lab/suite.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        println!(
            "\nThe lab suite runs beside these tests; its output follows theirs, from {}",
            log.display()
        );
        let output: lab::suite::Output = Arc::new(Mutex::new(file));
        let suites = thread::spawn(move || run_suites(&labs, &output));
        Ok(Self::Beside { suites, log })
    }

    /// Waits for the end of the suites, and returns their count.
    fn end(self) -> Result<Tally> {
        match self {
            Self::After(labs) => {
                let output: lab::suite::Output = Arc::new(Mutex::new(io::stdout()));
                run_suites(&labs, &output)
            }
            Self::Beside { suites, log } => {
                let Ok(tally) = suites.join() else {
                    bail!("the lab suite's thread panicked");
                };
                let tally = tally?;
                let mut text = File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
                io::copy(&mut text, &mut io::stdout()).context("cannot print the lab suite's output")?;
                Ok(tally)
            }
        }
    }
}

fn run_suites(labs: &[(Lab, Vec<TestProgram>)], output: &lab::suite::Output) -> Result<Tally> {
    let mut total = Tally::default();
    for (lab, programs) in labs {
        let start = Instant::now();
        let tally = lab::suite::run(lab, programs, lab::TIME_LIMIT, false, output);
        let (name, seconds) = (lab.arch().lab(), start.elapsed().as_secs());
        let mut out = output.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(out, "\n{name}: {} in {seconds} s", tally.counts()).context("cannot write the lab suite's output")?;
        total.add(tally.prefixed(&format!("{name}: ")));
    }
    Ok(total)
}

/// The memory that the PC and the tests beside the PC may take, in bytes. The PC has 2 GiB.
const ROOM: u64 = 6 << 30;

/// The memory that is available for new programs, in bytes.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// The command that runs a test program where and how `cargo test` runs it.
fn command(program: &TestProgram) -> Command {
    let mut command = Command::new(&program.executable);
    command
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .env("CARGO_PKG_NAME", &program.package)
        .env("CARGO_PKG_VERSION", &program.version);
    command
}
