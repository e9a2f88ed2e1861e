// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options of a Linux guest and its memory with the files loaded, prepared before there is a VM.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use interrupt_core::Irqchip;
use kvm_ioctls::Kvm;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestMemoryMmap};

use super::args::{COMMAND_LINE, DiskArg};
use super::boot::kernel::Kernel;
use super::boot::memory_map::{VIRTIO_DEVICES, memory_ranges};
use super::boot::parameters::Initrd;
use super::boot::{acpi, cpu_state, parameters};
use super::devices::wiring::virtio_places;
use super::guest_summary::Setup;
use super::speed;
use super::virtio::backend::Backend;
use super::virtio::block::Block;
use super::virtio::disk::Disk;
use super::virtio::entropy::Entropy;
use crate::composition::check::Impossible;
use crate::composition::options::{DoorbellPath, Source};
use crate::error::boot_error::BootError;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pci::host::PciOptions;

/// The guest to boot, and its machine.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; [`COMMAND_LINE`] if the options name none.
    pub cmdline: Option<String>,
    /// The guest's memory in bytes, whole pages.
    pub memory: u64,
    /// The number of processors.
    pub cpus: u8,
    /// The disks.
    pub disks: Vec<DiskArg>,
    /// Whether all virtio devices share one line.
    pub share_irq: bool,
    /// The irqchip: where the interrupt controllers are.
    pub irqchip: Irqchip,
    /// The kind of source by which a device drives its line.
    pub source: Source,
    /// Whether KVM or the exit path serves the stores to the doorbells.
    pub doorbell: DoorbellPath,
    /// The PCI devices.
    pub pci: PciOptions,
    /// After how many EOIs of its line the path of a PCI device's interrupt is changed, if it is.
    pub swap_every: Option<u64>,
}

/// The default source of these devices. They know their level at all times, so on the kernel's irqchip they lower the
/// line themselves when the guest acknowledges. A resample irqfd would stay high until the EOI.
pub fn default_source(irqchip: Irqchip) -> Source {
    match irqchip {
        Irqchip::Kernel => Source::Line,
        Irqchip::Split | Irqchip::User => Source::Pin,
    }
}

/// A guest whose files have been read. Every further step needs KVM.
#[derive(Debug)]
pub struct Prepared {
    pub(super) options: BootOptions,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) kernel: Kernel,
    pub(super) backends: Vec<(String, Box<dyn Backend>)>,
}

/// Reads the files and lays out the guest's memory.
///
/// # Errors
/// [`Error::Impossible`] for a source that the irqchip does not have, [`Error::Linux`] for unusable options or files,
/// [`Error::Memory`] when the memory cannot be allocated.
pub fn prepare(options: BootOptions) -> Result<Prepared> {
    match (options.irqchip, options.source) {
        (Irqchip::User, _) => return Err(BootError::UserIrqchip.into()),
        (_, Source::Irqfd) => return Err(BootError::IrqfdSource.into()),
        (Irqchip::Kernel, Source::Pin) => return Err(Impossible::NoUserPins.into()),
        (Irqchip::Split, Source::Resample | Source::Line) => return Err(Impossible::NoKernelPins.into()),
        (Irqchip::Kernel, Source::Resample | Source::Line) | (Irqchip::Split, Source::Pin) => {}
    }
    options.pci.check()?;
    // The last place is the entropy device's.
    if options.disks.len() >= VIRTIO_DEVICES {
        return Err(BootError::TooManyDisks(options.disks.len()).into());
    }
    let mut backends: Vec<(String, Box<dyn Backend>)> = Vec::new();
    for (number, DiskArg { path, read_only }) in options.disks.iter().enumerate() {
        let disk = Disk::open(path, *read_only)?;
        let name = format!("virtio{number} (disk {})", path.display());
        backends.push((name, Box::new(Block::new(disk))));
    }
    backends.push((format!("virtio{} (entropy)", backends.len()), Box::new(Entropy)));

    let size = options.memory;
    let memory = allocate(size, options.pci.shares_memory())
        .map(Arc::new)
        .map_err(|error| Error::Memory(format!("{error}; use a smaller --memory")))?;
    let kernel = Kernel::load(&memory, size, &options.kernel)?;
    let initrd = match &options.initrd {
        Some(path) => Some(Initrd::load(&memory, size, &kernel, path)?),
        None => None,
    };
    let command_line = options.cmdline.as_deref().unwrap_or(COMMAND_LINE);
    parameters::write_reset_vector(&memory)?;
    parameters::write_parameters(&memory, size, &kernel, initrd, command_line)?;
    let places = virtio_places(backends.len(), options.share_irq);
    acpi::write_tables(&memory, options.cpus, &places, options.pci.msi)?;
    cpu_state::write_tables(&memory)?;
    Ok(Prepared {
        options,
        memory,
        kernel,
        backends,
    })
}

/// Memory of `size` bytes from address 0 on, around the gap; in a file without a name if another process is to have it.
///
/// # Errors
/// One line: the system's error.
pub fn allocate(size: u64, shared: bool) -> std::result::Result<GuestMemoryMmap, String> {
    let ranges = memory_ranges(size);
    if !shared {
        return GuestMemoryMmap::from_ranges(&ranges).map_err(|error| error.to_string());
    }
    let file = memfd_create("guest memory", MemfdFlags::CLOEXEC).map_err(|errno| format!("memfd_create: {errno}"))?;
    let file = Arc::new(File::from(file));
    file.set_len(size).map_err(|error| format!("ftruncate: {error}"))?;
    let mut start = 0;
    let parts = ranges.into_iter().map(|(address, size)| {
        let part = FileOffset::from_arc(Arc::clone(&file), start);
        start += size as u64;
        (address, size, Some(part))
    });
    GuestMemoryMmap::from_ranges_with_files(parts).map_err(|error| error.to_string())
}

impl Prepared {
    /// The configuration for the summary.
    pub fn setup(&self, host: Host) -> Setup {
        Setup {
            host,
            irqchip: self.options.irqchip,
            source: self.options.source,
            doorbell: self.options.doorbell,
            cpus: self.options.cpus,
            memory_mib: self.options.memory >> 20,
        }
    }
}

/// Refuses a host that would need hours to boot.
///
/// # Errors
/// [`BootError::SlowHost`], or that of the measurement.
pub fn check_speed(kvm: &Kvm, host: &Host) -> Result<()> {
    match speed::measure(kvm)? {
        mips if mips < speed::ENOUGH_MIPS => Err(BootError::SlowHost {
            kvm: host.kvm_modules.join(" and "),
            mips,
        }
        .into()),
        _ => Ok(()),
    }
}
