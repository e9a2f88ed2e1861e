// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options of `run` that are about a Linux guest.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// The default command line: names the console, and resets the machine when the kernel panics.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

const MIB: u64 = 1 << 20;

/// Options that go with `--kernel`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "A Linux guest")]
pub struct LinuxArgs {
    /// Boot this kernel, a bzImage or an ELF vmlinux, instead of the embedded guest
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "controller", "count", "eoi", "no_guest_eoi", "sharers", "wait",
    ])]
    pub kernel: Option<PathBuf>,

    /// The kernel's initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// The kernel's command line [default: "console=ttyS0 panic=-1"]
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub cmdline: Option<String>,

    /// The guest's memory; a number of MiB, or one with K, M or G [default: 256M]
    #[arg(long, value_name = "SIZE", requires = "kernel", value_parser = memory)]
    pub memory: Option<u64>,

    /// The guest's processors, 1 to 4 [default: 1]
    #[arg(long, value_name = "N", requires = "kernel", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub cpus: Option<u8>,

    /// A raw disk image or block device, as a virtio disk; with ",ro" read-only. May be given several times
    #[arg(long, value_name = "FILE[,ro]", requires = "kernel")]
    pub disk: Vec<DiskArg>,

    /// Put all virtio devices on one GSI, and all PCI devices on another
    #[arg(long, requires = "kernel")]
    pub share_irq: bool,

    /// Whether the PCI devices of vfio can use MSI-X instead of INTx, as far as they have it [default: off]
    #[arg(long, value_name = "off|on", value_enum, requires = "kernel")]
    pub msi: Option<Switch>,
}

/// Off or on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Off
    Off,
    /// On
    On,
}

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArg {
    /// The file or the device.
    pub path: PathBuf,
    /// Whether the guest may not write it.
    pub read_only: bool,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        match path {
            "" => Err("use the name of a file, and perhaps \",ro\"".to_owned()),
            path => Ok(Self {
                path: path.into(),
                read_only,
            }),
        }
    }
}

/// Parses a size in bytes, a multiple of the page size. The lower bound is slightly above a PC's first 1 MiB; the
/// loader checks later whether the kernel fits.
fn memory(text: &str) -> Result<u64, String> {
    const MAX: u64 = 512 << 30;
    const WAY_OUT: &str = "use a size from 2M to 512G, such as 256M";
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G', 'k', 'm', 'g']) {
        Some(number) => match text.as_bytes().last() {
            Some(b'K' | b'k') => (number, 1 << 10),
            Some(b'G' | b'g') => (number, 1 << 30),
            _ => (number, MIB),
        },
        None => (text, MIB),
    };
    let size = number.parse::<u64>().map_err(|error| format!("{error}; {WAY_OUT}"))?;
    match size.checked_mul(unit) {
        Some(size) if (2 * MIB..=MAX).contains(&size) && size % 4096 == 0 => Ok(size),
        Some(size) if (2 * MIB..=MAX).contains(&size) => {
            Err("it is no multiple of 4K; use a size such as 256M".to_owned())
        }
        _ => Err(WAY_OUT.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, size) in [
            ("256", 256 * MIB),
            ("256M", 256 * MIB),
            ("1g", 1 << 30),
            ("4096K", 4 * MIB),
        ] {
            assert_eq!(memory(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "1.5G",
            "1M",
            "0",
            "513G",
            "99999999999999999999",
            "18446744073709551615G",
            "2049K",
            "1T",
        ] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_may_be_read_only() {
        let disk = |path: &str, read_only| {
            Ok(DiskArg {
                path: path.into(),
                read_only,
            })
        };
        assert_eq!("a,b.img".parse(), disk("a,b.img", false));
        assert_eq!("a.img,ro".parse(), disk("a.img", true));
        assert!(",ro".parse::<DiskArg>().is_err());
        assert!("".parse::<DiskArg>().is_err());
    }
}
