// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the crates of `crates/` with the oldest compiler that they promise to work with, and for aarch64.

use anyhow::Result;

use crate::cargo::{Workspace, cargo};
use crate::compiler::{AARCH64, Compiler, OLDEST};
use crate::tally::Tally;

/// The crates with devices of a PC, which are not built for aarch64.
const X86_ALONE: [&str; 1] = ["user-irqchip"];

/// Checks the oldest compiler and aarch64, or reports why it cannot.
pub fn run(workspace: &Workspace) -> Tally {
    let oldest = &format!("rustc {OLDEST}");
    println!("\n     The oldest compiler, and aarch64");
    let mut tally = Tally::default();
    match Compiler::provide(workspace.target()) {
        Ok(compiler) => {
            tally.one("platforms", oldest, check(&compiler, workspace, None));
            tally.one("platforms", AARCH64, check(&compiler, workspace, Some(AARCH64)));
        }
        Err(error) => {
            for platform in ["rust-version", AARCH64] {
                tally.skip(&format!("platforms::{platform}"), &format!("no {oldest}: {error:#}"));
            }
        }
    }
    tally
}

/// Builds every crate, with all features.
fn check(compiler: &Compiler, workspace: &Workspace, target: Option<&str>) -> Result<(), String> {
    let mut command = cargo();
    command
        .args(["check", "--quiet", "--locked", "--all-features"])
        .env("RUSTFLAGS", "-Dwarnings");
    for (package, _) in workspace.libraries() {
        if target.is_none() || !X86_ALONE.contains(&package) {
            command.args(["--package", package]);
        }
    }
    if let Some(target) = target {
        command.args(["--target", target]);
    }
    compiler.here(&mut command).map_err(|error| format!("{error:#}"))?;
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("it does not build".to_owned()),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
