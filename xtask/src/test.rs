// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: every test of the workspace, with an honest count.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::cargo::{TestProgram, Workspace};
use crate::program;
use crate::tally::Tally;

/// Run every test of the workspace and count passes, failures and skips apart.
///
/// Unit tests, integration tests and doctests are built with all features and run one program after the other. A test that
/// cannot run here announces itself on standard output as `skip: <suite>::<test>: <reason>`; such a test, and one that is
/// marked ignored, is a skip and never a pass. The last line is `N passed, N failed, N skipped`. The exit code is not 0 when
/// a test failed or when none ran.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                             every test
  cargo xtask test -p interrupt-core           one package
  IRQ_TEST_REQUIRE_KVM=1 cargo xtask test      a KVM test that skips is a failure")]
pub struct Options {
    /// Test this package alone; may be given more than once
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
}

/// Runs the tests and prints the summary.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut total = Tally::default();
    for program in workspace.build_tests(&options.packages)? {
        println!(
            "\n     Running {} ({})",
            program.source.display(),
            program.package
        );
        total.add(program::run(&program.suite, command(&program))?);
    }
    if let Some(doctests) = workspace.doctests(&options.packages) {
        total.add(program::run("doctests", doctests)?);
    }
    print!("\n{total}");
    Ok(if total.all_is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
