// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files that a Linux guest in the lab boots: the lab's own kernel, an initrd, and a disk.
//!
//! Initrd and disk are beside the lab's kernel in `target/lab/cache/linux-VERSION`, which the lab sees under the same
//! path.

use anyhow::Result;

use super::arch::{Arch, Lists};
use super::initramfs::Archive;

/// The guest's initrd: the provided [`modules`], and guest-init.sh.
pub const INITRD: &str = "guest-initrd";
/// The guest's disk: [`DISK_SIZE`] bytes, which depend only on their offsets.
pub const DISK: &str = "guest-disk";

const DISK_SIZE: usize = 16 << 20;

/// The lists of modules in the initrd; the modules that these need are added. The guest loads the first list always,
/// and the list of a card's driver when it is asked to.
pub fn modules(arch: Arch) -> Lists {
    match arch {
        Arch::X86_64 => &MODULES,
        // There are no Linux guests in this machine.
        Arch::Aarch64 => &[],
    }
}

const MODULES: [(&str, &[&str]); 5] = [
    ("order", &["virtio_mmio", "virtio_blk", "virtio_rng"]),
    ("order.e1000", &["e1000"]),
    ("order.e1000e", &["e1000e"]),
    ("order.8139cp", &["8139cp"]),
    ("order.uhci", &["uhci_hcd", "usb_storage", "sd_mod"]),
];

/// The part of the initrd that needs no packages.
pub fn init() -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("init", include_bytes!("guest-init.sh"))?;
    archive.finish()
}

/// The disk: the output of a generator (xorshift64), so that all sectors differ.
pub fn disk() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut disk = Vec::with_capacity(DISK_SIZE);
    while disk.len() < DISK_SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        disk.extend(state.to_le_bytes());
    }
    disk
}
