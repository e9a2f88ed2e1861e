// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: the benchmarks, and the page that shows them.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::Workspace;
use crate::lab::Arch;
use crate::valgrind;

/// Measure round trips beside their floors, and make a page of it: target/bench/index.html.
///
/// The short set ends within five minutes on a quiet machine, after the programs are built. Criterion's benchmarks of
/// single operations come first; `cargo bench -p benches` runs all of criterion's, with its own report in
/// target/criterion. Valgrind is fetched when it is not installed. docs/benchmarks.md says what the figures mean.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                      the short set
  cargo xtask bench --full               every composition, many more round trips
  cargo xtask bench --compare old.json   and what has changed beyond noise
  cargo xtask bench --lab                in the lab, where the LAPIC's EOI is the guest's own: target/bench/lab.html
  cargo xtask bench --lab --only INTx    the ways of a VFIO device's INTx, which the lab has
  cargo xtask bench --lab --arch aarch64 --only kernel
                                         round trips through a vGIC
  cargo xtask bench --lab --only nic     a network card on INTx under Linux, beside QEMU")]
pub struct Options {
    /// Every composition, and more round trips
    #[arg(long)]
    full: bool,
    /// Print what has changed beyond noise since the run that wrote this JSON
    #[arg(long, value_name = "FILE")]
    compare: Option<String>,
    /// In the lab
    #[arg(long, conflicts_with = "compare")]
    lab: bool,
    /// With --lab: the processor of the emulated machine; the page is target/bench/lab-aarch64.html for aarch64
    #[arg(long, value_enum, default_value_t = Arch::X86_64, requires = "lab")]
    arch: Arch,
    /// Only the groups of round trips whose name contains this, and nothing else; or waiting; or nic, which takes half
    /// an hour
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// How often each VMM boots for --only nic [default: 10]
    #[arg(long, value_name = "N", requires = "only")]
    rounds: Option<u8>,
}

/// The criterion benchmarks that the page shows.
const SINGLE_OPERATIONS: [&str; 2] = ["irqchip_model", "ioevent"];

/// Criterion's options in the short set: a third of its usual time, and no plots of its own, which take longer than the
/// measurement. Its figures say how sure they are.
const QUICK: [&str; 5] = ["--warm-up-time", "0.3", "--measurement-time", "1", "--noplot"];

/// The time limit of a run in the lab, in seconds. The lab is slow, because the PC is emulated.
const LAB_LIMIT: &str = "3000";

pub fn run(options: &Options) -> Result<ExitCode> {
    let code = if options.lab { in_lab(options)? } else { here(options)? };
    Ok(ExitCode::from(code))
}

fn here(options: &Options) -> Result<u8> {
    let workspace = Workspace::load()?;
    // One build for all of them: cargo resolves the features of their dependencies alike, and compiles each once.
    let programs = workspace.build_benches("benches", &SINGLE_OPERATIONS)?;
    let program = |name: &str| {
        let found = programs.iter().find(|(target, _)| target == name);
        let mut command = Command::new(&found.with_context(|| format!("cargo built no {name}"))?.1);
        command.current_dir(workspace.root());
        Ok::<_, anyhow::Error>(command)
    };
    for bench in SINGLE_OPERATIONS.iter().filter(|_| options.only.is_none()) {
        let mut command = program(bench)?;
        command.arg("--bench").args(if options.full { &[][..] } else { &QUICK });
        match status(command.env("CARGO_TARGET_DIR", workspace.target()))? {
            0 => {}
            failed => bail!("{bench}: exit status {failed}"),
        }
    }
    let mut program = program("benches")?;
    if options.only.is_none() {
        match valgrind::provide(workspace.target()) {
            Ok(variables) => drop(program.envs(variables)),
            // The page says what has no figure.
            Err(error) => eprintln!("xtask: no valgrind: {error:#}"),
        }
    }
    program.args(options.full.then_some("--full"));
    program.args(only(options));
    if let Some(old) = &options.compare {
        program
            .arg("--compare")
            .arg(std::path::absolute(old).context("--compare")?);
    }
    status(&mut program)
}

fn in_lab(options: &Options) -> Result<u8> {
    let page = format!("target/bench/{}", options.arch.cached("lab"));
    let json = &format!("{page}.json");
    std::fs::create_dir_all("target/bench").context("target/bench")?;
    // The benchmarks of the network card start the program.
    match status(&mut cargo(&["build", "-q", "--release", "-p", "vmm-ref"]))? {
        0 => {}
        failed => return Ok(failed),
    }
    let mut program = cargo(&[
        "run",
        "-q",
        "-p",
        "xtask",
        "--",
        "lab",
        "--arch",
        options.arch.name(),
        "--time-limit",
        LAB_LIMIT,
        "--",
        "benches",
    ]);
    program
        .args(["--json", "-"])
        .args(options.full.then_some("--full"))
        .args(only(options));
    program.stdout(Stdio::from(File::create(json).with_context(|| json.clone())?));
    match status(&mut program)? {
        0 => status(&mut cargo(&[
            "run",
            "-q",
            "--release",
            "-p",
            "benches",
            "--",
            "page",
            json,
            &format!("{page}.html"),
        ])),
        failed => Ok(failed),
    }
}

fn only(options: &Options) -> Vec<String> {
    let only = options.only.iter().flat_map(|name| ["--only".to_owned(), name.clone()]);
    let rounds = options
        .rounds
        .iter()
        .flat_map(|n| ["--rounds".to_owned(), n.to_string()]);
    only.chain(rounds).collect()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    cargo
}

fn status(command: &mut Command) -> Result<u8> {
    let status = command.status().context("cannot run the program")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
