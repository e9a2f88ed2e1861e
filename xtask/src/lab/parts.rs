// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of the lab: a kernel and an emulator, and the choice of both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use clap::Args;

use super::arch::Arch;
use super::emulator::{self, Emulator, Qemu};
use super::kernel::{self, Kernel, Linux};

/// Which kernel the lab boots, and in which emulator.
#[derive(Clone, Debug, Args)]
pub struct Setup {
    /// The processor of the emulated machine
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    pub arch: Arch,

    /// The kernel: Debian's 6.1, 6.12 or 7.3, or a directory with boot/vmlinuz-VERSION and lib/modules/VERSION
    #[arg(long, value_name = "KERNEL", default_value = Linux::DEFAULT)]
    linux: Linux,

    /// The emulator: Debian's QEMU 7.2 or 11.1, or a program; otherwise the installed one, or 7.2
    #[arg(long, value_name = "QEMU", default_value = "any", hide_default_value = true)]
    qemu: Emulator,
}

impl Setup {
    /// The PC with the kernel and the emulator of these names, as the options take them.
    pub fn named(linux: &str, qemu: &str) -> Result<Self> {
        Ok(Self {
            linux: linux.parse().map_err(Error::msg)?,
            qemu: qemu.parse().map_err(Error::msg)?,
            ..Self::of(Arch::X86_64)
        })
    }

    /// The default kernel and emulator of a machine.
    pub fn of(arch: Arch) -> Self {
        Self {
            arch,
            linux: Linux::default(),
            qemu: Emulator::Any,
        }
    }
}

/// The parts of the emulated machine.
#[derive(Debug)]
pub struct Parts {
    pub kernel: Kernel,
    pub qemu: Qemu,
}

impl Parts {
    /// Finds the parts in `cache`, or fetches them. An error names the part that this machine lacks, and how to get it.
    pub fn provide(cache: &Path, setup: &Setup) -> Result<Self> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            bail!("the lab's emulators and this machine's programs are for Linux on x86_64");
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        Ok(Self {
            kernel: kernel::provide(cache, setup.arch, &setup.linux)?,
            qemu: emulator::provide(cache, setup.arch, &setup.qemu)?,
        })
    }

    /// A guest's file, which is beside the kernel.
    pub fn beside_kernel(&self, name: &str) -> PathBuf {
        self.kernel.image.with_file_name(name)
    }
}
