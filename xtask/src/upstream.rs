// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The patches of `upstream/`: faults of the crates that this workspace is built on, mended in their released sources.
//!
//! A series comes in pairs. The first patch of a pair adds tests and names them in a line `Tests: NAME, NAME`; they
//! fail, or do not build, until the second patch is applied.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::cargo::{Workspace, cargo, metadata};
use crate::patches::{self, apply, copy_tree, sorted, toml_string};

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

/// The results of the patches of one run.
#[derive(Debug, Default)]
struct Shown {
    passed: usize,
    failed: usize,
}

impl Shown {
    fn count(&mut self, good: bool) {
        self.passed += usize::from(good);
        self.failed += usize::from(!good);
    }

    fn row(&mut self, name: &str, what: &str, before: bool, after: bool) {
        self.count(!before && after);
        let say = |passes| if passes { "passes" } else { "fails" };
        println!("{name:<14} {:<7} {:<7} {what}", say(before), say(after));
    }
}

/// Applies every series and prints one row for each test.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let sources = released_sources()?;
    let here = workspace.target().join("upstream");
    let mut shown = Shown::default();
    let mut patched = Vec::new();
    println!("{:<14} {:<7} {:<7} test", "crate", "before", "after");
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
        apply_series(&name, &series, &copy, &here.join("target"), &mut shown)?;
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
    println!("{} passed, {} failed", shown.passed, shown.failed);
    Ok(if shown.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The directory of each dependency's released source, by name and version.
fn released_sources() -> Result<BTreeMap<(String, String), PathBuf>> {
    let metadata = metadata("--all-features")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let field = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    Ok(packages
        .iter()
        .filter_map(|package| {
            let manifest = PathBuf::from(field(package, "manifest_path"));
            let directory = manifest.parent()?.to_owned();
            Some(((field(package, "name"), field(package, "version")), directory))
        })
        .collect())
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

fn apply_series(name: &str, series: &Path, copy: &Path, target: &Path, shown: &mut Shown) -> Result<()> {
    let mut waiting: Vec<(String, bool)> = Vec::new();
    for patch in patches::series(series)? {
        apply(&patch, copy)?;
        let tests = tests_of(&patch)?;
        if tests.is_empty() {
            for (test, before) in waiting.drain(..) {
                let after = passes(&test, copy, target)?;
                shown.row(name, &test, before, after);
            }
        }
        for test in tests {
            let before = passes(&test, copy, target)?;
            waiting.push((test, before));
        }
    }
    match waiting.first() {
        Some((test, _)) => bail!("upstream/{name}: no patch mends what {test} tests"),
        None => Ok(()),
    }
}

/// The tests that a patch adds and names.
fn tests_of(patch: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(patch).with_context(|| format!("cannot read {}", patch.display()))?;
    let line = text
        .lines()
        .take_while(|line| *line != "---")
        .find_map(|line| line.strip_prefix("Tests: "));
    Ok(line
        .map(|names| names.split(',').map(|name| name.trim().to_owned()).collect())
        .unwrap_or_default())
}

/// Whether the tests whose names contain `test` build and pass, and there is at least one.
fn passes(test: &str, copy: &Path, target: &Path) -> Result<bool> {
    let output = cargo()
        .args(["test", "--quiet", "--lib", "--", test])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target)
        .stderr(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    let ran = !String::from_utf8_lossy(&output.stdout).contains("running 0 tests");
    Ok(output.status.success() && ran)
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

    #[test]
    fn a_test_that_passes_before_its_patch_counts_as_failed() {
        let mut shown = Shown::default();
        shown.row("x", "t", false, true);
        assert_eq!((shown.passed, shown.failed), (1, 0));
        shown.row("x", "t", true, true);
        shown.row("x", "t", false, false);
        assert_eq!((shown.passed, shown.failed), (1, 2));
    }
}
