// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages every crate as for a registry: a dependency without a version, a file outside of its crate or a manifest that lacks what
//! is required shows here and not on the day of a release.

use crate::cargo::cargo;
use crate::tally::Tally;

/// Packages all of them. That a package builds by itself is left to `cargo package --workspace`, which takes a minute.
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
