// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What differs between the two machines that the lab emulates.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::compiler::Compiler;
use crate::debian;

/// Lists of modules, by the name of the list's file in an initramfs.
pub type Lists = &'static [(&'static str, &'static [&'static str])];

/// The processor of the emulated machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// A PC with a LAPIC, an IOAPIC and an 8259 pair
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// QEMU's `virt` with a GICv3
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The lab's name in a summary.
    pub fn lab(self) -> &'static str {
        match self {
            Self::X86_64 => "lab",
            Self::Aarch64 => "arm64 lab",
        }
    }

    /// The directory of a run's files, below `target/lab`.
    pub fn directory(self) -> &'static str {
        match self {
            Self::X86_64 => "",
            Self::Aarch64 => "aarch64",
        }
    }

    /// `name` in the cache.
    pub fn cached(self, name: &str) -> String {
        match self {
            Self::X86_64 => name.to_owned(),
            Self::Aarch64 => format!("{name}-aarch64"),
        }
    }

    /// The compiler for the machine's programs, unpacked below `target`, if that is not the compiler of this build.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn compiler(self, target: &Path) -> Result<Option<Compiler>> {
        match self {
            Self::X86_64 => Ok(None),
            Self::Aarch64 => Compiler::provide(target).context("no compiler for aarch64").map(Some),
        }
    }

    /// Debian's name of the architecture.
    pub fn debian(self) -> debian::Arch {
        match self {
            Self::X86_64 => debian::Arch::Amd64,
            Self::Aarch64 => debian::Arch::Arm64,
        }
    }

    /// QEMU's program, and the package that has that program.
    pub fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Self::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
        }
    }

    /// The lists of modules of the lab; the modules that these need are added. The lab loads the list `order` when it
    /// boots, and `order.neighbours` for the neighbours of the network cards.
    pub fn modules(self) -> Lists {
        match self {
            Self::X86_64 => &[
                (
                    "order",
                    &[
                        "virtio_pci",
                        "virtio_console",
                        "9pnet_virtio",
                        "9p",
                        "overlay",
                        "kvm_amd",
                        "vfio_iommu_type1",
                        "vfio_pci",
                    ],
                ),
                ("order.neighbours", &["e1000"]),
            ],
            // KVM is built in.
            Self::Aarch64 => &[(
                "order",
                &[
                    "virtio_pci",
                    "virtio_console",
                    "9pnet_virtio",
                    "9p",
                    "overlay",
                    "vfio_iommu_type1",
                    "vfio_pci",
                ],
            )],
        }
    }

    /// QEMU's arguments for the board, its processor and its IOMMU.
    pub fn board(self) -> &'static [&'static str] {
        match self {
            // The emulator has nested virtualisation only for AMD. Without interrupt remapping vfio_iommu_type1 refuses
            // the group with EPERM.
            Self::X86_64 => &[
                "-machine",
                "q35",
                "-cpu",
                "EPYC-Rome,+svm",
                "-device",
                "intel-iommu,intremap=on",
            ],
            // The processor has VHE, so that KVM changes no exception level at an exit, and has no pointer
            // authentication, which is slow to emulate. vfio_iommu_type1 takes the ITS for interrupt remapping; it is
            // there by default.
            Self::Aarch64 => &[
                "-machine",
                "virt,virtualization=on,gic-version=3,iommu=smmuv3",
                "-cpu",
                "neoverse-n1",
            ],
        }
    }

    /// The kernel's arguments for the board.
    pub fn kernel_arguments(self) -> &'static str {
        match self {
            // * All emulated CPUs have the same TSC, but the kernel does not know that (`tsc=reliable`). The kernel
            //   would otherwise use the HPET, whose reads take a lock of QEMU's.
            // * On a busy build machine the kernel's short check of the timer fails (`no_timer_check`).
            Self::X86_64 => "console=ttyS0 no_timer_check tsc=reliable intel_iommu=on",
            Self::Aarch64 => "console=ttyAMA0",
        }
    }
}
