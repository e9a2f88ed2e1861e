// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initrd, the command line and the boot parameters in the guest's memory.

use std::fs::File;
use std::path::Path;

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::{Cmdline, load_cmdline};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::error::boot_error::{BootError, Size};
use crate::linux::boot::kernel::Kernel;
use crate::linux::boot::memory_map::{
    ACPI, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX, GAP_START, HIGH_START, RESET_VECTOR, usable_ranges,
};

const PAGE: u64 = 4096;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Header fields for an ELF kernel. A bzImage has its own header.
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = 0x5372_6448;
const PROTOCOL: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
/// The type of a boot loader without an assigned number.
const UNKNOWN_LOADER: u8 = 0xff;
/// Every 64-bit kernel can reach an initrd below this address.
const INITRD_MAX: u64 = 0x7fff_ffff;

/// An initrd in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    address: u64,
    size: u64,
}

impl Initrd {
    /// Loads the file at the highest address that the kernel allows, because the kernel unpacks itself at low
    /// addresses.
    ///
    /// # Errors
    /// [`BootError::File`], [`BootError::TooLittleMemory`], [`BootError::InitrdTooLarge`].
    pub fn load(memory: &GuestMemoryMmap, memory_size: u64, kernel: &Kernel, path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::File {
            option: "--initrd",
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let limit = match kernel.header {
            Some(header) if header.initrd_addr_max != 0 => u64::from(header.initrd_addr_max),
            _ => INITRD_MAX,
        };
        let address = place(kernel.end, memory_size, limit, size, path)?;
        // A size above `usize` does not fit into memory either.
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
            .map_err(|error| unreadable(std::io::Error::other(error.to_string())))?;
        Ok(Self { address, size })
    }
}

/// The highest page address above `start` at which `size` bytes fit into memory below `limit`.
fn place(start: u64, memory_size: u64, limit: u64, size: u64, path: &Path) -> Result<u64, BootError> {
    let start = start.next_multiple_of(PAGE);
    let end = memory_size.min(GAP_START).min(limit.saturating_add(1));
    match end.checked_sub(size).map(|at| at / PAGE * PAGE) {
        Some(address) if address >= start => Ok(address),
        _ if memory_size < start.saturating_add(size) && start.saturating_add(size) <= limit => {
            Err(BootError::TooLittleMemory {
                memory: Size(memory_size),
                what: "the initrd",
                needed: Size(start + size.next_multiple_of(PAGE)),
            })
        }
        _ => Err(BootError::InitrdTooLarge {
            path: path.to_owned(),
            size: Size(size),
            start,
            end,
        }),
    }
}

/// Writes code at the reset vector that resets the machine, as a BIOS has there. Linux jumps to it as a last resort
/// when the ACPI tables declare no keyboard controller.
///
/// # Errors
/// [`BootError::BootParameters`].
pub fn write_reset_vector(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    // mov al, 0xfe; out 0x64, al; halted: hlt; jmp halted
    const CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
    memory
        .write_slice(&CODE, GuestAddress(RESET_VECTOR))
        .map_err(|error| BootError::BootParameters(error.to_string()))
}

/// Writes the command line and the boot parameters.
///
/// # Errors
/// [`BootError::CommandLine`], [`BootError::BootParameters`].
pub fn write_parameters(
    memory: &GuestMemoryMmap,
    memory_size: u64,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    command_line: &str,
) -> Result<(), BootError> {
    let command_line_size = write_command_line(memory, kernel, command_line)?;
    let mut params = boot_params {
        hdr: kernel.header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HDRS,
            version: PROTOCOL,
            loadflags: LOADED_HIGH,
            kernel_alignment: 0x100_0000,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_size;
    if let Some(initrd) = initrd {
        // Both are below 4 GiB.
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    let ram = usable_ranges(memory_size)
        .into_iter()
        .map(|(addr, size)| (addr, size, E820_RAM));
    let reserved = (ACPI, HIGH_START - ACPI, E820_RESERVED);
    for (entry, (addr, size, r#type)) in ram.chain([reserved]).enumerate() {
        params.e820_table[entry] = boot_e820_entry { addr, size, r#type };
        params.e820_entries = entry as u8 + 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(BOOT_PARAMS)), memory)
        .map_err(|error| BootError::BootParameters(error.to_string()))
}

fn write_command_line(memory: &GuestMemoryMmap, kernel: &Kernel, text: &str) -> Result<u32, BootError> {
    let wrong = |reason: String| BootError::CommandLine(reason);
    let limit = match kernel.header {
        Some(header) if header.cmdline_size != 0 => (header.cmdline_size as usize + 1).min(COMMAND_LINE_MAX),
        _ => COMMAND_LINE_MAX,
    };
    let mut command_line = Cmdline::new(limit).map_err(|error| wrong(error.to_string()))?;
    if text.len() >= limit {
        let (length, most) = (text.len(), limit - 1);
        return Err(wrong(format!(
            "{length} bytes are more than the {most} that this kernel takes; use a shorter one"
        )));
    }
    if !text.is_empty() {
        command_line
            .insert_str(text)
            .map_err(|error| wrong(format!("{error}; use ASCII without control characters")))?;
    }
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &command_line).map_err(|error| wrong(error.to_string()))?;
    Ok(text.len() as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn place_in(memory: u64, size: u64) -> Result<u64, String> {
        place(80 * MIB, memory, INITRD_MAX, size, Path::new("I")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_initrd_is_as_high_as_it_can_be() {
        assert_eq!(place_in(256 * MIB, MIB), Ok(255 * MIB));
        assert_eq!(place_in(256 * MIB, MIB + 1), Ok(255 * MIB - PAGE));
        assert_eq!(place_in(8 << 30, MIB), Ok(2047 * MIB));
        assert_eq!(place_in(81 * MIB, MIB), Ok(80 * MIB));
    }

    #[test]
    fn one_that_does_not_fit_is_refused() {
        let error = place_in(81 * MIB, MIB + 1).unwrap_err();
        assert!(error.ends_with("use --memory 82M or more"), "{error}");
        let error = place_in(8 << 30, 1968 * MIB + 1).unwrap_err();
        assert!(error.contains("does not fit between the kernel"), "{error}");
        let error = place_in(64 * MIB, u64::MAX - 4096).unwrap_err();
        assert!(error.contains("does not fit"), "{error}");
    }

    #[test]
    fn the_command_line_is_as_long_as_the_kernel_says() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let kernel = Kernel {
            entry: 0,
            end: 0,
            header: Some(setup_header {
                cmdline_size: 10,
                ..Default::default()
            }),
        };
        assert_eq!(write_command_line(&memory, &kernel, "0123456789").unwrap(), 11);
        let mut written = [1; 11];
        memory.read_slice(&mut written, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&written, b"0123456789\0");
        let error = write_command_line(&memory, &kernel, "01234567890")
            .unwrap_err()
            .to_string();
        assert!(error.contains("11 bytes are more than the 10"), "{error}");
        let error = write_command_line(&memory, &kernel, "a\u{7f}").unwrap_err().to_string();
        assert!(error.contains("use ASCII"), "{error}");
    }
}
