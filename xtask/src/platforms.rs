// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the crates of `crates/` with the oldest compiler that they promise to work with, and for aarch64.
//!
//! Debian packages that compiler, with the standard library of either architecture. Nothing is installed: the packages
//! are fetched and unpacked under `target/rustc-<version>`, which works without root.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{Workspace, cargo};
use crate::tally::Tally;

/// The workspace's `rust-version`.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");
const AARCH64: &str = "aarch64-unknown-linux-gnu";
/// The crates with devices of a PC, which are not built for aarch64.
const X86_ALONE: [&str; 1] = ["user-irqchip"];

/// Checks the oldest compiler and aarch64, or reports why it cannot.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    let oldest = &format!("rustc {OLDEST}");
    println!("\n     The oldest compiler, and aarch64");
    let mut tally = Tally::default();
    let compiler = Compiler::provide(&workspace.target().join(format!("rustc-{OLDEST}")));
    match &compiler {
        Ok(compiler) => tally.one("platforms", oldest, compiler.check(workspace, None)),
        Err(error) => tally.skip("platforms::rust-version", &format!("no rustc {OLDEST}: {error:#}")),
    }
    let here = Compiler::here()?;
    match compiler.iter().chain([&here]).find(|compiler| compiler.has(AARCH64)) {
        Some(compiler) => tally.one("platforms", AARCH64, compiler.check(workspace, Some(AARCH64))),
        None => tally.skip(
            &format!("platforms::{AARCH64}"),
            &format!("no standard library for it at hand; `rustup target add {AARCH64}` gives one"),
        ),
    }
    Ok(tally)
}

/// A rustc, installed or unpacked.
struct Compiler {
    program: PathBuf,
    sysroot: PathBuf,
    libraries: Option<OsString>,
}

impl Compiler {
    /// The rustc that cargo uses here.
    fn here() -> Result<Self> {
        let program = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
        let sysroot = run_command(Command::new(&program).args(["--print", "sysroot"]))?;
        Ok(Self {
            program,
            sysroot: PathBuf::from(sysroot.trim()),
            libraries: None,
        })
    }

    /// Debian's rustc, unpacked in `directory`. Fetches the packages if the directory does not exist.
    fn provide(directory: &Path) -> Result<Self> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            bail!("Debian's is fetched on x86_64 alone");
        }
        if !directory.exists() {
            let new = directory.with_extension("new");
            drop(fs::remove_dir_all(&new));
            fetch(&new)?;
            fs::rename(&new, directory).with_context(|| format!("cannot write {}", directory.display()))?;
        }
        let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib"].map(|path| directory.join(path));
        let compiler = Self {
            program: directory.join("usr/bin/rustc"),
            sysroot: directory.join("usr"),
            libraries: Some(std::env::join_paths(libraries)?),
        };
        let version = run_command(
            compiler
                .environment(&mut Command::new(&compiler.program))
                .arg("--version"),
        )?;
        if !version.starts_with(&format!("rustc {OLDEST}.")) {
            bail!("{} is {}", compiler.program.display(), version.trim());
        }
        Ok(compiler)
    }

    fn has(&self, target: &str) -> bool {
        self.sysroot.join("lib/rustlib").join(target).join("lib").exists()
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.env("RUSTC", &self.program)
    }

    /// Builds every crate, with all features.
    fn check(&self, workspace: &Workspace, target: Option<&str>) -> Result<(), String> {
        let mut command = cargo();
        command
            .args(["check", "--quiet", "--locked", "--all-features"])
            .env("RUSTFLAGS", "-Dwarnings")
            .env("CARGO_TARGET_DIR", workspace.target().join("platforms"));
        for (package, _) in workspace.libraries() {
            if target.is_none() || !X86_ALONE.contains(&package) {
                command.args(["--package", package]);
            }
        }
        if let Some(target) = target {
            command.args(["--target", target]);
        }
        match self.environment(&mut command).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err("it does not build".to_owned()),
            Err(error) => Err(format!("cannot run cargo: {error}")),
        }
    }
}

/// Downloads the compiler, its libraries, and the standard library of both architectures, and unpacks them in
/// `directory`. The package lists are kept there too, because the machine's own lists may lack the other architecture.
fn fetch(directory: &Path) -> Result<()> {
    println!("fetching rustc {OLDEST} from Debian, once (140 MB)");
    let (debs, lists, cache) = (directory.join("debs"), directory.join("lists"), directory.join("cache"));
    for made in [&debs, &lists.join("partial"), &cache.join("archives/partial")] {
        fs::create_dir_all(made).with_context(|| format!("cannot write {}", made.display()))?;
    }
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command
            .args([
                "-q",
                "-o",
                "APT::Architectures::=amd64",
                "-o",
                "APT::Architectures::=arm64",
                "-o",
            ])
            .arg(setting("Dir::State::lists", &lists))
            .arg("-o")
            .arg(setting("Dir::Cache", &cache))
            .current_dir(&debs);
        command
    };
    run_command(apt("apt-get").arg("update")).context("it is fetched from Debian, with the network")?;
    let madison = run_command(apt("apt-cache").args(["madison", "rustc-web", "rustc"]))?;
    let (suffix, version) = packaged(&madison).context("this Debian release has packages of other versions alone")?;
    let standard_library = format!("libstd-rust{suffix}-dev");
    let shared = format!("libstd-rust{suffix}-{OLDEST}");
    let depends = run_command(apt("apt-cache").args(["show", &format!("{shared}={version}")]))?;
    let mut packages = vec![
        format!("rustc{suffix}={version}"),
        format!("{shared}={version}"),
        format!("{standard_library}={version}"),
        format!("{standard_library}:arm64={version}"),
    ];
    // The packages that a machine without Debian's rustc lacks. Every machine has the other dependencies.
    packages.extend(llvm(&depends));
    packages.push("libz3-4".to_owned());
    run_command(apt("apt-get").arg("download").args(&packages))?;
    for deb in fs::read_dir(&debs).context("cannot read what was fetched")? {
        run_command(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(directory))?;
    }
    for done in [debs, lists, cache] {
        fs::remove_dir_all(done).context("cannot remove what was unpacked")?;
    }
    Ok(())
}

fn setting(name: &str, path: &Path) -> OsString {
    let mut setting = OsString::from(format!("{name}="));
    setting.push(path);
    setting
}

/// The suffix of the packages' names and the version, from lines `NAME | VERSION | ..` of `apt-cache madison`.
fn packaged(madison: &str) -> Option<(&str, &str)> {
    madison.lines().find_map(|line| {
        let mut fields = line.split('|').map(str::trim);
        let (name, version) = (fields.next()?, fields.next()?);
        let is_it = version.starts_with(&format!("{OLDEST}."));
        is_it.then_some((name.strip_prefix("rustc")?, version))
    })
}

/// The LLVM that rustc is linked with, from the line `Depends: ..` of `apt-cache show`.
fn llvm(show: &str) -> Option<String> {
    let depends = show.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let package = depends
        .split(',')
        .find(|package| package.trim().starts_with("libllvm"))?;
    Some(package.split_whitespace().next()?.to_owned())
}

fn run_command(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", error.lines().last().unwrap_or("failed"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_compilers_package_is_found() {
        let madison = format!(
            " rustc-web | 1.96.0+dfsg1-1 | https://a bookworm-security/main amd64 Packages\n \
             rustc-web | {OLDEST}.0+dfsg3-1 | https://a bookworm/main amd64 Packages\n \
             rustc | 1.63.0 | https://a bookworm/main amd64 Packages\n"
        );
        let version = format!("{OLDEST}.0+dfsg3-1");
        assert_eq!(packaged(&madison), Some(("-web", version.as_str())));
        let madison = format!("rustc | {OLDEST}.1+dfsg1 | https://a trixie/main amd64 Packages");
        assert_eq!(packaged(&madison).map(|(suffix, _)| suffix), Some(""));
        assert_eq!(packaged(" rustc | 1.63.0 | https://a"), None);
    }

    #[test]
    fn its_llvm_is_found() {
        let show = "Package: libstd-rust-web\nDepends: libc6 (>= 2.34), libllvm19 (>= 1:19), libstdc++6\n";
        assert_eq!(llvm(show).as_deref(), Some("libllvm19"));
    }
}
