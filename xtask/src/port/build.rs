// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two source trees of a VMM, and the programs that are built from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{Workspace, cargo};
use crate::patches::{apply, copy_tree, series, sorted, toml_string};

/// The crates of this workspace that the patches use.
const CRATES: [&str; 3] = ["interrupt-core", "user-irqchip", "vfio-intx"];

/// The packages that the patches change.
const CHANGED: [&str; 4] = ["devices", "pci", "vm-device", "vmm"];

/// What a checkout has beside its sources.
const NO_SOURCES: [&str; 2] = [".git", "target"];

/// The VMM's sources as they are and patched, in target/ports.
#[derive(Debug)]
pub struct Trees {
    upstream: PathBuf,
    patched: PathBuf,
    series: PathBuf,
    target: PathBuf,
    micro_http: Option<PathBuf>,
    crates: PathBuf,
    release: bool,
}

impl Trees {
    /// Copies the sources, and applies the patches to one copy.
    pub fn lay_out(workspace: &Workspace, source: &Path, micro_http: Option<&Path>, release: bool) -> Result<Self> {
        let here = workspace.target().join("ports");
        let trees = Self {
            upstream: here.join("cloud-hypervisor"),
            patched: here.join("cloud-hypervisor-patched"),
            series: workspace.root().join("ports/cloud-hypervisor"),
            target: here.join("target"),
            micro_http: micro_http.map(|_| here.join("micro-http")),
            crates: workspace.root().join("crates"),
            release,
        };
        lay_out(source, &trees.upstream, "vmm/Cargo.toml")?;
        if let (Some(source), Some(tree)) = (micro_http, &trees.micro_http) {
            lay_out(source, tree, "Cargo.toml")?;
        }
        // The patches go to a third tree, so that a file that they leave alone stays untouched in the second.
        let scratch = trees.scratch()?;
        for patch in series(&trees.series)? {
            apply(&patch, &scratch)
                .with_context(|| format!("is {} the commit of ports/README.md?", source.display()))?;
        }
        copy_tree(&scratch, &trees.patched, &[])?;
        Ok(trees)
    }

    /// A copy of the sources that nothing is built in.
    fn scratch(&self) -> Result<PathBuf> {
        let scratch = self.upstream.with_file_name("scratch");
        copy_tree(&self.upstream, &scratch, &[])?;
        Ok(scratch)
    }

    pub fn build_upstream(&self) -> Result<PathBuf> {
        self.build(&self.upstream, "upstream")
    }

    pub fn build_patched(&self) -> Result<PathBuf> {
        self.build(&self.patched, "patched")
    }

    /// Builds the program, and keeps it under a name of its own.
    fn build(&self, tree: &Path, name: &str) -> Result<PathBuf> {
        eprintln!("port: building cloud-hypervisor, {name}");
        let mut command = self.cargo(tree, "build")?;
        command.args(["--package", "cloud-hypervisor", "--bin", "cloud-hypervisor"]);
        check(&mut command, tree)?;
        let profile = if self.release { "release" } else { "debug" };
        let built = self.target.join(profile).join("cloud-hypervisor");
        let program = self.target.join(format!("cloud-hypervisor-{name}-{profile}"));
        fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
        Ok(program)
    }

    /// Applies the patches one by one, and builds and tests what they change after each.
    pub fn test_each_patch(&self) -> Result<()> {
        let scratch = self.scratch()?;
        for patch in series(&self.series)? {
            apply(&patch, &scratch)?;
            copy_tree(&scratch, &self.patched, &[])?;
            let mut command = self.cargo(&self.patched, "test")?;
            command.arg("--lib");
            for package in CHANGED {
                command.args(["--package", package]);
            }
            check(&mut command, &self.patched)?;
            let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
            println!("{name}: builds, and its tests pass");
        }
        Ok(())
    }

    fn cargo(&self, tree: &Path, task: &str) -> Result<Command> {
        let mut command = cargo();
        command
            .args([task, "--quiet", "--no-default-features", "--features", "kvm"])
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        if self.release {
            command.arg("--release");
        }
        let mut replace = |source: &str, name: &str, path: &Path| -> Result<()> {
            command.args([
                "--config",
                &format!("patch.{source}.{name}.path={}", toml_string(path)?),
            ]);
            Ok(())
        };
        if let Some(path) = &self.micro_http {
            replace(
                "\"https://github.com/firecracker-microvm/micro-http\"",
                "micro_http",
                path,
            )?;
        }
        if tree == self.patched {
            for name in CRATES {
                replace("crates-io", name, &self.crates.join(name))?;
            }
        }
        Ok(command)
    }
}

fn check(command: &mut Command, tree: &Path) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo failed in {}: {status}", tree.display());
    }
    Ok(())
}

/// Copies a checkout or the one folder of a tar file to `tree`, which then has to have the file `expected`.
fn lay_out(source: &Path, tree: &Path, expected: &str) -> Result<()> {
    if source.is_dir() {
        copy_tree(source, tree, &NO_SOURCES)?;
    } else {
        let unpacked = tree.with_extension("unpacked");
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(source).arg("-C").arg(&unpacked);
        let status = tar.status().context("cannot run tar")?;
        if !status.success() {
            bail!("cannot unpack {}: tar failed, {status}", source.display());
        }
        let folders = sorted(&unpacked, |path| path.is_dir())?;
        let [folder] = &folders[..] else {
            bail!("{} has {} folders in it, and not one", source.display(), folders.len());
        };
        copy_tree(folder, tree, &NO_SOURCES)?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    }
    if !tree.join(expected).exists() {
        bail!(
            "{} has no {expected}: give a checkout, or a tar file of one",
            source.display()
        );
    }
    Ok(())
}
