// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Provides what the lab is made of: a kernel with its modules, busybox and QEMU, from Debian's packages.
//!
//! Nothing is installed: the packages are fetched and unpacked under `target/lab`, which works without root. A QEMU that is
//! already installed is used as it is.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::initramfs::Archive;
use super::{guest, modules};

/// The modules that the lab loads; those that they need come by themselves.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "vfio_iommu_type1",
    "vfio_pci",
];

const QEMU: &str = "qemu-system-x86_64";

/// What the emulated PC is made of.
#[derive(Debug)]
pub struct Parts {
    /// The kernel.
    pub kernel: PathBuf,
    /// An initramfs with busybox, `modules/` and `order`, the modules in the order of their loading; without an init.
    pub initramfs: PathBuf,
    /// The emulator.
    pub qemu: Qemu,
}

/// An emulator, installed or unpacked.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// The directories with its libraries, when it is not installed.
    libraries: Option<OsString>,
}

impl Qemu {
    /// The environment and the program, as arguments for `env`.
    pub fn command_line(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        if let Some(libraries) = &self.libraries {
            let mut setting = OsString::from("LD_LIBRARY_PATH=");
            setting.push(libraries);
            words.push(setting);
        }
        words.push(self.program.clone().into_os_string());
        words
    }
}

impl Parts {
    /// Finds the parts in `cache`, or fetches them.
    ///
    /// An error says what this machine lacks and how to mend it.
    pub fn provide(cache: &Path) -> Result<Self> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            bail!("the lab runs this machine's programs in a PC: it needs Linux on x86_64");
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let kernel = cache.join("kernel");
        if fs::read_to_string(kernel.join("modules")).ok() != Some(made_for()) {
            replace(&kernel, provide_kernel)?;
        }
        Ok(Self {
            kernel: kernel.join("vmlinuz"),
            initramfs: kernel.join("initramfs"),
            qemu: provide_qemu(&cache.join("qemu"))?,
        })
    }
}

/// Makes `directory` anew with `make`: it is complete, or not there.
fn replace(directory: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new = directory.with_extension("new");
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

/// What the kernel's directory is made for.
fn made_for() -> String {
    format!("{}, {}", MODULES.join(" "), guest::version())
}

/// Fetches kernel and busybox and writes `vmlinuz`, `initramfs` and `modules` (what the latter was made for).
fn provide_kernel(directory: &Path) -> Result<()> {
    let kernel = with_package_lists(newest_kernel)?;
    note(&format!("fetching {kernel} and busybox-static, once (70 MB)"));
    let files = directory.join("unpacked");
    with_package_lists(|| fetch(&[kernel.clone(), "busybox-static".to_owned()], &files))?;

    let version = kernel.trim_start_matches("linux-image-");
    let modules = files.join("lib/modules").join(version);
    let busybox = files.join("bin/busybox");
    // The package leaves this to its installation.
    run(Command::new(&busybox).args(["depmod", "-b"]).arg(&files).arg(version))?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("{} has no {}", kernel, path.display()));
    let text = |name: &str| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read(&modules.join(name))?).into_owned());
    let order = modules::load_order(&MODULES, &text("modules.dep")?, &text("modules.builtin")?)?;

    let mut archive = Archive::default();
    archive.directory("bin")?;
    archive.directory("modules")?;
    archive.file("bin/busybox", &read(&busybox)?)?;
    let mut names = String::new();
    for file in order {
        let name = file.rsplit('/').next().unwrap_or(&file);
        archive.file(&format!("modules/{name}"), &read(&modules.join(&file))?)?;
        names += name;
        names.push('\n');
    }
    archive.file("order", names.as_bytes())?;

    let write = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    write("vmlinuz", &read(&files.join(format!("boot/vmlinuz-{version}")))?)?;
    write("initramfs", &archive.finish()?)?;
    let of_guest = modules::load_order(&guest::MODULES, &text("modules.dep")?, &text("modules.builtin")?)?
        .into_iter()
        .map(|file| {
            let name = file.rsplit('/').next().unwrap_or(&file).to_owned();
            Ok((name, read(&modules.join(&file))?))
        })
        .collect::<Result<Vec<_>>>()?;
    write(guest::INITRD, &guest::initrd(&read(&busybox)?, &of_guest)?)?;
    write(guest::DISK, &guest::disk())?;
    write("modules", made_for().as_bytes())?;
    fs::remove_dir_all(&files).context("cannot remove the unpacked kernel")
}

/// The package of the newest kernel: what the package without a version depends on.
fn newest_kernel() -> Result<String> {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))
        .context("the lab boots Debian's kernel")?;
    let kernel = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"));
    Ok(kernel
        .context("the package linux-image-amd64 depends on no kernel")?
        .to_owned())
}

/// The installed QEMU, or the one in `directory`, which is fetched when it is not there.
fn provide_qemu(directory: &Path) -> Result<Qemu> {
    if let Some(program) = find_program(QEMU) {
        return Ok(Qemu {
            program,
            libraries: None,
        });
    }
    if !directory.exists() {
        replace(directory, |directory| {
            // apt tells which packages an installation on this machine would add.
            let packages = with_package_lists(|| {
                let arguments = ["-s", "install", "--no-install-recommends", "qemu-system-x86"];
                Ok(packages_to_install(&run(Command::new("apt-get").args(arguments))?))
            })?;
            note(&format!("fetching QEMU, {} packages, once (20 MB)", packages.len()));
            with_package_lists(|| fetch(&packages, directory))
        })
        .context("qemu-system-x86_64 is missing (or install the package qemu-system-x86)")?;
    }
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| directory.join(path));
    Ok(Qemu {
        program: directory.join("usr/bin").join(QEMU),
        libraries: Some(std::env::join_paths(libraries)?),
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

/// Downloads packages and unpacks them all into `directory`.
fn fetch(packages: &[String], directory: &Path) -> Result<()> {
    let debs = directory.with_extension("debs");
    replace(&debs, |debs| {
        let mut download = Command::new("apt-get");
        download.args(["-q", "download"]).args(packages).current_dir(debs);
        run(&mut download).map(drop).context("this needs the network, once")
    })?;
    for deb in fs::read_dir(&debs).context("cannot read what was fetched")? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(directory))?;
    }
    fs::remove_dir_all(&debs).context("cannot remove what was unpacked")
}

/// Tries, and when that fails and we may, fetches the package lists and tries again: they may be missing or too old.
fn with_package_lists<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let error = match attempt() {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if find_program("apt-get").is_none() {
        bail!("the lab is made of Debian packages: it needs apt-get and dpkg-deb");
    }
    if !rustix::process::geteuid().is_root() {
        return Err(error.context("try again after: sudo apt-get update"));
    }
    note("fetching the package lists");
    match run(Command::new("apt-get").args(["-q", "update"])) {
        Ok(_) => attempt(),
        Err(_) => Err(error),
    }
}

/// Runs a command to its end and gives its output; the error has the last line of what it said.
fn run(command: &mut Command) -> Result<String> {
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

/// Tells what takes a while.
fn note(what: &str) {
    eprintln!("lab: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_and_upgraded_packages_are_fetched() {
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
    fn what_fails_half_way_is_not_there() {
        let root = std::env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        let directory = root.join("part");
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
