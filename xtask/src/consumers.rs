// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packages of `consumers/`: somebody else's VMMs, each of which takes one or two of our crates and nothing more.
//!
//! They are no members of the workspace, so that cargo resolves each as it would in a repository of its own. They share one
//! target directory, because building the same dependencies once for each would prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{Workspace, cargo};
use crate::program;
use crate::tally::Tally;

/// Builds and runs each of them; one that cannot run here says so and is a skip.
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

/// The directories with a program in them, in the order of their names; the others are what those share.
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
