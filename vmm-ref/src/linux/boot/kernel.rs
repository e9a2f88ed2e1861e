// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel file: checks its kind and loads it into the guest's memory.
//!
//! Sources: the kernel's Documentation/x86/boot.rst (boot protocol, 64-bit entry) and zero-page.rst.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader as _};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::error::boot_error::{BootError, Size};
use crate::linux::boot::memory_map::HIGH_START;

/// File offsets of a bzImage's magic number "HdrS" and of the other header fields that are read here.
const HDRS: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const HEADER_END: usize = 0x268;

/// The first protocol version with `xloadflags`, and the flag of a 64-bit entry.
const VERSION_WITH_XLOADFLAGS: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;
/// The offset of the 64-bit entry in the loaded part.
const ENTRY_64: u64 = 0x200;

const EI_CLASS: usize = 4;
const ELFCLASS64: u8 = 2;
const E_MACHINE: usize = 18;
const EM_X86_64: u16 = 62;

/// A kernel in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The address at which the boot CPU starts, in 64-bit mode.
    pub entry: u64,
    /// The end of the memory that the kernel uses before it reads its memory map.
    pub end: u64,
    /// The setup header; `None` for an ELF file.
    pub header: Option<setup_header>,
}

/// The kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BzImage,
    Elf,
}

impl Kernel {
    /// Loads the file into `memory`, which has `size` bytes.
    ///
    /// # Errors
    /// [`BootError::File`], [`BootError::NotAKernel`], [`BootError::No64BitEntry`], [`BootError::TooLittleMemory`].
    pub fn load(memory: &GuestMemoryMmap, size: u64, path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::File {
            option: "--kernel",
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let mut start = [0; HEADER_END];
        let length = read_start(&mut file, &mut start).map_err(unreadable)?;
        let format = check(&start[..length], path)?;
        file.rewind().map_err(unreadable)?;
        let file_size = file.metadata().map_err(unreadable)?.len();
        let too_little = |end: u64| BootError::TooLittleMemory {
            memory: Size(size),
            what: "the kernel",
            needed: Size(end),
        };
        let not_loaded = |error: linux_loader::loader::Error| match HIGH_START + file_size {
            end if end > size => too_little(end),
            _ => BootError::NotAKernel {
                path: path.to_owned(),
                reason: error.to_string(),
            },
        };
        let kernel = match format {
            Format::BzImage => {
                let loaded =
                    BzImage::load(memory, Some(GuestAddress(HIGH_START)), &mut file, None).map_err(not_loaded)?;
                Self {
                    entry: loaded.kernel_load.0 + ENTRY_64,
                    // The range that the kernel unpacks itself into.
                    end: loaded.setup_header.map_or(loaded.kernel_end, |header| {
                        let at = header.pref_address.max(loaded.kernel_load.0);
                        at.saturating_add(header.init_size.into()).max(loaded.kernel_end)
                    }),
                    header: loaded.setup_header,
                }
            }
            Format::Elf => {
                let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_START))).map_err(not_loaded)?;
                Self {
                    entry: loaded.kernel_load.0,
                    end: loaded.kernel_end,
                    header: None,
                }
            }
        };
        if kernel.end > size {
            return Err(too_little(kernel.end));
        }
        Ok(kernel)
    }
}

/// Reads the beginning of the file, or all of a shorter file.
fn read_start(file: &mut File, start: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// Checks the beginning of the file, because the loaders accept some files without a 64-bit entry, and some without any
/// entry.
fn check(start: &[u8], path: &Path) -> Result<Format, BootError> {
    let not_a_kernel = |reason: &str| BootError::NotAKernel {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let no_entry = |reason: String| BootError::No64BitEntry {
        path: path.to_owned(),
        reason,
    };
    let word = |at: usize| Some(u16::from_le_bytes([*start.get(at)?, *start.get(at + 1)?]));
    if start.starts_with(b"\x7fELF") {
        if start.get(EI_CLASS) != Some(&ELFCLASS64) {
            return Err(no_entry("it is a 32-bit ELF file".to_owned()));
        }
        return match word(E_MACHINE) {
            Some(EM_X86_64) => Ok(Format::Elf),
            _ => Err(no_entry("it is an ELF file for another machine".to_owned())),
        };
    }
    if start.get(HDRS..HDRS + 4) != Some(b"HdrS") {
        return Err(not_a_kernel(
            "it has neither an ELF header nor the HdrS mark of a bzImage",
        ));
    }
    match (word(VERSION), word(XLOADFLAGS)) {
        (Some(version), Some(flags)) if version >= VERSION_WITH_XLOADFLAGS => match flags & XLF_KERNEL_64 {
            0 => Err(no_entry("XLF_KERNEL_64 is not set in its header".to_owned())),
            _ => Ok(Format::BzImage),
        },
        (Some(version), Some(_)) => Err(no_entry(format!(
            "its boot protocol is {}.{:02}",
            version >> 8,
            version & 0xff
        ))),
        _ => Err(not_a_kernel("it ends within its header")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(start: &[u8]) -> Result<Format, String> {
        check(start, Path::new("K")).map_err(|error| error.to_string())
    }

    fn header(version: u16, flags: u16) -> Vec<u8> {
        let mut start = vec![0; HEADER_END];
        start[HDRS..HDRS + 4].copy_from_slice(b"HdrS");
        start[VERSION..VERSION + 2].copy_from_slice(&version.to_le_bytes());
        start[XLOADFLAGS..XLOADFLAGS + 2].copy_from_slice(&flags.to_le_bytes());
        start
    }

    fn elf(class: u8, machine: u16) -> Vec<u8> {
        let mut start = b"\x7fELF".to_vec();
        start.resize(64, 0);
        start[EI_CLASS] = class;
        start[E_MACHINE..E_MACHINE + 2].copy_from_slice(&machine.to_le_bytes());
        start
    }

    #[test]
    fn a_64_bit_kernel_is_one() {
        assert_eq!(format(&header(0x20f, 0x7f)), Ok(Format::BzImage));
        assert_eq!(format(&elf(ELFCLASS64, EM_X86_64)), Ok(Format::Elf));
    }

    #[test]
    fn other_files_are_refused() {
        for (start, says) in [
            (vec![], "neither an ELF header"),
            (b"#!/bin/sh\n".to_vec(), "neither an ELF header"),
            (vec![0; 4096], "neither an ELF header"),
            (header(0x20f, 0x7f)[..0x210].to_vec(), "ends within its header"),
            (header(0x20f, 0x7e), "XLF_KERNEL_64"),
            (header(0x20b, 0x7f), "protocol is 2.11"),
            (elf(1, 3), "32-bit"),
            (elf(ELFCLASS64, 183), "another machine"),
        ] {
            let error = format(&start).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("; use a "), "{error}");
        }
    }
}
