// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The workspace's own tasks, run as `cargo xtask <task>`.

mod adoption;
mod bench;
mod cargo;
mod citations;
mod compiler;
mod conformance;
mod consumers;
mod debian;
mod dependencies;
mod features;
mod imports;
mod kernels;
mod lab;
mod packages;
mod pairs;
mod patches;
mod platforms;
mod port;
mod program;
#[path = "../../testkit/src/progress.rs"]
mod progress;
mod tally;
mod test;
mod tree;
mod upstream;
mod valgrind;
mod vmms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The workspace's own tasks.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Test(test::Options),
    /// Check what adopters rely on: dependencies, features, the oldest compiler, aarch64, the packages of consumers/,
    /// and the versions of other VMMs
    ///
    /// It is a part of `cargo xtask test`.
    Adoption,
    /// Check the documents: that each cited law, row, case and file exists, and that each row has a test
    ///
    /// It is a part of `cargo xtask test`.
    Documents,
    Imports(imports::Options),
    Bench(bench::Options),
    Lab(lab::Options),
    Upstream(upstream::Options),
    #[command(subcommand)]
    Port(port::Port),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Adoption => adoption::run(),
        Task::Documents => documents(),
        Task::Imports(options) => imports::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Lab(options) => Ok(lab::run(&options)),
        Task::Upstream(options) => upstream::run(&options),
        Task::Port(port) => port::run(&port),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the checks of the documents and prints the summary.
fn documents() -> anyhow::Result<ExitCode> {
    let tally = citations::run(&cargo::Workspace::load()?)?;
    print!("\n{tally}");
    Ok(tally.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// Clap finds contradictions among options only at run time.
    #[test]
    fn the_options_of_all_tasks_agree() {
        super::Cli::command().debug_assert();
    }
}
