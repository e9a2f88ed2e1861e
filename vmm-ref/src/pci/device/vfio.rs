// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the host behind vfio-pci.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use interrupt_core::forward::{DeviceInterrupt, DeviceIrq};
use vfio_intx::VfioIntx;
use vfio_intx::irq_set::INTX;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioRegionInfoCap};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl;

use super::{Area, BAR0_REGION, PciDevice};
use crate::composition::pci_address::PciAddress;
use crate::error::unusable::Unusable;
use crate::passthrough::mapping::Mapping;
use crate::passthrough::open::{container, open};
use crate::pci::bar::BARS;

const PAGE: u64 = 4096;

/// A device of vfio-pci whose DMA reaches the guest's memory.
// Field order is drop order: the device, and with the last one the container with its DMA mappings, goes before the
// memory.
pub struct Vfio {
    label: String,
    /// Of each BAR: the offset in the BAR, and the mapping.
    mappings: [Vec<(u64, Mapping)>; BARS],
    device: Arc<VfioDevice>,
    _memory: Arc<GuestMemoryMmap>,
}

/// The IOMMU container of the devices of one guest.
#[derive(Default)]
pub struct Container(Option<Arc<VfioContainer>>);

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "container" } else { "no container" })
    }
}

impl Vfio {
    /// Opens a device that has passed the [preflight](crate::passthrough::preflight) checks, and maps the guest's memory
    /// for its DMA: an address of the device's is an address of the guest's.
    ///
    /// # Errors
    /// [`Unusable::Refused`], [`Unusable::Dma`].
    pub fn open(address: PciAddress, shared: &mut Container, memory: &Arc<GuestMemoryMmap>) -> Result<Self, Unusable> {
        let first = shared.0.is_none();
        let container = match &shared.0 {
            Some(container) => Arc::clone(container),
            None => container(address)?,
        };
        let device = open(address, Arc::clone(&container))?;
        if first {
            // The IOMMU of the container is set by its first device. The devices that follow share the mappings.
            // SAFETY: the guest's memory is reached by volatile accesses and system calls alone. It outlives the
            // mappings: every device of the container holds a reference, and drops it after its reference to the
            // container.
            let mapped = unsafe { container.vfio_map_guest_memory(&**memory) };
            mapped.map_err(|error| Unusable::Dma {
                address,
                reason: error.to_string(),
            })?;
            shared.0 = Some(container);
        }
        let mut mappings: [Vec<(u64, Mapping)>; BARS] = Default::default();
        for (region, mapped) in (BAR0_REGION..).zip(&mut mappings) {
            for (offset, size) in mappable(&device, region) {
                // A part that cannot be mapped is trapped.
                if let Ok(mapping) = Mapping::new(&device, region, offset, size) {
                    mapped.push((offset, mapping));
                }
            }
        }
        Ok(Self {
            label: address.to_string(),
            mappings,
            device,
            _memory: Arc::clone(memory),
        })
    }

    /// Calls `access` with the device's file and the offset of a byte of a region in it. vfio-ioctls drops the errors.
    fn access(&self, region: u32, offset: u64, access: impl FnOnce(&File, u64) -> io::Result<()>) -> io::Result<()> {
        // SAFETY: the file is open for as long as `device` lives, and is not closed here.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(self.device.as_raw_fd()) });
        access(&file, self.device.get_region_offset(region) + offset)
    }
}

mod request {
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE.into(), VFIO_BASE + 11);
}

/// Resets the device that the file is; one that the host has no way to reset (EINVAL) is left as it is. vfio-ioctls drops
/// the error.
fn reset(device: RawFd) -> io::Result<()> {
    const EINVAL: i32 = 22;
    // SAFETY: the request has no argument.
    if unsafe { ioctl(&device, request::VFIO_DEVICE_RESET()) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(EINVAL) => Ok(()),
        error => Err(error),
    }
}

/// The parts of a region that can be mapped and given to a guest: offset and size, whole pages.
fn mappable(device: &VfioDevice, region: u32) -> Vec<(u64, usize)> {
    let size = device.get_region_size(region);
    let sparse = device.get_region_caps(region).into_iter().find_map(|cap| match cap {
        VfioRegionInfoCap::SparseMmap(map) => Some(map.areas),
        _ => None,
    });
    let parts = match sparse {
        Some(areas) => areas.iter().map(|area| (area.offset, area.size)).collect(),
        None => vec![(0, size)],
    };
    let whole_pages = |(offset, size): (u64, u64)| {
        let pages = size / PAGE * PAGE;
        (offset % PAGE == 0 && pages > 0).then_some((offset, usize::try_from(pages).ok()?))
    };
    parts.into_iter().filter_map(whole_pages).collect()
}

impl fmt::Debug for Vfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl PciDevice for Vfio {
    fn label(&self) -> &str {
        &self.label
    }

    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::new(VfioIntx::new(self.label.clone(), Arc::clone(&self.device)))
    }

    fn irq(&self) -> Option<DeviceIrq> {
        Some(DeviceIrq {
            device: self.device.as_raw_fd(),
            index: INTX,
            sub: 0,
        })
    }

    fn bar_size(&self, bar: u8) -> io::Result<u64> {
        Ok(self.device.get_region_size(BAR0_REGION + u32::from(bar)))
    }

    fn areas(&self, bar: u8) -> Vec<Area> {
        let mappings = self.mappings.get(usize::from(bar)).into_iter().flatten();
        mappings
            .map(|(offset, mapping)| Area {
                offset: *offset,
                size: mapping.size() as u64,
                address: mapping.address() as u64,
            })
            .collect()
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.access(region, offset, |file, at| file.read_exact_at(data, at))
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.access(region, offset, |file, at| file.write_all_at(data, at))
    }

    fn has_messages(&self) -> bool {
        true
    }

    fn set_messages(&self, triggers: &[EventFd]) -> io::Result<()> {
        let set = match triggers {
            [] => self.device.disable_msix(),
            some => self.device.enable_msix(some.iter().collect()),
        };
        // vfio-ioctls drops the errno.
        set.map_err(io::Error::other)
    }

    fn reset(&self) -> io::Result<()> {
        reset(self.device.as_raw_fd())
    }

    /// A device that was pulled reads ones, as on hardware.
    fn is_gone(&self, _: &io::Error) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_that_fails_says_why() {
        const ENOTTY: i32 = 25;
        let no_device = File::open("/dev/null").unwrap();
        assert_eq!(reset(no_device.as_raw_fd()).unwrap_err().raw_os_error(), Some(ENOTTY));
    }
}
