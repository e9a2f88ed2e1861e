// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packages of `consumers/`: models of other projects' VMMs, each of which takes only one or two crates of this
//! workspace.
//!
//! The packages are not members of the workspace, so that cargo resolves each package as in a repository of its own.
//! They share one target directory, so that common dependencies are built once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{Workspace, cargo};
use crate::program;
use crate::tally::Tally;

/// Builds and runs each package. A package that cannot run on this machine prints a skip line, and is counted as a
/// skip.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    let mut tally = Tally::default();
    for consumer in all(&workspace.root().join("consumers"))? {
        let name = consumer.file_name().unwrap_or_default().to_string_lossy();
        println!("\n     Running consumers/{name}");
        tally.add(program::run(
            &format!("consumers::{name}"),
            command(workspace, &consumer),
        )?);
    }
    Ok(tally)
}

/// The directories with a program, in the order of their names. The other directories are libraries that the programs
/// share.
fn all(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.join("src/main.rs").exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn command(workspace: &Workspace, consumer: &Path) -> Command {
    let mut command = cargo();
    command
        .args(["run", "--quiet"])
        .current_dir(consumer)
        .env("CARGO_TARGET_DIR", workspace.target().join("consumers"));
    command
}
