// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's build of the oldest compiler that the workspace promises to work with, for this machine and for aarch64.
//!
//! With it come the standard libraries of both architectures, and a linker and a C library for aarch64. Nothing is
//! installed: the packages are fetched and unpacked under `target/rustc-<version>`, which works without root.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::debian::{Arch, Suites, note, replace, run};

/// The workspace's `rust-version`.
pub const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");
/// The other architecture.
pub const AARCH64: &str = "aarch64-unknown-linux-gnu";

/// A Debian release that has rustc [`OLDEST`], under the name of the compiler for web browsers.
const SUITE: &str = "bookworm";

/// The linker's driver.
const LINKER: &str = "aarch64-linux-gnu-gcc-12";

/// An unpacked rustc.
#[derive(Debug)]
pub struct Compiler {
    directory: PathBuf,
}

impl Compiler {
    /// The compiler, unpacked below `target`. Fetches the packages when they are not there.
    ///
    /// # Errors
    /// When this machine cannot run the compiler, or the packages cannot be fetched.
    pub fn provide(target: &Path) -> Result<Self> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            bail!("Debian's is fetched on x86_64 alone");
        }
        let directory = target.join(format!("rustc-{OLDEST}"));
        if !directory.join("usr/bin").join(LINKER).exists() {
            replace(&directory, fetch)?;
        }
        let this = Self { directory };
        let rustc = this.rustc();
        let version = run(Command::new(&rustc)
            .env("LD_LIBRARY_PATH", this.libraries()?)
            .arg("--version"))?;
        if !version.starts_with(&format!("rustc {OLDEST}.")) {
            bail!("{} is {}", rustc.display(), version.trim());
        }
        Ok(this)
    }

    /// Makes a command of cargo's use this compiler, and a target directory of its own.
    ///
    /// # Errors
    /// When the path of the compiler has a colon.
    pub fn here<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        Ok(command
            .env("LD_LIBRARY_PATH", self.libraries()?)
            .env("RUSTC", self.rustc())
            .env("CARGO_TARGET_DIR", self.directory.with_file_name("platforms")))
    }

    /// Makes a command of cargo's build programs for aarch64 that need no libraries.
    ///
    /// # Errors
    /// When the path of the compiler has a colon.
    pub fn aarch64<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        let linker = self.directory.join("usr/bin").join(LINKER);
        Ok(self
            .here(command)?
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", linker)
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-Ctarget-feature=+crt-static",
            )
            .env("CARGO_BUILD_TARGET", AARCH64))
    }

    fn rustc(&self) -> PathBuf {
        self.directory.join("usr/bin/rustc")
    }

    fn libraries(&self) -> Result<OsString> {
        let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib"].map(|path| self.directory.join(path));
        Ok(std::env::join_paths(libraries)?)
    }
}

/// Fetches the compiler, its libraries, the standard library of both architectures, and what links for aarch64, and
/// unpacks them in `directory`.
fn fetch(directory: &Path) -> Result<()> {
    // The package lists lie inside, because the compiler and the lab are fetched apart.
    let cache = directory.join("fetching");
    let here = Suites::open(&cache, Arch::Amd64, &[SUITE])?;
    let aarch64 = Suites::open(&cache, Arch::Arm64, &[SUITE])?;
    note(&format!(
        "fetching rustc {OLDEST} and a linker for aarch64, once (160 MB)"
    ));
    // Every machine has the other packages that these depend on.
    let shared = format!("libstd-rust-web-{OLDEST}");
    let packages = [
        "rustc-web",
        &shared,
        "libstd-rust-web-dev",
        "libllvm19",
        "libz3-4",
        "gcc-12-aarch64-linux-gnu",
        "libgcc-12-dev-arm64-cross",
        "libc6-dev-arm64-cross",
        "binutils-aarch64-linux-gnu",
        "libbinutils",
        "libjansson4",
    ];
    here.unpack(&packages.map(str::to_owned), directory)?;
    aarch64.unpack(&["libstd-rust-web-dev".to_owned()], directory)?;
    Ok(fs::remove_dir_all(cache)?)
}
