// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which crates and features exchange types with which VMM as it is: builds the table of docs/adopting.md, with the
//! versions of each VMM's own lock file, and compiles the crates beside these versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{Workspace, array, cargo, metadata, text};
use crate::compiler::{AARCH64, Compiler, OLDEST};
use crate::dependencies::PUBLIC_TYPES;
use crate::patches::toml_string;
use crate::tally::Tally;

/// A VMM's versions of the crates whose types the interfaces exchange.
struct Vmm {
    name: &'static str,
    /// The first version of a crate is the one whose types the VMM has beside its `VmFd`.
    locked: &'static [(&'static str, &'static [&'static str])],
}

/// From Cargo.lock of cloud-hypervisor's commit ae44c29, firecracker's 81b38b9 (August 2026), kata-containers' 7c6ba40
/// (dragonball, August 2026) and libkrun's release 1.19.7.
const VMMS: [Vmm; 4] = [
    Vmm {
        name: "cloud-hypervisor",
        locked: &[
            ("kvm-bindings", &["0.14.1"]),
            ("kvm-ioctls", &["0.25.0"]),
            ("vfio-bindings", &["0.6.2"]),
            ("vfio-ioctls", &["0.8.1"]),
            ("vfio_user", &["0.1.5"]),
            ("vm-memory", &["0.18.0"]),
            ("vmm-sys-util", &["0.15.0"]),
        ],
    },
    Vmm {
        name: "firecracker",
        locked: &[
            ("event-manager", &["0.4.2"]),
            ("kvm-bindings", &["0.14.1"]),
            ("kvm-ioctls", &["0.25.0"]),
            ("vm-memory", &["0.18.0"]),
            ("vm-superio", &["0.8.1"]),
            ("vmm-sys-util", &["0.15.0"]),
        ],
    },
    Vmm {
        name: "dragonball",
        locked: &[
            ("event-manager", &["0.4.2"]),
            ("kvm-bindings", &["0.14.0"]),
            ("kvm-ioctls", &["0.24.0"]),
            ("vfio-bindings", &["0.6.2"]),
            ("vfio-ioctls", &["0.6.0"]),
            ("vm-memory", &["0.17.1"]),
            ("vm-superio", &["0.8.1"]),
            ("vmm-sys-util", &["0.15.0", "0.14.0"]),
        ],
    },
    Vmm {
        name: "libkrun",
        locked: &[
            ("kvm-bindings", &["0.12.1"]),
            ("kvm-ioctls", &["0.22.1"]),
            ("vm-memory", &["0.17.1"]),
            ("vmm-sys-util", &["0.14.0", "0.12.1", "0.15.0"]),
        ],
    },
];

/// The cells of one VMM, by crate and feature.
type Column = BTreeMap<String, String>;

/// Resolves and compiles for each VMM, and compares the table with the document's.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    println!("\n     The crates beside the versions of other VMMs");
    let compiler = Compiler::provide(workspace.target());
    let mut tally = Tally::default();
    let mut columns = Vec::new();
    for vmm in &VMMS {
        let package = Package::new(workspace, vmm);
        if let Err(error) = package.lock() {
            tally.skip(&format!("vmms::{}", vmm.name), &format!("no registry: {error:#}"));
            continue;
        }
        columns.push(package.resolve(workspace)?);
        let name = format!("every crate and feature beside the versions of {}", vmm.name);
        tally.one("vmms", &name, package.check(None));
        let name = format!("{name}, for {AARCH64}");
        match &compiler {
            Ok(compiler) => tally.one("vmms", &name, package.check(Some(compiler))),
            Err(error) => tally.skip(&name, &format!("no rustc {OLDEST}: {error:#}")),
        }
    }
    if columns.len() == VMMS.len() {
        let document = workspace.root().join("docs/adopting.md");
        let document = fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))?;
        let table = table(&columns);
        let is_there = document.contains(&table);
        let differs = || format!("docs/adopting.md has another table than\n{table}");
        tally.one(
            "vmms",
            "the table of docs/adopting.md",
            is_there.then_some(()).ok_or_else(differs),
        );
    }
    Ok(tally)
}

/// A package with a VMM's dependencies, and then with these crates too, so that cargo keeps the VMM's versions where it
/// would keep them there.
struct Package<'a> {
    vmm: &'a Vmm,
    directory: PathBuf,
    target: PathBuf,
}

impl<'a> Package<'a> {
    fn new(workspace: &Workspace, vmm: &'a Vmm) -> Self {
        let target = workspace.target().join("vmms");
        Self {
            vmm,
            directory: target.join(vmm.name),
            target,
        }
    }

    /// Locks the VMM's versions, unless they are locked already.
    fn lock(&self) -> Result<()> {
        let (alone, lock) = (self.directory.join("alone"), self.directory.join("Cargo.lock"));
        let manifest = self.manifest("=");
        if lock.exists() && fs::read_to_string(alone.join("Cargo.toml")).is_ok_and(|there| there == manifest) {
            return Ok(());
        }
        for directory in [&alone, &self.directory] {
            let source = directory.join("src");
            fs::create_dir_all(&source).with_context(|| format!("cannot create {}", source.display()))?;
            write(&source.join("lib.rs"), "")?;
        }
        write(&alone.join("Cargo.toml"), &manifest)?;
        metadata_of(&alone)?;
        fs::copy(alone.join("Cargo.lock"), &lock).with_context(|| format!("cannot write {}", lock.display()))?;
        Ok(())
    }

    /// Adds these crates, and compares the versions that they get with the VMM's.
    fn resolve(&self, workspace: &Workspace) -> Result<Column> {
        let mut manifest = self.manifest("");
        for (name, features) in workspace.libraries() {
            let path = toml_string(&workspace.root().join("crates").join(name))?;
            manifest += &format!("{name} = {{ path = {path}, features = {features:?} }}\n");
        }
        write(&self.directory.join("Cargo.toml"), &manifest)?;
        let metadata = metadata_of(&self.directory)?;
        let root = Resolved::of(&metadata, &self.name())?;
        let mut column = Column::new();
        for (name, features) in workspace.libraries() {
            let package = Resolved::of(&metadata, name)?;
            let alone = package.public_types(None);
            column.insert(format!("`{name}`"), self.cell(&root, &package, &alone));
            for feature in features {
                let with = package.public_types(Some(feature));
                if with != alone {
                    column.insert(format!("`{name}` with `{feature}`"), self.cell(&root, &package, &with));
                }
            }
        }
        Ok(column)
    }

    /// Which of these dependencies the crate has in another version than the VMM has, or else which the VMM has to update.
    fn cell(&self, root: &Resolved<'_>, package: &Resolved<'_>, public: &[&str]) -> String {
        let (mut own, mut updated) = (Vec::new(), Vec::new());
        for (name, versions) in self.vmm.locked.iter().filter(|(name, _)| public.contains(name)) {
            let locked = versions.first().copied();
            let here = locked.and_then(|locked| root.versions.get(&alias(name, locked).replace('-', "_")));
            if here != package.versions.get(&name.replace('-', "_")) {
                own.push(*name);
            } else if here.map(String::as_str) != locked {
                updated.extend(here.map(|version| format!("{name} {version}")));
            }
        }
        match (own.is_empty(), updated.is_empty()) {
            (false, _) => format!("its own {}", own.join(", ")),
            (true, false) => format!("after an update to {}", updated.join(", ")),
            (true, true) => "as it is".to_owned(),
        }
    }

    /// Compiles for this machine, or for aarch64 with that compiler.
    fn check(&self, aarch64: Option<&Compiler>) -> Result<(), String> {
        let mut command = cargo();
        command
            .args(["check", "--quiet"])
            .current_dir(&self.directory)
            .env("CARGO_TARGET_DIR", &self.target);
        if let Some(compiler) = aarch64 {
            compiler.here(&mut command).map_err(|error| format!("{error:#}"))?;
            command.args(["--target", AARCH64]);
        }
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err("it does not build".to_owned()),
            Err(error) => Err(format!("cannot run cargo: {error}")),
        }
    }

    fn name(&self) -> String {
        format!("{}-versions", self.vmm.name)
    }

    /// The manifest of the VMM's dependencies, with `operator` before each version.
    fn manifest(&self, operator: &str) -> String {
        let mut manifest = format!(
            "[package]\nname = \"{}\"\nedition = \"2024\"\nrust-version = \"{OLDEST}\"\n[workspace]\n[dependencies]\n",
            self.name()
        );
        for (name, versions) in self.vmm.locked {
            for version in *versions {
                let alias = alias(name, version);
                manifest += &format!("{alias} = {{ package = \"{name}\", version = \"{operator}{version}\" }}\n");
            }
        }
        manifest
    }
}

fn metadata_of(package: &Path) -> Result<Value> {
    metadata(&format!("--manifest-path={}", package.join("Cargo.toml").display()))
}

/// The name of a dependency on one of several versions of a crate.
fn alias(name: &str, version: &str) -> String {
    format!("{name}-{}", version.replace('.', "-"))
}

/// A package, and the versions of its dependencies by the names that the package has for them.
struct Resolved<'a> {
    package: &'a Value,
    versions: BTreeMap<String, String>,
}

impl<'a> Resolved<'a> {
    fn of(metadata: &'a Value, name: &str) -> Result<Self> {
        let package = array(metadata, "packages")
            .find(|package| package["name"] == name && package["source"].is_null())
            .with_context(|| format!("cargo metadata has no {name}"))?;
        let mut versions = BTreeMap::new();
        let nodes = metadata.pointer("/resolve/nodes").and_then(Value::as_array);
        let node = nodes.into_iter().flatten().find(|node| node["id"] == package["id"]);
        for dependency in node.into_iter().flat_map(|node| array(node, "deps")) {
            let used = array(metadata, "packages").find(|package| package["id"] == dependency["pkg"]);
            if let Some(used) = used {
                // Cargo has the names of the libraries here, with underscores.
                let name = text(dependency, "name")?.to_owned();
                versions.insert(name, text(used, "version")?.to_owned());
            }
        }
        Ok(Self { package, versions })
    }

    /// The dependencies with public types that the crate has without features, or with one feature.
    fn public_types(&self, feature: Option<&str>) -> Vec<&'a str> {
        let enabled = feature.map(|feature| array(&self.package["features"], feature).filter_map(Value::as_str));
        let enabled: Vec<&str> = enabled.into_iter().flatten().collect();
        let is_used = |dependency: &&Value| {
            let of_feature = |name| enabled.iter().any(|enabled| enabled.strip_prefix("dep:") == Some(name));
            let optional = dependency["optional"] == true;
            dependency["kind"].is_null() && (!optional || dependency["name"].as_str().is_some_and(of_feature))
        };
        array(self.package, "dependencies")
            .filter(is_used)
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|name| *name != "interrupt-core" && PUBLIC_TYPES.contains(name))
            .collect()
    }
}

fn table(columns: &[Column]) -> String {
    let mut table = String::from("| |");
    for vmm in &VMMS {
        table += &format!(" {} |", vmm.name);
    }
    table += "\n|---|";
    table += &"---|".repeat(VMMS.len());
    table.push('\n');
    for name in columns.iter().flat_map(Column::keys).collect::<BTreeSet<_>>() {
        table += &format!("| {name} |");
        for column in columns {
            table += &format!(" {} |", column.get(name).map_or("", String::as_str));
        }
        table.push('\n');
    }
    table
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
