// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages of any Debian release and architecture, fetched and unpacked without installing anything and without root.
//!
//! Each release and architecture has an apt configuration of its own below a cache, so that a machine with one release
//! gets the kernels and emulators of another. The mirrors are those that this machine's apt uses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The keys that sign Debian's releases, old and new.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An architecture of Debian's, for which packages are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// Debian's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// Some of Debian's suites, and an apt configuration that has only these suites.
#[derive(Debug)]
pub struct Suites {
    directory: PathBuf,
    arch: Arch,
    /// The suite to prefer: apt takes nothing from a release's backports by itself.
    preferred: Option<String>,
}

impl Suites {
    /// The configuration for `suites` ("bookworm", "bookworm-security"), with fresh package lists, in `cache`.
    /// Packages are those of `arch`, also where this machine's architecture is another.
    ///
    /// # Errors
    /// When this is no Debian, or the package lists cannot be fetched.
    pub fn open(cache: &Path, arch: Arch, suites: &[&str]) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if find_program(program).is_none() {
                bail!("Debian's packages are needed, and to fetch them {program}");
            }
        }
        let directory = cache.join("apt").join(arch.name()).join(suites.join("+"));
        for path in ["lists/partial", "archives/partial"] {
            create(&directory.join(path))?;
        }
        let mut sources = String::new();
        for suite in suites {
            sources += &format!("deb [signed-by={KEYS}] {} {suite} main\n", mirror(suite)?);
        }
        write(&directory.join("sources.list"), &sources)?;
        write(&directory.join("status"), "")?;
        let preferred = suites.iter().find(|suite| suite.ends_with("-backports"));
        let this = Self {
            directory,
            arch,
            preferred: preferred.map(|suite| (*suite).to_owned()),
        };
        note(&format!(
            "fetching the package lists of {} for {}",
            suites.join(", "),
            arch.name()
        ));
        run(this.apt("apt-get").args(["-q", "update"])).context("this needs the network, once")?;
        Ok(this)
    }

    /// The direct dependencies of `package`.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = run(self.apt("apt-cache").args(["depends", package]))?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// `package` and all its dependencies, also those that are installed.
    ///
    /// # Errors
    /// When one of these packages is not available.
    pub fn closure(&self, package: &str) -> Result<Vec<String>> {
        let mut simulation = self.apt("apt-get");
        simulation.args(["-s", "install", "--no-install-recommends", package]);
        Ok(packages_to_install(&run(&mut simulation)?))
    }

    /// Downloads packages and unpacks them all into `directory`.
    ///
    /// # Errors
    /// When one cannot be fetched or unpacked.
    pub fn unpack(&self, packages: &[String], directory: &Path) -> Result<()> {
        let debs = directory.with_extension("debs");
        replace(&debs, |debs| {
            let mut download = self.apt("apt-get");
            download.args(["-q", "download"]).args(packages).current_dir(debs);
            run(&mut download).map(drop).context("this needs the network, once")
        })?;
        for deb in fs::read_dir(&debs).context("cannot read what was fetched")? {
            run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(directory))?;
        }
        fs::remove_dir_all(&debs).context("cannot remove what was unpacked")
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (key, value) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "."),
            ("Dir::Cache::archives", "archives"),
        ] {
            apt.arg("-o")
                .arg(format!("{key}={}", self.directory.join(value).display()));
        }
        apt.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User="]);
        for key in ["APT::Architecture", "APT::Architectures"] {
            apt.arg("-o").arg(format!("{key}={}", self.arch.name()));
        }
        if let Some(suite) = &self.preferred {
            apt.arg("-o").arg(format!("APT::Default-Release={suite}"));
        }
        apt
    }
}

/// The Debian mirror of this machine's apt: the mirror of the security archive for a `-security` suite, else the mirror
/// of the main archive.
fn mirror(suite: &str) -> Result<String> {
    let targets = run(Command::new("apt-get").args(["indextargets", "--format", "$(CODENAME) $(ORIGIN) $(REPO_URI)"]))?;
    let target = pick_mirror(&targets, suite.ends_with("-security"));
    target.with_context(|| {
        format!("apt on this machine knows no Debian mirror for {suite}; try again after: sudo apt-get update")
    })
}

fn pick_mirror(targets: &str, security: bool) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (codename, origin, uri) = (words.next()?, words.next()?, words.next()?);
        (origin == "Debian" && codename.ends_with("-security") == security).then(|| uri.to_owned())
    })
}

/// The packages of the lines `Inst NAME ...` that `apt-get -s install` prints.
fn packages_to_install(simulation: &str) -> Vec<String> {
    simulation
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Makes `directory` anew with `make`. After an error the directory does not exist.
///
/// # Errors
/// The errors of `make` and of the file system.
pub fn replace(directory: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.with_file_name(name);
    let context = || format!("cannot write {}", new.display());
    for old in [&new, directory] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(context)?;
        }
    }
    fs::create_dir_all(&new).with_context(context)?;
    make(&new)?;
    fs::rename(&new, directory).with_context(context)
}

/// Runs a command to its end and returns its output. The error has the last line of the command's messages.
///
/// # Errors
/// When the command cannot be run, or fails.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("no reason given");
        bail!("{name} failed: {last}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds an executable file in the path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0))
}

/// Announces a slow step on standard error.
pub fn note(what: &str) {
    eprintln!("xtask: {what}");
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_an_installation_would_add_is_fetched() {
        let simulation = "\
Reading package lists...
Remv qemu-utils [1:10.0]
Inst seabios (1.16.2-1 Debian:12.12/stable [all])
Inst libaio1 [0.3.112] (0.3.113-4 Debian:12.12/stable [amd64])
Conf seabios (1.16.2-1 Debian:12.12/stable [all])
";
        assert_eq!(packages_to_install(simulation), ["seabios", "libaio1"]);
    }

    #[test]
    fn the_security_archive_has_a_mirror_of_its_own() {
        let targets = "\
nodistro Other http://other/
bookworm Debian http://mirror/debian/
bookworm-updates Debian http://mirror/debian/
bookworm-security Debian http://mirror/security/
";
        assert_eq!(pick_mirror(targets, false).as_deref(), Some("http://mirror/debian/"));
        assert_eq!(pick_mirror(targets, true).as_deref(), Some("http://mirror/security/"));
        assert_eq!(pick_mirror("nodistro Other http://other/\n", false), None);
    }

    #[test]
    fn what_fails_half_way_is_not_there() {
        let root = std::env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        let directory = root.join("linux-6.12");
        let write = |text: &'static str| move |at: &Path| Ok(fs::write(at.join("file"), text)?);
        replace(&directory, write("old")).unwrap();
        replace(&directory, write("new")).unwrap();
        assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "new");
        replace(&directory, |at| write("half")(at).and_then(|()| bail!("no network"))).unwrap_err();
        assert!(!directory.exists());
        replace(&directory, write("again")).unwrap();
        assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "again");
        fs::remove_dir_all(root).unwrap();
    }
}
