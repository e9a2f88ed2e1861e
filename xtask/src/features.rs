// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds each crate of `crates/` without features, with each feature alone, and with all features. Cargo unites the
//! features of all packages that it builds together. So a build of the workspace hides a missing dependency of one
//! feature on another.

use crate::cargo::{Workspace, cargo};
use crate::tally::Tally;

/// Checks every combination, and fails on a warning. Clippy makes the check, because `.ci/run` has already built the
/// dependencies for clippy.
pub fn run(workspace: &Workspace) -> Tally {
    println!("\n     Each feature alone, and all together");
    let mut tally = Tally::default();
    for (package, features) in workspace.libraries() {
        let alone = features
            .iter()
            .map(|feature| (format!("{package} with {feature}"), Some(feature)));
        for (name, feature) in std::iter::once((format!("{package} without features"), None)).chain(alone) {
            let mut options = vec!["--no-default-features"];
            options.extend(feature.into_iter().flat_map(|feature| ["--features", feature]));
            tally.one("features", &name, check(package, &options));
        }
        if features.len() > 1 {
            let name = format!("{package} with all features");
            tally.one("features", &name, check(package, &["--all-features"]));
        }
    }
    tally
}

fn check(package: &str, options: &[&str]) -> Result<(), String> {
    let status = cargo()
        .args(["clippy", "--quiet", "--locked", "--package", package])
        .args(options)
        .args(["--", "-D", "warnings"])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("it does not build".to_owned()),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
