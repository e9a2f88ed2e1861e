// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulators that the lab runs in: the installed QEMU, or one of Debian's, unpacked.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use crate::debian::{self, Suites, find_program, note, replace};

/// A QEMU of Debian's.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    name: &'static str,
    suites: &'static [&'static str],
}

const RELEASES: [Release; 2] = [
    Release {
        name: "7.2",
        suites: &["bookworm", "bookworm-security"],
    },
    Release {
        name: "11.1",
        suites: &["trixie", "trixie-backports"],
    },
];

/// Which QEMU emulates the PC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// The installed QEMU, else Debian's [`Emulator::DEFAULT`].
    Any,
    /// One of Debian's, fetched once.
    Debian(&'static Release),
    /// This program.
    Program(PathBuf),
}

impl Emulator {
    /// The QEMU that is fetched when none is installed.
    const DEFAULT: &Release = &RELEASES[0];
}

impl FromStr for Emulator {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if let Some(release) = RELEASES.iter().find(|release| release.name == text) {
            return Ok(Self::Debian(release));
        }
        let program = PathBuf::from(text);
        if program.is_file() {
            return Ok(Self::Program(program));
        }
        let names = RELEASES.map(|release| release.name).join(", ");
        Err(format!("neither one of {names} nor a program"))
    }
}

/// A QEMU that can be started.
#[derive(Debug)]
pub struct Qemu {
    words: Vec<OsString>,
}

impl Qemu {
    /// The arguments for `env`: the environment, the program, and the arguments that precede the program's own.
    pub fn command_line(&self) -> Vec<OsString> {
        self.words.clone()
    }

    /// The emulator's version, as the program prints it.
    pub fn version(&self) -> Result<String> {
        let output = Command::new("env").args(&self.words).arg("--version").output();
        let output = output.context("cannot start QEMU")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default();
        let mut words = line.split_whitespace().skip_while(|word| *word != "version");
        words.nth(1).map(str::to_owned).context("QEMU tells no version")
    }
}

/// Finds the emulator in `cache`, or fetches it.
///
/// # Errors
/// The part that this machine lacks, and how to get it.
pub fn provide(cache: &Path, arch: Arch, emulator: &Emulator) -> Result<Qemu> {
    let (program, package) = arch.qemu();
    let installed = || find_program(program).map(|program| vec![program.into_os_string()]);
    let words = match emulator {
        Emulator::Program(program) => vec![program.clone().into_os_string()],
        Emulator::Debian(release) => unpacked(cache, arch, release)?,
        Emulator::Any => match installed() {
            Some(words) => words,
            None => unpacked(cache, arch, Emulator::DEFAULT)
                .with_context(|| format!("{program} is missing (or install the package {package})"))?,
        },
    };
    Ok(Qemu { words })
}

/// The words that start an unpacked QEMU: by the loader and the libraries of its own release.
fn unpacked(cache: &Path, arch: Arch, release: &Release) -> Result<Vec<OsString>> {
    let (program, package) = arch.qemu();
    let directory = cache.join(arch.cached(&format!("qemu-{}", release.name)));
    if !directory.exists() {
        replace(&directory, |directory| {
            let suites = Suites::open(cache, debian::Arch::Amd64, release.suites)?;
            let packages = suites.closure(package)?;
            note(&format!(
                "fetching {program} {}, {} packages, once (80 MB)",
                release.name,
                packages.len()
            ));
            suites.unpack(&packages, directory)
        })?;
    }
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib"].map(|path| directory.join(path));
    let mut modules = OsString::from("QEMU_MODULE_DIR=");
    modules.push(directory.join("usr/lib/x86_64-linux-gnu/qemu"));
    let loader = loader(&directory)?;
    let mut words = vec![
        modules,
        loader.into_os_string(),
        "--library-path".into(),
        std::env::join_paths(libraries)?,
    ];
    words.push(directory.join("usr/bin").join(program).into_os_string());
    for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
        words.push("-L".into());
        words.push(directory.join(data).into_os_string());
    }
    Ok(words)
}

fn loader(directory: &Path) -> Result<PathBuf> {
    let places = ["lib64", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
    for place in places {
        let path = directory.join(place).join("ld-linux-x86-64.so.2");
        // A link with an absolute target leads out of the directory.
        if fs::symlink_metadata(&path).is_ok_and(|data| data.is_file()) {
            return Ok(path);
        }
    }
    bail!("{} has no loader for its programs", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_is_one_of_debians_or_a_program() {
        assert_eq!("any".parse(), Ok(Emulator::Any));
        assert!(matches!("11.1".parse(), Ok(Emulator::Debian(_))));
        assert!("9.9".parse::<Emulator>().is_err());
    }
}
