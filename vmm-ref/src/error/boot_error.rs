// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The errors that keep a Linux guest from booting.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// An error before the guest's first instruction. The message is one line and names a remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{option} {path}: {source}")]
    File {
        /// The option that named the file.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is no x86 kernel.
    #[error("--kernel {path} is no kernel for x86: {reason}; use a bzImage (/boot/vmlinuz-*) or an ELF vmlinux")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// Why the file is no kernel.
        reason: String,
    },
    /// The kernel is for 32-bit machines, or too old.
    #[error("--kernel {path} has no 64-bit entry: {reason}; use a kernel for x86_64, version 3.8 or later")]
    No64BitEntry {
        /// The file.
        path: PathBuf,
        /// The missing part of the file.
        reason: String,
    },
    /// A part of the guest does not fit into its memory.
    #[error(
        "--memory {memory} is too little: {what} takes the guest's memory up to {needed}; use --memory {needed} or more"
    )]
    TooLittleMemory {
        /// The size that `--memory` gave.
        memory: Size,
        /// The part that does not fit.
        what: &'static str,
        /// The size that would suffice.
        needed: Size,
    },
    /// The initrd does not fit between the end of the kernel and the highest address that the kernel allows.
    #[error(
        "--initrd {path} of {size} does not fit between the kernel, which ends at {start:#x}, and {end:#x}, below which this kernel wants it; use a smaller one"
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// The size of the initrd.
        size: Size,
        /// The lowest address that the initrd could start at.
        start: u64,
        /// The address that the initrd has to end below.
        end: u64,
    },
    /// The kernel takes no command line of that length, or not with these characters.
    #[error("--cmdline: {0}")]
    CommandLine(String),
    /// The disk's file cannot be opened for writing.
    #[error("--disk {path} cannot be written: {source}; use --disk {path},ro, or make it writable")]
    ReadOnlyDisk {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path is neither a regular file nor a block device.
    #[error("--disk {path} is {what}; use a raw disk image or a block device")]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// The file's size is no multiple of the sector size.
    #[error("--disk {path} has {size} bytes, which is no multiple of 512; pad it with: truncate -s %512 {path}")]
    PartialSector {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// There are more virtio devices than pins for them.
    #[error("{0} disks: this machine has places for 7, and for the entropy device; use fewer --disk")]
    TooManyDisks(usize),
    /// `--irqchip user` has no LAPIC for a Linux guest.
    #[error(
        "--irqchip user cannot boot Linux: without an irqchip in the kernel KVM has no local APIC, and this program has none \
         for its vCPUs; use --irqchip kernel or split"
    )]
    UserIrqchip,
    /// The soft machine runs no instructions.
    #[error("--machine soft cannot boot Linux: it has no processor; use --machine kvm")]
    SoftMachine,
    /// The Linux guest's machine is a PC.
    #[error("--kernel: the machine of the Linux guest is a PC; use an x86_64 host")]
    NotAPc,
    /// An irqfd on a message sends edges, and these devices hold a level.
    #[error(
        "--source irqfd with --kernel: it sends a message at each signal, and these devices hold a level; use --source pin"
    )]
    IrqfdSource,
    /// The virtio devices hold their lines themselves.
    #[error(
        "--forward and --swap-every with --kernel are for PCI devices; use --device vfio:0000:00:0a.0, say, as well"
    )]
    NothingToForward,
    /// MSI-X is a VFIO device's.
    #[error("--msi on is for devices of VFIO; use --device vfio:0000:00:0a.0, say, or --msi off")]
    NoMessages,
    /// The host's KVM emulates each instruction, and would need hours.
    #[error(
        "this host's KVM ({kvm}) runs a guest's instructions one by one in its emulator, {mips:.1} million a second: a stock \
         kernel does not get through boot in useful time; use a VMX or SVM host, or: cargo xtask lab -- vmm-ref run --kernel ..."
    )]
    SlowHost {
        /// The host's KVM module.
        kvm: String,
        /// Million guest instructions a second.
        mips: f64,
    },
    /// A table cannot be laid out.
    #[error("boot parameters: {0}")]
    BootParameters(String),
}

/// A number of bytes, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        match self.0 {
            size if size >= MIB => write!(f, "{}M", size.div_ceil(MIB)),
            size => write!(f, "{}K", size.div_ceil(KIB)),
        }
    }
}
