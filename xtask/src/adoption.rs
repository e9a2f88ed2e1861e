// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask adoption`: the checks that the adopter of a single crate relies on.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::Workspace;
use crate::tally::Tally;
use crate::{consumers, dependencies, features, packages, platforms, vmms};

/// Runs all checks and prints the summary.
pub fn run() -> Result<ExitCode> {
    let tally = check(&Workspace::load()?)?;
    print!("\n{tally}");
    Ok(tally.exit_code())
}

/// Runs all checks: dependencies, features, packages, the oldest compiler and aarch64, the consumers, and the versions of
/// other VMMs.
pub fn check(workspace: &Workspace) -> Result<Tally> {
    let mut tally = dependencies::run(workspace)?;
    let checked = tally.timed("features", || features::run(workspace));
    tally.add(checked);
    tally.add(packages::run());
    let checked = tally.timed("platforms", || platforms::run(workspace));
    tally.add(checked);
    tally.add(consumers::run(workspace)?);
    tally.add(vmms::run(workspace)?);
    Ok(tally)
}
