// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The patches of `upstream/`: faults of the crates that this workspace is built on, mended in their released sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{Workspace, cargo};
use crate::pairs::{Shown, apply_pairs};
use crate::patches::{copy_tree, released_sources, sorted, toml_string};

/// Show that the patches of upstream/ mend what they say, in the released sources of those crates.
///
/// Each crate's source is copied from cargo's registry to target/upstream and patched there. Each test that a patch
/// adds is run twice: it has to fail before the patch that mends the fault, and to pass after it. Last, the workspace
/// is compiled against all patched crates.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask upstream                 every series, then the workspace
  cargo xtask upstream vfio_user       one crate's series alone")]
pub struct Options {
    /// The series of these crates alone
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
}

/// Applies every series and prints one row for each test.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let sources = released_sources("--all-features")?;
    let here = workspace.target().join("upstream");
    let mut shown = Shown::begin("crate");
    let mut patched = Vec::new();
    for series in all(&workspace.root().join("upstream"))? {
        let (name, version) = series_of(&series)?;
        if !options.crates.is_empty() && !options.crates.contains(&name) {
            continue;
        }
        let Some(source) = sources.get(&(name.clone(), version.clone())) else {
            bail!("upstream/{name}-{version}: the workspace's Cargo.lock has another version of {name}");
        };
        let copy = here.join(format!("{name}-{version}"));
        lay_out(source, &copy)?;
        let test = || {
            let mut command = cargo();
            command
                .args(["test", "--quiet", "--lib"])
                .current_dir(&copy)
                .env("CARGO_TARGET_DIR", here.join("target"));
            Ok(command)
        };
        apply_pairs(&name, &series, &copy, test, &mut shown)?;
        patched.push((name, copy));
    }
    if patched.is_empty() {
        bail!(
            "no series for {}; see the folders of upstream/",
            options.crates.join(", ")
        );
    }
    if options.crates.is_empty() {
        let builds = builds_against(&workspace, &patched)?;
        println!(
            "the workspace {} against the patched crates",
            if builds { "compiles" } else { "does not compile" }
        );
        shown.count(builds);
    }
    Ok(shown.end())
}

/// The folders of `upstream/`, one for each crate.
fn all(directory: &Path) -> Result<Vec<PathBuf>> {
    sorted(directory, |path| path.is_dir())
}

/// `upstream/NAME-VERSION`.
fn series_of(series: &Path) -> Result<(String, String)> {
    let folder = series.file_name().unwrap_or_default().to_string_lossy();
    let (name, version) = folder
        .rsplit_once('-')
        .with_context(|| format!("upstream/{folder} is not named CRATE-VERSION"))?;
    Ok((name.to_owned(), version.to_owned()))
}

/// Copies a released source to `copy`, as a workspace of its own.
fn lay_out(source: &Path, copy: &Path) -> Result<()> {
    copy_tree(source, copy, &[])?;
    let manifest = copy.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    fs::write(&manifest, text + "\n[workspace]\n").with_context(|| format!("cannot write {}", manifest.display()))
}

/// Compiles the workspace with the patched crates in the place of the released ones.
fn builds_against(workspace: &Workspace, patched: &[(String, PathBuf)]) -> Result<bool> {
    let mut command = cargo();
    command
        .args(["check", "--quiet", "--workspace", "--all-targets", "--all-features"])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.target().join("upstream/target"));
    for (name, copy) in patched {
        let path = toml_string(copy)?;
        command.args(["--config", &format!("patch.crates-io.{name}.path={path}")]);
    }
    // Cargo writes the patched crates into the lock file, and has no option to keep it from that.
    let lock = workspace.root().join("Cargo.lock");
    let before = fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let status = command.status().context("cannot run cargo");
    fs::write(&lock, before).with_context(|| format!("cannot restore {}", lock.display()))?;
    Ok(status?.success())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_named_for_its_crate_and_version() {
        let series = series_of(Path::new("upstream/vfio-ioctls-0.10.0")).unwrap();
        assert_eq!(series, ("vfio-ioctls".to_owned(), "0.10.0".to_owned()));
        assert!(series_of(Path::new("upstream/notes")).is_err());
    }
}
