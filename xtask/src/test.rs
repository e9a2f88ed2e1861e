// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: every test of the workspace, with an honest count.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::cargo::{TestProgram, Workspace};
use crate::lab::{self, Lab};
use crate::tally::Tally;
use crate::{adoption, citations, imports, program};

/// Run every test of the workspace and count passes, failures and skips apart.
///
/// Unit tests, integration tests, doctests and interrupt-core's model checks are built with all features and run one program
/// after the other. A test that
/// cannot run here announces itself on standard output as `skip: <suite>::<test>: <reason>`; such a test, and one that is
/// marked ignored, is a skip and never a pass. The last line is `N passed, N failed, N skipped`. The exit code is not 0 when
/// a test failed or when none ran. A test program is ended, and has failed, when it
/// takes more than 600 s of its own time, or 1200 s of CPU time. Time in which other work has the CPUs is not a program's own. Before the
/// summary comes what took longest.
///
/// Then come the checks of the documents (`cargo xtask documents`), of the imports (`cargo xtask imports`) and what adopters rely on: each crate of `crates/`'s dependencies and features, the oldest compiler and aarch64, and
/// the packages of `consumers/`.
///
/// Last, the tests that need KVM or VFIO are built with --release and run in the lab, an emulated PC that has both. Where
/// there can be no lab that is one skip; with CI=true in the environment it is a failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                             every test
  cargo xtask test --no-lab                    without the emulated PC
  cargo xtask test -p interrupt-core           one package
  IRQ_TEST_REQUIRE_KVM=1 cargo xtask test      a KVM test that skips is a failure")]
pub struct Options {
    /// Test this package alone; may be given more than once
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,

    /// Leave the lab suite out (see `cargo xtask lab --help`)
    #[arg(long)]
    no_lab: bool,
}

/// How many of the programs that took longest are printed.
const LONGEST: usize = 8;

/// Runs the tests and prints the summary.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let programs = workspace.build_tests(&options.packages)?;
    let mut total = Tally::default();
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
    let in_lab = lab::suite::packages(&options.packages);
    if !options.no_lab && !in_lab.is_empty() {
        total.add(lab_suite(&workspace, &in_lab)?);
    }
    print!("\nlongest:\n{}\n{total}", total.longest(LONGEST));
    Ok(total.exit_code())
}

/// Runs the lab suite of `packages`. Where there can be no lab that is a skip, and in CI a failure.
fn lab_suite(workspace: &Workspace, packages: &[String]) -> Result<Tally> {
    let mut tally = Tally::default();
    match Lab::open(workspace.target(), &lab::Setup::default()) {
        Ok(lab) => tally = lab::suite::run(&lab, workspace, packages, lab::TIME_LIMIT, false)?,
        Err(error) if in_ci() => tally.fail(format!("lab: {error:#}")),
        Err(error) => tally.skip("lab", &format!("{error:#}")),
    }
    Ok(tally)
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
