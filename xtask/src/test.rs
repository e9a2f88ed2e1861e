// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: every test of the workspace, with an honest count.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

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
/// is not a program's own. Before the summary comes what took longest.
///
/// Then come the checks of the documents (`cargo xtask documents`), of the imports (`cargo xtask imports`) and what
/// adopters rely on: each crate of `crates/`'s dependencies and features, the oldest compiler and aarch64, and the
/// packages of `consumers/`.
///
/// The tests that need KVM or VFIO are also built with --release and run in the lab, an emulated PC that has both:
/// beside the others where there are two CPUs and 6 GiB of memory to spare, and after them elsewhere. Where there can
/// be no lab that is one skip; with CI=true in the environment it is a failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                             every test
  cargo xtask test --no-lab                    without the emulated PC
  cargo xtask test -p interrupt-core           one package
  cargo xtask test --kernels                   the lab suite on each kernel, and a table of rows by kernel
  cargo xtask test --kernels --only 7.3 --json
  IRQ_TEST_REQUIRE_KVM=1 cargo xtask test      a KVM test that skips is a failure")]
pub struct Options {
    /// Test this package alone; may be given more than once
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,

    /// Leave the lab suite out (see `cargo xtask lab --help`)
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
        return kernels::run(&options.kernels);
    }
    let workspace = Workspace::load()?;
    let programs = workspace.build_tests(&options.packages)?;
    let mut total = Tally::default();
    let in_lab = lab::suite::packages(Arch::X86_64, &options.packages);
    let mut lab_suite = None;
    if !options.no_lab && !in_lab.is_empty() {
        match Lab::open(workspace.target(), &lab::Setup::of(Arch::X86_64)) {
            Ok(lab) => lab_suite = Some(LabSuite::begin(lab, &workspace, &in_lab)?),
            Err(error) if in_ci() => total.fail(format!("lab: {error:#}")),
            Err(error) => total.skip("lab", &format!("{error:#}")),
        }
    }
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
    if let Some(suite) = lab_suite {
        total.add(suite.end()?.prefixed("lab: "));
    }
    print!("\nlongest:\n{}\n{total}", total.longest(LONGEST));
    Ok(total.exit_code())
}

/// The lab suite, beside the tests of this machine if there is room for both.
enum LabSuite {
    Beside { suite: JoinHandle<Tally>, log: PathBuf },
    After { lab: Lab, programs: Vec<TestProgram> },
}

impl LabSuite {
    /// Builds the programs, and starts them when a second CPU and the memory for the PC are free.
    fn begin(lab: Lab, workspace: &Workspace, packages: &[String]) -> Result<Self> {
        let programs = lab::suite::build(workspace, Arch::X86_64, packages)?;
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        if cpus < 2 || available_memory() < ROOM {
            return Ok(Self::After { lab, programs });
        }
        let log = workspace.target().join("lab/suite.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        println!(
            "\nThe lab suite runs beside these tests; its output follows theirs, from {}",
            log.display()
        );
        let output: lab::suite::Output = Arc::new(Mutex::new(file));
        let suite = thread::spawn(move || lab::suite::run(&lab, &programs, lab::TIME_LIMIT, false, &output));
        Ok(Self::Beside { suite, log })
    }

    /// Waits for the end of the suite, and returns its count.
    fn end(self) -> Result<Tally> {
        match self {
            Self::After { lab, programs } => {
                let output: lab::suite::Output = Arc::new(Mutex::new(io::stdout()));
                Ok(lab::suite::run(&lab, &programs, lab::TIME_LIMIT, false, &output))
            }
            Self::Beside { suite, log } => {
                let Ok(tally) = suite.join() else {
                    bail!("the lab suite's thread panicked");
                };
                let mut text = File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
                io::copy(&mut text, &mut io::stdout()).context("cannot print the lab suite's output")?;
                Ok(tally)
            }
        }
    }
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
