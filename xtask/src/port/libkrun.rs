// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask port libkrun`: libkrun's IOAPIC as it is and with the patches of `ports/`, by the tests of the patches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::cargo::{Workspace, cargo, text};
use crate::pairs::{Shown, apply_pairs};
use crate::patches::{copy_tree, released_sources, toml_string};

/// What a guest can do to libkrun's IOAPIC for split irqchips, before and after the patches.
///
/// The sources of libkrun's crates are those that it has released: cargo fetches them from its registry. They are laid
/// out in target/ports as in libkrun's repository, and the patches of ports/libkrun are applied there. Each test that
/// a patch adds is run twice: it has to fail before the patch that mends what the test shows, and to pass after it. Last,
/// all tests of the crates are run. The tests need /dev/kvm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask port libkrun")]
pub struct Options {}

/// The release that the patches are for.
const RELEASE: &str = "0.1.0-1.19.7";

/// What the patches change and test.
const TESTED: [&str; 2] = ["krun-devices", "krun-vmm"];

/// The crates of this workspace that the patches use.
const CRATES: [&str; 2] = ["interrupt-core", "user-irqchip"];

pub fn run(Options {}: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let here = workspace.target().join("ports");
    let tree = here.join("libkrun");
    lay_out(&here, &tree)?;
    let mut config = Vec::new();
    for name in CRATES {
        let path = toml_string(&workspace.root().join("crates").join(name))?;
        config.push(format!("--config=patch.crates-io.{name}.path={path}"));
    }
    let cargo_test = || {
        let mut command = cargo();
        command
            .args(["test", "--quiet", "--lib"])
            .args(TESTED.map(|package| format!("--package={package}")))
            .args(&config)
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", here.join("target"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        Ok(command)
    };
    let mut shown = Shown::begin("VMM");
    let series = workspace.root().join("ports/libkrun");
    apply_pairs("libkrun", &series, &tree, cargo_test, &mut shown)?;
    let all = run_all(cargo_test()?)?;
    println!(
        "with all patches, the tests of {} {}",
        TESTED.join(" and "),
        if all { "pass" } else { "fail" }
    );
    shown.count(all);
    Ok(shown.end())
}

fn run_all(mut cargo_test: Command) -> Result<bool> {
    let output = cargo_test.output().context("cannot run cargo")?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(output.status.success())
}

/// Lays the released crates out as in libkrun's repository, with the versions of its lock file.
fn lay_out(here: &Path, tree: &Path) -> Result<()> {
    for ((name, version), source) in libkrun_crates(here)? {
        let folder = tree.join(path_in_repository(&source)?);
        copy_tree(&source, &folder, &[])?;
        // Cargo has rewritten the manifest for the release.
        copy(&source.join("Cargo.toml.orig"), &folder.join("Cargo.toml"))?;
        if name == "krun-vmm" && version == RELEASE {
            copy(&source.join("Cargo.lock"), &tree.join("Cargo.lock"))?;
        }
    }
    write(
        &tree.join("Cargo.toml"),
        "[workspace]\nresolver = \"2\"\nmembers = [\"src/devices\", \"src/vmm\"]\n",
    )
}

/// The released sources of all of libkrun's crates, the optional ones too, whose manifests cargo reads.
fn libkrun_crates(here: &Path) -> Result<Vec<((String, String), PathBuf)>> {
    let package = here.join("libkrun-sources");
    fs::create_dir_all(package.join("src")).with_context(|| format!("cannot create {}", package.display()))?;
    let features = r#"["gpu", "input", "tdx"]"#;
    write(
        &package.join("Cargo.toml"),
        &format!(
            "[package]\nname = \"libkrun-sources\"\nedition = \"2024\"\n[workspace]\n\
             [dependencies]\nkrun-vmm = {{ version = \"={RELEASE}\", features = {features} }}\n"
        ),
    )?;
    write(&package.join("src/lib.rs"), "")?;
    let manifest = package.join("Cargo.toml");
    let sources = released_sources(&format!("--manifest-path={}", manifest.display()))?;
    let of_libkrun = |((name, _), _): &((String, String), PathBuf)| name.starts_with("krun-");
    Ok(sources.into_iter().filter(of_libkrun).collect())
}

/// The folder of a released crate in the repository, as cargo has noted it in the release.
fn path_in_repository(source: &Path) -> Result<PathBuf> {
    let note = source.join(".cargo_vcs_info.json");
    let text_of = || -> Result<PathBuf> {
        let note: Value = serde_json::from_slice(&fs::read(&note)?)?;
        Ok(text(&note, "path_in_vcs")?.into())
    };
    text_of().with_context(|| format!("cannot read {}", note.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &content)
}

/// Leaves a file alone that has this content, so that cargo does not build again.
fn write(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
