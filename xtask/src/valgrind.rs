// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Valgrind, which counts instructions: the installed program, or Debian's, unpacked below `target/valgrind`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::debian::{Arch, Suites, find_program, note, replace};

/// The Debian release whose valgrind is fetched. Its program needs the C library alone, of that release or a later one.
const SUITE: &str = "bookworm";

/// The environment variables with which a program finds valgrind: none when it is installed.
///
/// # Errors
/// When the package cannot be fetched.
pub fn provide(target: &Path) -> Result<Vec<(&'static str, OsString)>> {
    if find_program("valgrind").is_some() {
        return Ok(Vec::new());
    }
    let directory = target.join("valgrind");
    if !directory.exists() {
        let arch = if cfg!(target_arch = "aarch64") {
            Arch::Arm64
        } else {
            Arch::Amd64
        };
        replace(&directory, |directory| {
            let cache = directory.join("fetching");
            let suites = Suites::open(&cache, arch, &[SUITE])?;
            note("fetching valgrind, once (15 MB)");
            suites.unpack(&["valgrind".to_owned()], directory)?;
            std::fs::remove_dir_all(&cache).context("cannot remove the package lists")
        })?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = std::iter::once(directory.join("usr/bin")).chain(std::env::split_paths(&path));
    Ok(vec![
        ("PATH", std::env::join_paths(programs)?),
        ("VALGRIND_LIB", directory.join("usr/libexec/valgrind").into_os_string()),
    ])
}
