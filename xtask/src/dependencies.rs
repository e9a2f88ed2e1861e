// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dependencies of each crate that VMMs take: prints them, and compares them with the crate's README.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{Workspace, array, text};
use crate::tally::Tally;

/// Crates whose types appear in public signatures, or in values that a VMM passes between crates. Two versions of such
/// a crate have two types of one name.
pub const PUBLIC_TYPES: [&str; 11] = [
    "event-manager",
    "interrupt-core",
    "kvm-bindings",
    "kvm-ioctls",
    "vfio-bindings",
    "vfio-ioctls",
    "vfio_user",
    "vm-device",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];
/// The crate that every other crate may use, and its own permitted dependency.
const CORE: &str = "interrupt-core";
const CORE_MAY_USE: [&str; 1] = ["thiserror"];

/// Checks the whole workspace.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    let libraries = workspace.libraries().map(|(name, _)| name).collect();
    let graph = Graph::new(&workspace.resolved()?, &libraries)?;
    println!("\n     Dependencies of the crates, with all features, beside build and test");
    let mut tally = Tally::default();
    for package in &graph.libraries {
        println!("{}", graph.describe(package));
        let readme = package.directory.join("README.md");
        let readme = fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
        tally.one("dependencies", &package.name, graph.check(package, &readme));
    }
    tally.one(
        "dependencies",
        "one version of each public type",
        graph.check_versions(),
    );
    Ok(tally)
}

struct Graph {
    libraries: Vec<Library>,
    /// Name and version of each package, by id.
    names: BTreeMap<String, (String, String)>,
    /// The run-time dependencies of each package, by id.
    uses: BTreeMap<String, Vec<String>>,
}

struct Library {
    id: String,
    name: String,
    directory: PathBuf,
    /// The names of the dependencies in its manifest, optional or not, for any platform.
    direct: BTreeSet<String>,
}

impl Graph {
    fn new(metadata: &Value, libraries: &BTreeSet<&str>) -> Result<Self> {
        let members: BTreeSet<&str> = array(metadata, "workspace_members").filter_map(Value::as_str).collect();
        let mut graph = Self {
            libraries: Vec::new(),
            names: BTreeMap::new(),
            uses: BTreeMap::new(),
        };
        let mut macros = BTreeSet::new();
        for package in array(metadata, "packages") {
            let (id, name) = (text(package, "id")?, text(package, "name")?);
            let version = text(package, "version")?.to_owned();
            graph.names.insert(id.to_owned(), (name.to_owned(), version));
            let is_macro = |target| array(target, "kind").any(|kind| kind == "proc-macro");
            if array(package, "targets").any(is_macro) {
                macros.insert(id);
            }
            if members.contains(id) && libraries.contains(name) {
                let manifest = PathBuf::from(text(package, "manifest_path")?);
                graph.libraries.push(Library {
                    id: id.to_owned(),
                    name: name.to_owned(),
                    directory: manifest.parent().map(PathBuf::from).unwrap_or_default(),
                    direct: array(package, "dependencies").filter_map(direct).collect(),
                });
            }
        }
        for node in metadata
            .pointer("/resolve/nodes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let used = array(node, "deps")
                .filter(|dep| array(dep, "dep_kinds").any(|kind| kind.get("kind") == Some(&Value::Null)))
                .filter_map(|dep| dep.get("pkg")?.as_str())
                .filter(|id| !macros.contains(id))
                .map(str::to_owned);
            graph.uses.insert(text(node, "id")?.to_owned(), used.collect());
        }
        graph.libraries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(graph)
    }

    /// All packages that are linked into a program that uses the package, without the package itself.
    fn behind(&self, package: &Library) -> BTreeSet<&(String, String)> {
        let (mut found, mut open) = (BTreeSet::new(), vec![&package.id]);
        while let Some(id) = open.pop() {
            for used in self.uses.get(id).into_iter().flatten() {
                if self.names.get(used).is_some_and(|name| found.insert(name)) {
                    open.push(used);
                }
            }
        }
        found
    }

    fn describe(&self, package: &Library) -> String {
        let (direct, further): (Vec<_>, Vec<_>) = self
            .behind(package)
            .into_iter()
            .map(|(name, version)| (package.direct.contains(name), format!("{name} {version}")))
            .partition(|(is_direct, _)| *is_direct);
        let list = |names: Vec<(bool, String)>| match names.is_empty() {
            true => "nothing".to_owned(),
            false => names.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", "),
        };
        format!(
            "{}: {}\n    and through them: {}",
            package.name,
            list(direct),
            list(further)
        )
    }

    fn check(&self, package: &Library, readme: &str) -> Result<(), String> {
        if package.name == CORE {
            let more: Vec<_> = package
                .direct
                .iter()
                .filter(|name| !CORE_MAY_USE.contains(&name.as_str()))
                .collect();
            if !more.is_empty() {
                return Err(format!(
                    "{CORE} depends on {} beyond {}",
                    Names(more),
                    Names(CORE_MAY_USE)
                ));
            }
        }
        let siblings = self
            .libraries
            .iter()
            .map(|other| &other.name)
            .filter(|name| *name != CORE);
        let used: Vec<_> = siblings.filter(|name| package.direct.contains(*name)).collect();
        if !used.is_empty() {
            return Err(format!("{} depends on its sibling {}", package.name, Names(used)));
        }
        let listed = listed(readme).ok_or("its README has no paragraph that begins with \"Dependencies:\"")?;
        let unlisted: Vec<_> = package.direct.difference(&listed).collect();
        if !unlisted.is_empty() {
            return Err(format!("its README does not list {}", Names(unlisted)));
        }
        let gone: Vec<_> = listed.difference(&package.direct).collect();
        if !gone.is_empty() {
            return Err(format!("its README lists {}, which it does not depend on", Names(gone)));
        }
        Ok(())
    }

    fn check_versions(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        for name in PUBLIC_TYPES {
            let versions: BTreeSet<_> = self
                .names
                .values()
                .filter(|(other, _)| other == name)
                .map(|(_, v)| v)
                .collect();
            if versions.len() > 1 {
                wrong.push(format!("{name} in versions {}", Names(versions)));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(Names(wrong).to_string())
        }
    }
}

/// The name of a dependency that a user of the crate gets; `None` for dependencies of tests or builds.
fn direct(dependency: &Value) -> Option<String> {
    let is_normal = dependency.get("kind")?.is_null();
    is_normal.then(|| dependency.get("name")?.as_str().map(str::to_owned))?
}

/// The crates that the README's paragraph "Dependencies:" names in backticks before its first full stop. Names in
/// parentheses are features, and are left out.
fn listed(readme: &str) -> Option<BTreeSet<String>> {
    let (_, after) = readme.split_once("\nDependencies:")?;
    let paragraph = after.split("\n\n").next()?.split(". ").next()?;
    let mut depth = 0_u32;
    let outside = paragraph.split_inclusive(['(', ')']).map(|part| {
        let kept = if depth == 0 { part } else { "" };
        match part.chars().last() {
            Some('(') => depth += 1,
            Some(')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        kept
    });
    let outside: String = outside.collect();
    Some(outside.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

struct Names<T>(T);

impl<T: IntoIterator + Clone> fmt::Display for Names<T>
where
    T::Item: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.0.clone().into_iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A single crate `name` with these dependencies.
    fn graph(name: &str, direct: &[&str]) -> Graph {
        Graph {
            libraries: vec![Library {
                id: name.to_owned(),
                name: name.to_owned(),
                directory: PathBuf::new(),
                direct: direct.iter().map(|&name| name.to_owned()).collect(),
            }],
            names: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }

    fn check(name: &str, direct: &[&str], readme: &str) -> Result<(), String> {
        let graph = graph(name, direct);
        graph.check(&graph.libraries[0], readme)
    }

    #[test]
    fn the_core_may_use_thiserror_alone() {
        let readme = "\nDependencies: `thiserror`, `libc`.\n";
        assert_eq!(
            check("interrupt-core", &["thiserror"], "\nDependencies: `thiserror`.\n"),
            Ok(())
        );
        let error = check("interrupt-core", &["thiserror", "libc"], readme).unwrap_err();
        assert_eq!(error, "interrupt-core depends on libc beyond thiserror");
    }

    #[test]
    fn a_readme_lists_what_a_crate_uses_and_nothing_else() {
        let readme =
            "\nDependencies: `log`, and `serde` (feature `serde-1`) when\nasked for. No `vm-memory`.\n\n`libc`";
        assert_eq!(check("leaf", &["log", "serde"], readme), Ok(()));
        assert!(
            check("leaf", &["log", "serde", "libc"], readme)
                .unwrap_err()
                .ends_with("list libc")
        );
        assert!(check("leaf", &["log"], readme).unwrap_err().contains("lists serde"));
        assert!(check("leaf", &["log"], "").is_err());
    }

    #[test]
    fn two_versions_of_a_public_type_are_found() {
        let mut graph = graph("leaf", &[]);
        for version in ["0.14.0", "0.15.0"] {
            let package = ("vmm-sys-util".to_owned(), version.to_owned());
            graph.names.insert(format!("vmm-sys-util {version}"), package);
        }
        assert_eq!(
            graph.check_versions().unwrap_err(),
            "vmm-sys-util in versions 0.14.0, 0.15.0"
        );
        graph.names.pop_first();
        assert_eq!(graph.check_versions(), Ok(()));
    }
}
