// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernels that the lab boots, and for each kernel an initramfs for the PC and one for a guest in the PC.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::initramfs::Archive;
use super::{guest, modules};
use crate::debian::{Suites, find_program, note, replace, run};

/// The part of a guest's initrd that is made of packages.
const GUEST_MODULES: &str = "guest-modules";

/// A kernel of Debian's.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    name: &'static str,
    suites: &'static [&'static str],
    /// The package that depends on the newest kernel of this line, without `-` and the architecture.
    package: &'static str,
}

const RELEASES: [Release; 3] = [
    Release {
        name: "6.1",
        suites: &["bookworm", "bookworm-security"],
        package: "linux-image",
    },
    Release {
        name: "6.12",
        suites: &["bookworm", "bookworm-security"],
        package: "linux-image-6.12",
    },
    Release {
        name: "7.3",
        suites: &["trixie-backports"],
        package: "linux-image",
    },
];

/// Which kernel the lab boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linux {
    /// One of Debian's, fetched once.
    Debian(&'static Release),
    /// A directory with boot/vmlinuz-VERSION and lib/modules/VERSION, as a kernel's packages unpack to.
    Directory(PathBuf),
}

impl Linux {
    /// The default kernel of the lab, and of Linux guests in the lab.
    pub const DEFAULT: &str = "6.12";
}

impl Default for Linux {
    fn default() -> Self {
        Self::Debian(&RELEASES[1])
    }
}

impl FromStr for Linux {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(release) = RELEASES.iter().find(|release| release.name == text) {
            return Ok(Self::Debian(release));
        }
        let directory = PathBuf::from(text);
        if directory.join("lib/modules").is_dir() {
            return Ok(Self::Directory(directory));
        }
        let names = RELEASES.map(|release| release.name).join(", ");
        Err(format!(
            "neither one of {names} nor a directory with lib/modules and boot/vmlinuz-VERSION"
        ))
    }
}

/// The kernel and the initramfs that the lab boots.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel.
    pub image: PathBuf,
    /// An initramfs with busybox, `modules/` and lists of modules in the order of their loading; without an init.
    pub initramfs: PathBuf,
}

impl Kernel {
    /// The kernel's release, as uname(2) tells it: in the header of the image (the kernel's Documentation/arch/x86/boot.rst).
    pub fn release(&self) -> Result<String> {
        let context = || format!("{} is no kernel for x86", self.image.display());
        let image = fs::read(&self.image).with_context(|| format!("cannot read {}", self.image.display()))?;
        let pointer = image.get(0x20e..0x210).with_context(context)?;
        let start = usize::from(u16::from_le_bytes([pointer[0], pointer[1]])) + 0x200;
        let text = image.get(start..).with_context(context)?;
        let end = text.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(0);
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

/// Finds the kernel in `cache`, or fetches it. The kernel of a directory is prepared anew each time.
///
/// # Errors
/// The part that this machine lacks, and how to get it.
pub fn provide(cache: &Path, arch: Arch, linux: &Linux) -> Result<Kernel> {
    let directory = match linux {
        Linux::Debian(release) => {
            let directory = cache.join(arch.cached(&format!("linux-{}", release.name)));
            if fs::read_to_string(directory.join("modules")).ok() != Some(made_for(arch)) {
                replace(&directory, |directory| fetch(cache, arch, release, directory))?;
            }
            directory
        }
        Linux::Directory(unpacked) => {
            let directory = cache.join(arch.cached("linux-own"));
            replace(&directory, |directory| prepare(cache, arch, unpacked, directory))?;
            directory
        }
    };
    write_guest_initrd(&directory)?;
    Ok(Kernel {
        image: directory.join("vmlinuz"),
        initramfs: directory.join("initramfs"),
    })
}

/// The inputs that a kernel's directory was made from.
fn made_for(arch: Arch) -> String {
    let lists = arch.modules().iter().chain(guest::modules(arch));
    lists
        .map(|(list, modules)| format!("{list}: {}\n", modules.join(" ")))
        .collect()
}

/// Completes the guest's initrd. The file is replaced, because a guest that runs may read the old file.
fn write_guest_initrd(directory: &Path) -> Result<()> {
    let (modules, path) = (directory.join(GUEST_MODULES), directory.join(guest::INITRD));
    let mut bytes = fs::read(&modules).with_context(|| format!("cannot read {}", modules.display()))?;
    bytes.extend(guest::init()?);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let context = || format!("cannot write {}", path.display());
    fs::write(&new, bytes).with_context(context)?;
    fs::rename(&new, &path).with_context(context)
}

fn fetch(cache: &Path, arch: Arch, release: &Release, directory: &Path) -> Result<()> {
    let suites = Suites::open(cache, arch.debian(), release.suites)?;
    let newest = format!("{}-{}", release.package, arch.debian().name());
    let mut packages = of_kernel(suites.depends(&newest)?);
    if packages.is_empty() {
        bail!("the package {newest} depends on no kernel");
    }
    // Newer packages are empty, and depend on the kernel and on its modules.
    for package in packages.clone() {
        packages.extend(of_kernel(suites.depends(&package)?));
    }
    note(&format!("fetching Linux {}, once (100 MB)", release.name));
    let files = directory.join("unpacked");
    suites.unpack(&packages, &files)?;
    prepare(cache, arch, &files, directory)?;
    fs::remove_dir_all(&files).context("cannot remove the unpacked kernel")
}

fn of_kernel(packages: Vec<String>) -> Vec<String> {
    let is_kernel = |package: &String| {
        ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"]
            .iter()
            .any(|prefix| package.starts_with(prefix))
    };
    packages.into_iter().filter(is_kernel).collect()
}

/// Debian's busybox, which needs no libraries.
fn busybox(cache: &Path, arch: Arch) -> Result<PathBuf> {
    let directory = cache.join(arch.cached("busybox"));
    if !directory.exists() {
        replace(&directory, |directory| {
            let suites = Suites::open(cache, arch.debian(), &["bookworm"])?;
            suites.unpack(&["busybox-static".to_owned()], directory)
        })?;
    }
    Ok(directory.join("bin/busybox"))
}

/// Writes `vmlinuz`, `initramfs`, a guest's modules and disk, and `modules` (the inputs that they were made from) from
/// unpacked packages.
fn prepare(cache: &Path, arch: Arch, unpacked: &Path, directory: &Path) -> Result<()> {
    let (version, modules) = modules_of(unpacked)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let scratch = directory.join("index");
    let index = Index::of(&modules, &busybox(cache, Arch::X86_64)?, &scratch)?;

    let write = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    let image = [
        unpacked.join(format!("boot/vmlinuz-{version}")),
        modules.join("vmlinuz"),
    ];
    let image = image.iter().find(|path| path.exists());
    write(
        "vmlinuz",
        &read(image.context("the kernel's packages have no vmlinuz")?)?,
    )?;
    let busybox = read(&busybox(cache, arch)?)?;
    write("initramfs", &index.archive(&busybox, arch.modules())?)?;
    write(GUEST_MODULES, &index.archive(&busybox, guest::modules(arch))?)?;
    write(guest::DISK, &guest::disk())?;
    fs::remove_dir_all(&scratch).context("cannot remove the unpacked modules")?;
    write("modules", made_for(arch).as_bytes())
}

/// The version of an unpacked kernel and the directory of its modules. There has to be exactly one.
fn modules_of(unpacked: &Path) -> Result<(String, PathBuf)> {
    for place in ["lib/modules", "usr/lib/modules"] {
        let Ok(entries) = fs::read_dir(unpacked.join(place)) else {
            continue;
        };
        let mut versions: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        if let (Some(modules), true) = (versions.pop(), versions.is_empty()) {
            let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok((version, modules));
        }
    }
    bail!("{} has no lib/modules with one version in it", unpacked.display())
}

/// The modules of a kernel, uncompressed, and the dependencies of each.
#[derive(Debug)]
struct Index {
    modules: PathBuf,
    dep: String,
    builtin: String,
}

impl Index {
    /// Copies the modules below `root`, because the user's own kernel directory must stay unchanged.
    fn of(modules: &Path, busybox: &Path, root: &Path) -> Result<Self> {
        let version = modules.file_name().unwrap_or_default();
        let copy = root.join("lib/modules").join(version);
        fs::create_dir_all(&copy).with_context(|| format!("cannot create {}", copy.display()))?;
        run(Command::new(busybox)
            .args(["cp", "-R"])
            .arg(modules.join("kernel"))
            .arg(&copy))?;
        for list in ["modules.builtin", "modules.order"] {
            run(Command::new(busybox).arg("cp").arg(modules.join(list)).arg(&copy))?;
        }
        // A process for each module would take minutes; `+` passes many modules to one process.
        let (unxz, option) = match find_program("xz") {
            Some(xz) => (xz, "-d"),
            None => (busybox.to_owned(), "unxz"),
        };
        let mut find = Command::new(busybox);
        find.arg("find")
            .arg(&copy)
            .args(["-type", "f", "-name", "*.ko.xz", "-exec"]);
        run(find.arg(unxz).args([option, "{}", "+"]))?;
        // The installation of the package would run this step.
        run(Command::new(busybox).args(["depmod", "-b"]).arg(root).arg(version))?;
        let text = |name: &str| fs::read_to_string(copy.join(name)).with_context(|| format!("depmod wrote no {name}"));
        Ok(Self {
            dep: text("modules.dep")?,
            builtin: text("modules.builtin")?,
            modules: copy,
        })
    }

    /// An initramfs with busybox, these lists of modules, and their modules.
    fn archive(&self, busybox: &[u8], lists: &[(&str, &[&str])]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.directory("bin")?;
        archive.directory("modules")?;
        archive.file("bin/busybox", busybox)?;
        let mut packed = HashSet::new();
        for (list, wanted) in lists {
            let mut order = String::new();
            for (name, content) in self.load(wanted)? {
                order += &name;
                order.push('\n');
                if packed.insert(name.clone()) {
                    archive.file(&format!("modules/{name}"), &content)?;
                }
            }
            archive.file(list, order.as_bytes())?;
        }
        archive.finish()
    }

    /// The files of these modules and of their dependencies, in the order of their loading.
    fn load(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let order = modules::load_order(wanted, &self.dep, &self.builtin)?;
        let read = |file: String| {
            let path = self.modules.join(&file);
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((file.rsplit('/').next().unwrap_or(&file).to_owned(), content))
        };
        order.into_iter().map(read).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_one_of_debians_or_a_directory() {
        assert!(matches!("7.3".parse(), Ok(Linux::Debian(release)) if release.package == "linux-image"));
        assert_eq!(Linux::DEFAULT.parse(), Ok(Linux::default()));
        let refused = "5.10".parse::<Linux>().unwrap_err();
        assert!(refused.contains("6.1, 6.12, 7.3"), "{refused}");
    }

    #[test]
    fn only_packages_of_a_kernel_are_fetched_with_it() {
        let depends = [
            "kmod",
            "linux-image-7.3.4+deb13-amd64",
            "linux-base",
            "linux-modules-7.3.4+deb13-amd64",
        ];
        let kernel = of_kernel(depends.map(str::to_owned).to_vec());
        assert_eq!(
            kernel,
            ["linux-image-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"]
        );
    }
}
