// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages every crate as for a registry. The check finds a dependency without a version, a file outside of its crate,
//! and a manifest that lacks a required field, before the day of a release.

use crate::cargo::cargo;
use crate::tally::Tally;

/// Packages all crates, without building the packages. `cargo package --workspace` builds them, which takes a minute.
pub fn run() -> Tally {
    println!("\n     Packages");
    let mut tally = Tally::default();
    tally.one("packages", "every crate packages itself", package());
    tally
}

fn package() -> Result<(), String> {
    let status = cargo()
        .args([
            "package",
            "--workspace",
            "--no-verify",
            "--allow-dirty",
            "--offline",
            "--quiet",
        ])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("see above".to_owned()),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
