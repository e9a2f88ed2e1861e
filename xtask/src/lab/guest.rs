// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files that a Linux guest in the lab boots: the lab's own kernel, an initrd, and a disk.
//!
//! Initrd and disk are beside the lab's kernel in `target/lab/cache/linux-VERSION`, which the lab sees under the same
//! path.

use anyhow::Result;

use super::initramfs::Archive;

/// The modules that the guest loads; the modules that these need are added.
pub const MODULES: [&str; 3] = ["virtio_mmio", "virtio_blk", "virtio_rng"];

/// The guest's initrd.
pub const INITRD: &str = "guest-initrd";
/// The guest's disk: [`DISK_SIZE`] bytes, which depend only on their offsets.
pub const DISK: &str = "guest-disk";

const DISK_SIZE: usize = 16 << 20;

/// The initrd: busybox, these modules in the order of their loading, and guest-init.sh.
pub fn initrd(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("bin")?;
    archive.directory("modules")?;
    archive.file("bin/busybox", busybox)?;
    let mut order = String::new();
    for (name, content) in modules {
        archive.file(&format!("modules/{name}"), content)?;
        order += name;
        order.push('\n');
    }
    archive.file("order", order.as_bytes())?;
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

/// The inputs of the initrd besides the packages. When they change, the initrd is made anew.
pub fn version() -> String {
    let sum = include_bytes!("guest-init.sh").iter().fold(0_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{} {sum:x}", MODULES.join(" "))
}
